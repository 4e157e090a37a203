"""A pair of optimizers, torch's and ours, driven with the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from functional_adamax.compat import Adamax

BOTH = pytest.mark.parametrize("cls", [torch.optim.Adamax, Adamax], ids=["torch", "ours"])


def one(**options: Any) -> tuple[torch.nn.Parameter, Adamax]:
    """A parameter with a gradient, and its optimizer."""
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    p.grad = torch.tensor([0.5, -0.1, 0.0])
    return p, Adamax([p], **options)


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Contiguous, 0-d, empty, channels_last, transposed, and long enough for vector kernels."""
    shapes = [(257, 3), (), (5,), (0, 2), (2, 3, 4, 5), (33, 7)]
    tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    tensors[4] = tensors[4].to(memory_format=torch.channels_last)
    tensors[5] = tensors[5].t().contiguous().t()
    return [torch.nn.Parameter(x) for x in tensors]


def copies(params: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


def pair(params: Any, **options: Any) -> tuple[torch.optim.Adamax, Adamax, list[Any], list[Any]]:
    """torch's optimizer, ours, torch's parameters, ours."""
    theirs, ours = copies(params), copies(params)
    return torch.optim.Adamax(theirs, **options), Adamax(ours, **options), theirs, ours


def set_grads(theirs: list[Any], ours: list[Any], missing: float = 0.2) -> None:
    """The same random gradients for both; some of them None."""
    for a, b in zip(theirs, ours, strict=True):
        a.grad = b.grad = None
        if torch.rand(()) >= missing:
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in every element and its sign, NaN equal to NaN; in dtype, shape and strides."""
    if (a.dtype, a.shape, a.stride(), a.device) != (b.dtype, b.shape, b.stride(), b.device):
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a.detach()), torch.view_as_real(b.detach())
    same = (a == b) & (a.signbit() == b.signbit())
    return bool((same | (a.isnan() & b.isnan())).all())


def assert_twins(theirs: torch.optim.Optimizer, ours: torch.optim.Optimizer) -> None:
    """Parameters and states of the two are the same to the bit."""
    for group, other in zip(theirs.param_groups, ours.param_groups, strict=True):
        for p, q in zip(group["params"], other["params"], strict=True):
            assert same_bits(p, q), (p, q)
            state, other_state = theirs.state.get(p, {}), ours.state.get(q, {})
            assert list(state) == list(other_state)
            for name, value in state.items():
                assert same_bits(value, other_state[name]), name
