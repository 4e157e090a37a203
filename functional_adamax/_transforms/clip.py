"""Clipping: bound the updates by value, by the norm of the whole tree, of a leaf or of a unit.

What is not clipped passes as it is, with the identity for its derivative. An all-zero gradient
is never clipped, so that clipping is differentiable there too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._core import hyper, norms, pytree, sums
from .._core.hyper import Hyperparameter
from .._core.numerics import cast, over_components, real_views
from .._core.transform import GradientTransformation
from .stage import LeafUpdate, Stage


@dataclass(frozen=True, eq=False, repr=False)
class Clip(Stage):
    """Bound each element."""

    max_value: Hyperparameter

    def rule(self, x: LeafUpdate) -> Tensor:
        return _by_value(x.u, x.h["max_value"])


@dataclass(frozen=True, eq=False, repr=False)
class ClipByGlobalNorm(Stage):
    """Bound the norm of all updates together."""

    max_norm: float | Tensor

    def hyper(self) -> dict[str, Any]:
        return {}

    def once(self, updates: list[Tensor]) -> dict[str, Any]:
        unit, root = norms.of_leaves(updates)
        limit = cast(self.max_norm, root)
        limit = limit.reshape(()) if isinstance(limit, Tensor) else limit
        return {"unit": unit, "root": root, "limit": limit}

    def rule(self, x: LeafUpdate) -> Tensor:
        return norms.shortened(x.u, **x.h)


@dataclass(frozen=True, eq=False, repr=False)
class ClipByBlockRms(Stage):
    """Bound the root mean square of each leaf."""

    threshold: Hyperparameter

    def rule(self, x: LeafUpdate) -> Tensor:
        return _by_rms(x.u, x.h["threshold"])


def _by_value(u: Tensor, bound: Any) -> Tensor:
    if u.is_complex():
        (parts,) = real_views(u)
        return torch.view_as_complex(_by_value(parts, over_components(bound)))
    bound = cast(bound, u)
    return torch.clamp(u, -bound, bound)


def _by_rms(u: Tensor, limit: Any) -> Tensor:
    unit, length = norms.of_leaves([u])
    root = length / sums.count(u, 0.5)
    return norms.shortened(u, unit, root, norms.over_components(cast(limit, root), u))


def clip(max_value: Hyperparameter) -> GradientTransformation:
    """Clip each element of the updates to [-max_value, max_value].

        update <- min(max(update, -max_value), max_value)

    Complex updates are clipped by components. NaN stays NaN.

    Args:
        max_value: a number in [0, inf), a tensor, or a tree of them.

    Raises:
        ValueError: ``max_value`` is out of range.

    Example:
        >>> tx = clip(1.0)
        >>> tx.update(torch.tensor([-3.0, 0.5]), tx.init(torch.zeros(2)))[0]
        tensor([-1.0000,  0.5000])
    """
    hyper.check("max_value", max_value)
    return Clip(max_value).pair()


def clip_by_global_norm(max_norm: float | Tensor) -> GradientTransformation:
    """Shorten the updates, all by one factor, to a norm of at most ``max_norm``.

        update <- update * min(1, max_norm / ||updates||)

    The norm is that of ``global_norm``. Nothing waits for the device. An infinite norm makes
    finite elements 0 and the others NaN; a NaN makes everything NaN.

    Args:
        max_norm: a number in [0, inf), or a tensor of shape () or (1,).

    Raises:
        ValueError: ``max_norm`` is out of range or has another shape.
        TypeError: ``max_norm`` is a tree; there is but one norm.

    Example:
        >>> tx = clip_by_global_norm(1.0)
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(torch.zeros(2)))[0]
        tensor([0.6000, 0.8000])

    Source: Pascanu et al. 2013 (arXiv 1211.5063), Algorithm 1.
    """
    if pytree.is_node(max_norm):
        raise TypeError(
            "max_norm must be a number or a tensor of shape () or (1,), "
            f"got a {type(max_norm).__name__}; for a norm of each leaf use clip_by_block_rms"
        )
    hyper.check("max_norm", max_norm)
    if isinstance(max_norm, Tensor) and max_norm.shape not in ((), (1,)):
        raise ValueError(
            "max_norm must be a number or a tensor of shape () or (1,), "
            f"got a tensor of shape {tuple(max_norm.shape)}"
        )
    return ClipByGlobalNorm(max_norm).pair()


def clip_by_block_rms(threshold: Hyperparameter) -> GradientTransformation:
    """Shorten the update of each leaf to a root mean square of at most ``threshold``.

        update <- update / max(1, rms(update) / threshold),  rms(x) = sqrt(mean(|x|^2))

    Args:
        threshold: a number in [0, inf), a tensor, or a tree of them.

    Raises:
        ValueError: ``threshold`` is out of range.

    Example:
        >>> tx = clip_by_block_rms(1.0)
        >>> tx.update(torch.tensor([2.0, -2.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 1., -1.])

    Source: Shazeer and Stern 2018 (arXiv 1804.04235), section 6.
    """
    hyper.check("threshold", threshold)
    return ClipByBlockRms(threshold).pair()
