"""Optimizers that are stepped and saved, and checkpoints through a file."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax.compat import Adamax, Optimizer

Make = Callable[..., torch.optim.Optimizer]


def adamaxw(params: Any, **options: Any) -> Optimizer:
    return Optimizer(params, fa.adamaxw, **options)


def momentum(params: Any, **options: Any) -> Optimizer:
    return Optimizer(params, fa.sgd, **{"lr": 0.1, "momentum": 0.9} | options)


both = pytest.mark.parametrize("make", [Adamax, adamaxw], ids=["Adamax", "Optimizer"])


def stepped(optimizer: Any, times: int = 1, values: Any = None) -> Any:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(times):
        for i, p in enumerate(params):
            p.grad = torch.full_like(p, 0.3 if values is None else values[i])
        optimizer.step()
    return optimizer


def saved(optimizer: Any) -> dict[str, Any]:
    return copy.deepcopy(optimizer.state_dict())


CLASSES = {"torch": torch.optim.Adamax, "ours": Adamax}


def through_a_file(state_dict: Any) -> Any:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def run(optimizers: list[Any], params: list[list[Any]], steps: int) -> None:
    for _ in range(steps):
        grads = [None if torch.rand(()) < 0.2 else torch.randn_like(p) for p in params[0]]
        for optimizer, group in zip(optimizers, params, strict=True):
            for p, g in zip(group, grads, strict=True):
                p.grad = None if g is None else g.clone()
            optimizer.step()
