"""Cautious optimizers: leave out the elements of an update that go against the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._core import pytree, selection
from .._core.links import call_update, checked_link, remade, settled
from .._core.numerics import real_views
from .._core.pytree import Tree
from .._core.transform import GradientTransformation, Transform


@dataclass(frozen=True, eq=False, repr=False)
class Cautious(Transform):
    """``inner`` without the elements of its updates that go against the gradient."""

    is_local: ClassVar[bool] = True

    inner: GradientTransformation
    ascending: bool = False

    def init(self, params: Tree) -> Any:
        return self.inner.init(params)

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        return remade(self, inner=settled(self.inner, state, updates, params))

    def update(
        self, updates: Tree, state: Any, params: Tree = None, **extra: Any
    ) -> tuple[Tree, Any]:
        grads, spec = pytree.flatten(updates)
        new, state = call_update(self.inner, updates, state, params, extra)
        given = pytree.match(spec, new, "the updates of inner", "the gradients")
        leaves = [
            _agreeing(u, g, self.ascending) if isinstance(u, Tensor) and g is not None else u
            for u, g in zip(given, grads, strict=True)
        ]
        return pytree.unflatten(spec, leaves), state


def _agreeing(u: Tensor, g: Tensor, ascending: bool) -> Tensor:
    """``u`` where it goes the way of ``g``, scaled up by one over the share of those elements."""
    if u.is_complex():
        u, g = real_views(u, g)
        return torch.view_as_complex(_agreeing(u, g, ascending))
    g = g if ascending else -g
    against = ((u >= 0) & (g <= 0)) | ((u <= 0) & (g >= 0))  # neither for NaN, which stays
    dtype = torch.promote_types(u.dtype, torch.float32)
    share = selection.share(~against, dtype).clamp(min=1e-3)
    return torch.where(against, 0.0, u.to(dtype) / share).to(u.dtype)


def cautious(inner: GradientTransformation, *, ascending: bool = False) -> GradientTransformation:
    """Leave out the elements of the updates of ``inner`` that go against the gradient.

        update <- inner(g)
        update <- update * [update * g < 0] / max(mean[update * g < 0], 1e-3)

    The mean is over the elements of a leaf. Momentum can carry an element uphill; such
    elements wait, and the others are scaled up in their stead. An element that is 0, or whose
    gradient is, counts as against. NaN stays NaN. Complex leaves go by their real and imaginary
    parts.

    Args:
        inner: the transform. Weight decay belongs outside of it, or it is masked too.
        ascending: the updates of ``inner`` point along the gradient, so keep those with
            update * g > 0: for a direction such as ``scale_by_adamax()``, and for an optimizer
            with ``maximize``. Default: False.

    Returns:
        A transform with the state of ``inner``.

    Raises:
        TypeError: ``inner`` is not a pair of functions.

    Example:
        >>> tx = cautious(sgd(0.1, momentum=0.9))
        >>> state = tx.init(torch.zeros(2))
        >>> for g in ([1.0, 1.0], [-0.5, 1.0]):
        ...     updates, state = tx.update(torch.tensor(g), state)
        >>> updates
        tensor([ 0.0000, -0.3800])

    Source: Liang et al. 2024, arXiv 2411.16085, Algorithm 1, with the scale of the authors'
    code, one over the mean bounded by 1e-3, for the paper's d / (|mask| + 1).
    """
    return Cautious(checked_link("inner", inner), ascending).pair()
