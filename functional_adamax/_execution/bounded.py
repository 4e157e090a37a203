"""A quotient whose value is exact and whose derivative is bounded.

Where a gradient is zero, or tiny, the denominator of Adamax is eps, and the derivative of the
step by the gradient is about -lr / eps: right, finite, and ruinous after a few steps. Here the
derivatives by the moments are taken as if the denominator were at least ``floor``. The value is
not touched, nor the derivative by the scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._core import sharded


def quotient(m: Tensor, scale: Tensor, u: Tensor, floor: float | None) -> Tensor:
    """Return ``m * scale / u``, for u >= 0.

    With a floor, and ``w = max(u, floor)``:

    d(m scale / u) = scale dm / w + (m / u) dscale - (m scale / u) du / w
    """
    if floor is None:
        return m * scale / u
    scale = sharded.expanded_as(scale, m)
    result: Tensor = _Bounded.apply(m, scale, u, floor)  # type: ignore[no-untyped-call]
    return result


class _Bounded(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(m: Tensor, scale: Tensor, u: Tensor, floor: float) -> Tensor:
        del floor
        return m * scale / u

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del output
        m, scale, u, ctx.floor = inputs
        ctx.save_for_backward(m, scale, u)
        ctx.save_for_forward(m, scale, u)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        m, scale, u = ctx.saved_tensors
        w = u.clamp(min=ctx.floor)
        ratio = quotient(m, torch.ones_like(scale), u, ctx.floor)
        by_m = cotangent * scale / w
        return by_m, cotangent * ratio, -by_m * ratio, None

    @staticmethod
    def jvp(ctx: Any, dm: Tensor, dscale: Tensor | None, du: Tensor, floor: None) -> Tensor:
        del floor
        m, scale, u = ctx.saved_tensors
        ratio = quotient(m, torch.ones_like(scale), u, ctx.floor)
        result: Tensor = (dm - ratio * du) * scale / u.clamp(min=ctx.floor)
        return result if dscale is None else result + ratio * dscale
