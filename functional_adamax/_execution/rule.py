"""One step of one leaf by any rule: what is around the rule.

A rule says what a gradient does to the moments of a leaf, and what update follows. The sign of the
gradient, weight decay of both kinds, and complex leaves are the same for every rule, so they are
here. Executors are held to ``step`` bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._core.numerics import add_scaled, over_components, real_views

Moments: TypeAlias = dict[str, Any]
"""What the state keeps of one leaf beside its ``step``, by the name of the field."""

Rule: TypeAlias = Callable[[Tensor, Tensor, Moments, dict[str, Any]], tuple[Tensor, Moments]]
"""``(t, g, moments, hyper) -> (update, moments)`` for the ``t``-th gradient of a real leaf.

``g`` is the conditioned gradient; hyperparameters are numbers, or tensors that broadcast to it."""


class Leaf(NamedTuple):
    """Everything one step of one leaf needs."""

    p: Any  # the parameter; None where nothing asks for it
    g: Tensor  # its gradient
    t: Tensor  # (), the number of gradients before this one
    moments: Moments
    hyper: dict[str, Any]  # of this leaf, lr and weight_decay among them
    dtype: torch.dtype  # that of the moments
    maximize: bool
    decoupled: bool  # whether the weight decay passes by the moments


def step(rule: Rule, leaf: Leaf) -> tuple[Tensor, Tensor, Moments]:
    """Return the update, t and the moments after the gradient of ``leaf``.

    g <- -g                              if maximize
    g <- g + weight_decay * p            coupled decay
    update, moments <- rule(t + 1, g, moments)
    update <- update - lr * weight_decay * p     decoupled decay, instead of the coupled one

    Complex leaves go by their real and imaginary parts, as in torch, except for the decay.
    """
    p, g, t, moments, hyper, dtype, maximize, decoupled = leaf
    decay = hyper["weight_decay"]
    t = t + 1
    g = conditioned(g, dtype, maximize, p, 0 if decoupled else decay)
    if g.is_complex():
        parts = {name: real_views(x)[0] for name, x in moments.items()}
        by_parts = {name: over_components(x) for name, x in hyper.items()}
        update, parts = rule(t, real_views(g)[0], parts, by_parts)
        update = torch.view_as_complex(update)
        moments = {name: torch.view_as_complex(x) for name, x in parts.items()}
    else:
        update, moments = rule(t, g, moments, hyper)
    return (decayed(update, p, hyper["lr"], decay) if decoupled else update), t, moments


def conditioned(g: Tensor, dtype: torch.dtype, maximize: bool, p: Any, decay: Any) -> Tensor:
    """The gradient that enters the moments: in their dtype, with its sign and a coupled decay."""
    if g.dtype != dtype:
        g = g.to(dtype)
    if maximize:
        g = -g
    return add_scaled(g, p.to(g.dtype), decay) if decays(decay) else g


def decayed(update: Tensor, p: Any, lr: Any, decay: Any) -> Tensor:
    """The update with a decoupled decay."""
    return add_scaled(update, p.to(update.dtype), -(lr * decay)) if decays(decay) else update


def decays(decay: Any) -> bool:
    """Whether there is a weight decay, as far as can be told without reading a tensor."""
    return isinstance(decay, Tensor) or decay != 0
