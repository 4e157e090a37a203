"""Losses, networks and data for the tests of inner loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import functional_call

D = torch.float64
CHECKPOINTS = pytest.mark.parametrize("checkpoint", [False, True, 1, 3], ids=str)


def parabola(p: torch.Tensor, batch: Any) -> torch.Tensor:
    del batch
    return (p**2).sum()


def network(dtype: torch.dtype = D, dropout: float = 0.0) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(6, 3)
    ).to(dtype)


def regression(module: torch.nn.Module) -> Callable[..., torch.Tensor]:
    def loss(params: Any, batch: Any) -> torch.Tensor:
        x, y = batch
        return (functional_call(module, params, (x,)) - y).square().mean()

    return loss


def data(steps: int, dtype: torch.dtype = D) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(5, 4, dtype=dtype), torch.randn(5, 3, dtype=dtype)) for _ in range(steps)]


class Doubled(torch.autograd.Function):
    """An autograd function as users write them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> torch.Tensor:
        return 2 * cotangent
