"""The definition of Adamax, for one tensor, out of place.

Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 2, with torch's place for eps. The executors written
for Adamax alone spell it again, and are held to it bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .._core import numerics
from .._core.numerics import average, bias_corrected, cast, maximum_norm, wide
from . import rule
from .bounded import quotient
from .rule import Leaf, Moments


class AdamaxLeaf(NamedTuple):
    """A leaf as the executors written for Adamax take it, native/rows.h by position."""

    p: Any  # the parameter; None where nothing asks for it
    g: Any  # its gradient, or None
    m: Any  # exp_avg
    u: Any  # exp_inf
    t: Any  # step, ()
    lr: Any
    b1: Any
    b2: Any
    eps: Any
    weight_decay: Any
    floor: float | None = None  # for derivatives, see _bounded.py
    maximize: bool = False
    decoupled: bool = False


def adamax(t: Tensor, g: Tensor, moments: Moments, h: dict[str, Any]) -> tuple[Tensor, Moments]:
    """One Adamax step: the update and the moments after the ``t``-th gradient.

        m <- b1 m + (1 - b1) g
        u <- max(b2 u, |g| + eps)
        update = -lr / (1 - b1^t) * m / u

    ``update`` is float32 where m is a half. ``h["derivative_floor"]`` bounds the derivative of the
    quotient.
    """
    m = average(moments["exp_avg"], g, h["b1"])
    u = maximum_norm(moments["exp_inf"], g, h["b2"], h["eps"])
    wider = wide(m)
    factor = cast(-bias_corrected(h["lr"], h["b1"], t), wider)
    update = quotient(wider, factor, wide(u), h["derivative_floor"])
    return update, {"exp_avg": m, "exp_inf": u}


def step(leaf: AdamaxLeaf, add: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The whole step of one leaf that has a gradient; returns ``(update, t, m, u)``.

    With ``add``, the new parameter takes the place of the update.
    """
    p, g, m, u, t, lr, b1, b2, eps, decay, floor, maximize, decoupled = leaf
    hyper = {"lr": lr, "b1": b1, "b2": b2, "eps": eps, "weight_decay": decay}
    hyper["derivative_floor"] = floor
    moments = {"exp_avg": m, "exp_inf": u}
    update, t, new = rule.step(adamax, Leaf(p, g, t, moments, hyper, m.dtype, maximize, decoupled))
    first = numerics.add(p, update) if add else update
    return first, t, new["exp_avg"], new["exp_inf"]


def scale(leaf: AdamaxLeaf, t: Tensor) -> Tensor:
    """The factor of m / u in the step that makes ``t``, for a real leaf that is no half."""
    factor: Tensor = cast(-bias_corrected(leaf.lr, leaf.b1, t), leaf.m)
    return factor
