"""Compiled steps of parameters that share memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax.compat import Adamax, wrap


@pytest.mark.filterwarnings("ignore:.*are the same (memory|tensor)")
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
@pytest.mark.parametrize("foreach", [None, True])
@pytest.mark.parametrize("view", [(0, 6, 6), (0, 6, 2, 3), (2, 6, 4)], ids=str)
def test_parameters_that_share_memory(view: Any, foreach: bool | None, lr: Any) -> None:
    """Where the kernel takes them, and where it does not."""

    def run(compiled: bool) -> torch.Tensor:
        base = torch.arange(1.0, 7.0)
        start, end, *shape = view
        p, twin = torch.nn.Parameter(base), torch.nn.Parameter(base[start:end].view(shape))
        groups = [{"params": [p, torch.nn.Parameter(torch.ones(2))]}, {"params": [twin]}]
        optimizer = Adamax(groups, lr=lr, foreach=foreach)
        p.grad, twin.grad = torch.ones_like(p), torch.full_like(twin, 2.0)
        torch._dynamo.reset()
        step = optimizer.step
        if compiled:
            step = torch.compile(step, backend="eager", fullgraph=True)
        step()
        step()
        return base

    assert torch.equal(run(True), run(False))


@pytest.mark.filterwarnings("ignore:.*are the same (memory|tensor)")
def test_parameters_that_are_one_memory_in_a_wrapped_transform() -> None:
    def run(compiled: bool) -> torch.Tensor:
        p = torch.nn.Parameter(torch.ones(3))
        twin = torch.nn.Parameter(p.detach())
        optimizer = wrap(fa.adamaxw)([p, twin], lr=0.1)
        p.grad, twin.grad = torch.ones(3), torch.full((3,), 2.0)
        torch._dynamo.reset()
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        step()
        step()
        return p.detach()

    assert torch.equal(run(True), run(False))
