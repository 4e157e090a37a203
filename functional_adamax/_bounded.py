"""A quotient whose value is exact and whose derivative is bounded.

Where a gradient is zero, or tiny, the denominator of Adamax is eps, and the derivative of the
step by the gradient is about -lr / eps: right, finite, and ruinous after a few steps. Here the
derivative is taken as if the denominator were at least ``floor``; the value is not touched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def quotient(a: Tensor, u: Tensor, floor: float | None) -> Tensor:
    """``a / u`` for u >= 0; derivatives divide by ``max(u, floor)`` where a floor is given.

    d(a / u) = da / max(u, floor) - (a / u) du / max(u, floor)
    """
    if floor is None:
        return a / u
    return _Bounded.apply(a, u, floor)  # type: ignore[no-any-return, no-untyped-call]


class _Bounded(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, u: Tensor, floor: float) -> Tensor:
        del floor
        return a / u

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del output
        a, u, ctx.floor = inputs
        ctx.save_for_backward(a, u)
        ctx.save_for_forward(a, u)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        a, u = ctx.saved_tensors
        by_a = cotangent / u.clamp(min=ctx.floor)
        return by_a, -by_a * quotient(a, u, ctx.floor), None

    @staticmethod
    def jvp(ctx: Any, da: Tensor, du: Tensor, floor: None) -> Tensor:
        del floor
        a, u = ctx.saved_tensors
        result: Tensor = (da - quotient(a, u, ctx.floor) * du) / u.clamp(min=ctx.floor)
        return result
