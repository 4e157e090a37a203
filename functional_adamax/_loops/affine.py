"""Norms whose second derivatives hold from outside of ``vmap``: their affine part apart.

Under ``vmap``, torch differentiates a layer or batch norm with weights by formulas that take the
mean and the deviation for constants (pytorch/functorch#534). A transform inside of ``vmap`` does
not see it; one outside, which differentiates these formulas again, gets wrong numbers. Norms
without weights have derivatives of their own that are right. So, while ``vmap`` is going on, the
weights are multiplied and added by operations of their own, as torch itself does it when they are
batched.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .._core import context

Norm = Callable[..., Tensor]


def exact_norms() -> AbstractContextManager[Any]:
    """A context for losses: whoever differentiates them again gets the derivatives of their norms.

    Only ``vmap`` needs it. A compiler traces what torch does.
    """
    if torch.compiler.is_compiling() or not context.batching():
        return nullcontext()
    return _Apart()


class _Apart(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return _APART.get(func, func)(*args, **(kwargs or {}))


def _layer_norm(
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    y = functional.layer_norm(x, normalized_shape, None, None, eps)
    return _affine(y, weight, bias)


def _by_channel(norm: Norm) -> Norm:
    def apart(
        x: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        y = norm(x, running_mean, running_var, None, None, *args, **kwargs)
        shape = (-1, *[1] * (x.dim() - 2))
        return _affine(y, *(w if w is None else w.view(shape) for w in (weight, bias)))

    return apart


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    dtype = y.dtype
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y.to(dtype)


_APART: dict[Any, Norm] = {
    functional.layer_norm: _layer_norm,
    functional.batch_norm: _by_channel(functional.batch_norm),
    functional.instance_norm: _by_channel(functional.instance_norm),
}
