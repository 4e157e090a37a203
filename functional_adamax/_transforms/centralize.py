"""Gradient centralization: take the mean out of the gradient of each output unit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .._core import numerics, sharded
from .._core.transform import GradientTransformation
from .stage import LeafUpdate, Stage


@dataclass(frozen=True, eq=False, repr=False)
class Centralize(Stage):
    """Subtract the mean of each unit."""

    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u if x.u.dim() < 2 else _centered(x.u)


def _centered(u: Tensor) -> Tensor:
    wide = numerics.wide(u)
    mean = sharded.settled(wide.mean(tuple(range(1, u.dim())), keepdim=True))
    return sharded.placed_like(u, (wide - mean).to(u.dtype))


def centralize() -> GradientTransformation:
    """Subtract from the update of each unit its mean.

        update_i <- update_i - mean(update_i)

    A unit i is what lies under one index of the first axis, the outputs of torch's linear and
    convolutional weights. Leaves with fewer than two axes pass as they are. Halves are averaged
    in float32.

    Example:
        >>> tx = centralize()
        >>> tx.update(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), EmptyState())[0]
        tensor([[-1.,  0.,  1.],
                [-1.,  0.,  1.]])

    Source: Yong et al. 2020 (arXiv 2004.01461), equation 1.
    """
    return Centralize().pair()
