"""Clipping: bound the updates by value, by the norm of the whole tree, of a leaf or of a unit.

What is not clipped passes as it is, with the identity for its derivative. An all-zero gradient
is never clipped, so that clipping is differentiable there too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import _check, _hyper, _norm, _rule, _tree
from ._hyper import Hyperparameter
from ._spelling import explains_misfits
from ._transform import GradientTransformation, Stateless
from ._tree import EmptyState, Tree


@dataclass(frozen=True, eq=False, repr=False)
class Clip(Stateless):
    """Bound each element."""

    name: ClassVar[str] = "clip"

    max_value: Hyperparameter

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del params, extra
        leaves, spec = _given(updates, self.name)
        bounds = _hyper.per_leaf("max_value", self.max_value, updates, leaves)
        new = [
            None if u is None else _by_value(u, bound)
            for u, bound in zip(leaves, bounds, strict=True)
        ]
        return _tree.unflatten(spec, new), state


@dataclass(frozen=True, eq=False, repr=False)
class ClipByGlobalNorm(Stateless):
    """Bound the norm of all updates together."""

    name: ClassVar[str] = "clip_by_global_norm"

    max_norm: float | Tensor

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del params, extra
        leaves, spec = _given(updates, self.name)
        unit, root = _norm.of_leaves([u for u in leaves if u is not None])
        limit = _hyper.cast(self.max_norm, root)
        limit = limit.reshape(()) if isinstance(limit, Tensor) else limit
        new = [None if u is None else _norm.shortened(u, unit, root, limit) for u in leaves]
        return _tree.unflatten(spec, new), state


@dataclass(frozen=True, eq=False, repr=False)
class ClipByBlockRms(Stateless):
    """Bound the root mean square of each leaf."""

    name: ClassVar[str] = "clip_by_block_rms"

    threshold: Hyperparameter

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del params, extra
        leaves, spec = _given(updates, self.name)
        limits = _hyper.per_leaf("threshold", self.threshold, updates, leaves)
        new = [u if _is_bare(u) else _by_rms(u, x) for u, x in zip(leaves, limits, strict=True)]
        return _tree.unflatten(spec, new), state


def _given(updates: Tree, what: str) -> tuple[list[Any], Any]:
    leaves, spec = _tree.flatten(updates)
    _check.gradients(spec, leaves, leaves, what, "updates")
    return leaves, spec


def _is_bare(u: Any) -> bool:
    """Whether there is nothing to clip: no update, or one without elements."""
    return u is None or u.numel() == 0


def _by_value(u: Tensor, bound: Any) -> Tensor:
    if u.is_complex():
        (parts,) = _rule.real_views(u)
        return torch.view_as_complex(_by_value(parts, _norm.over_components(bound, u)))
    bound = _hyper.cast(bound, u)
    return torch.clamp(u, -bound, bound)


def _by_rms(u: Tensor, limit: Any) -> Tensor:
    unit, length = _norm.of_leaves([u])
    root = length / u.numel() ** 0.5
    return _norm.shortened(u, unit, root, _norm.over_components(_hyper.cast(limit, root), u))


@explains_misfits
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
    _hyper.check("max_value", max_value)
    return Clip(max_value).pair()


@explains_misfits
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
    if _tree.is_node(max_norm):
        raise TypeError(
            "max_norm must be a number or a tensor of shape () or (1,), "
            f"got a {type(max_norm).__name__}; for a norm of each leaf use clip_by_block_rms"
        )
    _hyper.check("max_norm", max_norm)
    if isinstance(max_norm, Tensor) and max_norm.shape not in ((), (1,)):
        raise ValueError(
            "max_norm must be a number or a tensor of shape () or (1,), "
            f"got a tensor of shape {tuple(max_norm.shape)}"
        )
    return ClipByGlobalNorm(max_norm).pair()


@explains_misfits
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
    _hyper.check("threshold", threshold)
    return ClipByBlockRms(threshold).pair()
