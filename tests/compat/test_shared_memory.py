"""Parameters of a wrapped transform that are one memory, or overlap."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import functional_adamax as fa
from functional_adamax import compat


@pytest.mark.filterwarnings("ignore:.*are the same (memory|tensor)")
@pytest.mark.parametrize("factory", [fa.adam, fa.adamaxw, fa.sgd])
@pytest.mark.parametrize("compiled", [False, True])
def test_one_memory_in_two_groups_is_stepped_in_turn(factory: Any, compiled: bool) -> None:
    def run(step_of: Any) -> torch.Tensor:
        x = torch.ones(3)
        groups = [{"params": [nn.Parameter(x)]}, {"params": [nn.Parameter(x)]}]
        optimizer = compat.Optimizer(groups, factory, lr=0.1)
        step = step_of(optimizer.step)
        for i in range(3):
            for k, group in enumerate(groups):
                group["params"][0].grad = torch.full((3,), i + k + 1.0)
            step()
        return x

    def one_by_one() -> torch.Tensor:
        x = torch.ones(3)
        pair = [compat.Optimizer([nn.Parameter(x)], factory, lr=0.1) for _ in range(2)]
        for i in range(3):
            for k, optimizer in enumerate(pair):
                optimizer.param_groups[0]["params"][0].grad = torch.full((3,), i + k + 1.0)
                optimizer.step()
        return x

    torch._dynamo.reset()
    step_of = partial(torch.compile, backend="eager") if compiled else lambda step: step
    torch.testing.assert_close(run(step_of), one_by_one(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("factory", [fa.adam, fa.adamaxw])
def test_parameters_that_overlap_are_stepped_from_the_old_values(factory: Any) -> None:
    x = torch.ones(3)
    p, q = nn.Parameter(x), nn.Parameter(x[1:])
    p.grad, q.grad = torch.ones(3), torch.ones(2)
    compat.Optimizer([p, q], factory, lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(x, torch.full((3,), 0.9))
    r = nn.Parameter(torch.ones(2))
    r.grad = r.data
    compat.Optimizer([r], factory, lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(r.detach(), torch.full((2,), 0.9))


def test_tied_parameters_are_stepped() -> None:
    x = torch.ones(4)
    p, q = nn.Parameter(x), nn.Parameter(x)
    p.grad = q.grad = torch.ones(4)
    optimizer = compat.Optimizer([p, q], fa.sgd, lr=0.1)
    with pytest.warns(UserWarning, match="are the same tensor"):
        optimizer.step()
    torch.testing.assert_close(x, torch.full((4,), 0.9))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_a_parameter_given_twice_is_stepped_as_in_torch(foreach: bool | None, dtype: Any) -> None:
    ends = []
    for cls in (torch.optim.Adamax, compat.Adamax):
        torch.manual_seed(0)
        p, q = (nn.Parameter(torch.randn(n, dtype=dtype)) for n in (5, 3))
        optimizer = cls([p, q, p], lr=0.1, foreach=foreach)
        for _ in range(3):
            p.grad, q.grad = torch.randn_like(p), torch.randn_like(q)
            optimizer.step()
        ends.append([p, q, *optimizer.state[p].values(), *optimizer.state[q].values()])
    for ours, torchs in zip(*ends, strict=True):
        assert torch.equal(ours, torchs)
