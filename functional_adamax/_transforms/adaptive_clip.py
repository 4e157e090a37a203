"""Adaptive clipping: a unit may move in proportion to the norm of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._core import hyper, norms, numerics
from .._core.hyper import Hyperparameter
from .._core.transform import GradientTransformation
from .stage import LeafUpdate, Stage


@dataclass(frozen=True, eq=False, repr=False)
class AdaptiveGradClip(Stage):
    """Bound the norm of each unit by a multiple of the norm of its weights."""

    needs_params: ClassVar[bool] = True

    clipping: Hyperparameter
    eps: Hyperparameter = 1e-3

    def rule(self, x: LeafUpdate) -> Tensor:
        return _by_unit(x.u, x.p, x.h["clipping"], x.h["eps"]) if x.u.numel() else x.u


def _by_unit(u: Tensor, p: Tensor, clipping: Any, eps: Any) -> Tensor:
    g = norms.real(u)
    w = norms.real(p).to(g.dtype)
    whole = sum(n > 1 for n in u.shape) <= 1  # a vector, or a matrix that is one
    (unit, root), (size, length) = (
        norms.of_leaves([x]) if whole else norms.over(x, tuple(range(1, x.dim()))) for x in (g, w)
    )
    eps = norms.over_components(numerics.cast(eps, g), u)
    eps = eps if isinstance(eps, Tensor) else torch.ones_like(length) * eps
    clipping = norms.over_components(numerics.cast(clipping, g), u)
    return norms.shortened(u, unit, root, clipping * torch.maximum(size * length, eps))


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
    hyper.check("clipping", clipping)
    hyper.check("eps", eps)
    return AdaptiveGradClip(clipping, eps).pair()
