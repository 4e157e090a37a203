"""Schedules as hyperparameters of a group whose step is compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scheduled_groups import FALLING, HALF, rates, stepped
from wrapped import parameters

import functional_adamax as fa
from functional_adamax import compat


def compiled(optimizer: Any, backend: str) -> Any:
    torch._dynamo.reset()
    step = torch.compile(lambda: optimizer.step(), backend=backend)
    return lambda: stepped(Stepping(optimizer, step))


class Stepping:
    """An optimizer whose step is compiled."""

    def __init__(self, optimizer: Any, step: Any) -> None:
        self.param_groups, self.step = optimizer.param_groups, step


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_steps_see_what_is_set(backend: str) -> None:
    """A tensor, a number, what was left put back, and a tensor that is written."""
    eager = compat.Optimizer(parameters(3), fa.adamaxw, lr=FALLING)
    other = compat.Optimizer(parameters(3), fa.adamaxw, lr=FALLING)
    run = compiled(other, backend)
    for i in range(9):
        for optimizer in (eager, other):
            group = optimizer.param_groups[0]
            if i == 2:
                group["lr"] = torch.tensor(0.5, dtype=torch.float64)
            elif i == 4:
                group["lr"] = float(group["scheduled_lr"])
            elif i == 6 and optimizer is other:
                group["lr"].fill_(0.2)
            elif i == 6:
                group["lr"] = 0.2
        stepped(eager)
        run()
        found, wanted = (x.param_groups[0] for x in (other, eager))
        assert float(found["lr"]) == pytest.approx(float(wanted["lr"]))
        torch.testing.assert_close(found["params"][0], wanted["params"][0])
    assert found["lr"] is not found["scheduled_lr"]


def test_a_compiled_run_goes_on_compiled() -> None:
    optimizer = compat.Optimizer(parameters(3), fa.adamaxw, lr=FALLING)
    run = compiled(optimizer, "inductor")
    for _ in range(3):
        run()
    resumed = compat.Optimizer(parameters(3), fa.adamaxw, lr=FALLING)
    resumed.load_state_dict(optimizer.state_dict())
    again = compiled(resumed, "inductor")
    for i in range(3, 6):
        again()
        assert rates(resumed) == [pytest.approx(FALLING(i))]


@pytest.mark.parametrize("other", [FALLING, HALF, 0.3])
def test_coupled_groups_with_schedules_compile(other: Any) -> None:
    def moved(compiling: bool) -> Any:
        a, b = parameters(2, 2)
        groups = [{"params": [a]}, {"params": [b], "lr": other}]
        optimizer = compat.Optimizer(groups, fa.adamaxw, lr=FALLING, couple="all")
        step = optimizer.step
        if compiling:
            torch._dynamo.reset()
            step = torch.compile(lambda: optimizer.step(), fullgraph=True, backend="eager")
        for _ in range(3):
            a.grad, b.grad = torch.ones(2), torch.full((2,), 2.0)
            step()
        return a, b

    torch.testing.assert_close(moved(True), moved(False))
