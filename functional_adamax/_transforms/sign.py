"""The sign of the updates: in front of a method, every gradient counts by its direction alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._core.numerics import real_views, sign
from .._core.transform import GradientTransformation
from .stage import LeafUpdate, Stage


@dataclass(frozen=True, eq=False, repr=False)
class ScaleBySign(Stage):
    """The sign of each element."""

    strict: ClassVar[bool] = False

    def rule(self, x: LeafUpdate) -> Tensor:
        if x.u.is_complex():
            return torch.view_as_complex(sign(*real_views(x.u)))
        return sign(x.u)


def scale_by_sign() -> GradientTransformation:
    """Replace each update by its sign.

        update <- sign(update)

    The sign of 0 is 0 and that of NaN is NaN; complex updates go by their real and imaginary
    parts. Its derivative is 0. In front of a method it gives that method signs for gradients;
    behind it, every element moves by the learning rate.

    Returns:
        A transform without state.

    Example:
        >>> tx = chain(scale_by_sign(), scale_by_adamax(), scale_by_learning_rate(0.1))
        >>> params = torch.zeros(2)
        >>> tx.update(torch.tensor([1e-4, -7.0]), tx.init(params))[0]
        tensor([-0.1000,  0.1000])

    Source: Bernstein et al. 2018, "signSGD", arXiv 1802.04434.
    """
    return ScaleBySign().pair()
