"""Adaptive clipping: a unit may move in proportion to the norm of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import _check, _hyper, _norm, _numerics, _tree
from ._hyper import Hyperparameter
from ._spelling import explains_misfits
from ._stage import Seen, Stage
from ._transform import GradientTransformation
from ._tree import EmptyState, Tree


@dataclass(frozen=True, eq=False, repr=False)
class AdaptiveGradClip(Stage):
    """Bound the norm of each unit by a multiple of the norm of its weights."""

    name: ClassVar[str] = "adaptive_grad_clip"

    clipping: Hyperparameter
    eps: Hyperparameter = 1e-3

    def rule(self, x: Seen) -> Tensor:
        return _by_unit(x.u, x.p, x.h["clipping"], x.h["eps"]) if x.u.numel() else x.u

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del extra
        leaves, spec = _tree.flatten(updates)
        _check.gradients(spec, leaves, leaves, self.name, "updates")
        if params is None:
            if any(u is not None for u in leaves):
                _check.params_given(None, f"for {self.name}")
            return updates, state
        weights = _tree.match(spec, params, "params", "updates")
        _check.gradients(spec, leaves, weights, self.name, "updates")
        return _tree.unflatten(spec, self.applied(updates, leaves, weights)), state


def _by_unit(u: Tensor, p: Tensor, clipping: Any, eps: Any) -> Tensor:
    g = _norm.real(u)
    w = _norm.real(p).to(g.dtype)
    whole = sum(n > 1 for n in u.shape) <= 1  # a vector, or a matrix that is one
    (unit, root), (size, length) = (
        _norm.of_leaves([x]) if whole else _norm.over(x, tuple(range(1, x.dim()))) for x in (g, w)
    )
    eps = _norm.over_components(_numerics.cast(eps, g), u)
    eps = eps if isinstance(eps, Tensor) else torch.ones_like(length) * eps
    clipping = _norm.over_components(_numerics.cast(clipping, g), u)
    return _norm.shortened(u, unit, root, clipping * torch.maximum(size * length, eps))


@explains_misfits
def adaptive_grad_clip(
    clipping: Hyperparameter, eps: Hyperparameter = 1e-3
) -> GradientTransformation:
    """Shorten the update of each unit in proportion to its weights; ``update`` needs ``params``.

        update_i <- update_i * min(1, clipping * max(||p_i||, eps) / ||update_i||)

    A unit i is what lies under one index of the first axis, the outputs of torch's linear and
    convolutional weights. A leaf with no more than one axis longer than 1 is one unit.

    Args:
        clipping: a number in [0, inf), a tensor, or a tree of them; for a tensor with
            dimensions, each element is scaled by its own.
        eps: the least norm a unit counts with, so that a zero weight can grow; as ``clipping``.
            Default: 1e-3.

    Raises:
        ValueError: ``params`` is missing, or a hyperparameter is out of range.

    Example:
        >>> tx, params = adaptive_grad_clip(0.1), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> tx.update(torch.tensor([[1.0, 0.0], [1e-5, 0.0]]), tx.init(params), params)[0]
        tensor([[5.0000e-01, 0.0000e+00],
                [1.0000e-05, 0.0000e+00]])

    Source: Brock et al. 2021 (arXiv 2102.06171), equation 3.
    """
    _hyper.check("clipping", clipping)
    _hyper.check("eps", eps)
    return AdaptiveGradClip(clipping, eps).pair()
