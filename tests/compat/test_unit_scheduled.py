"""A group with a schedule, stepped by the kernel: the rate is asked for, and the count goes up."""

from __future__ import annotations

import copy
from typing import Any

import optree
import pytest
import torch

import functional_adamax as fa
from functional_adamax._execution.native import kernel
from functional_adamax.compat import Optimizer

SIZES = (3, 70, 1, 8)


class Kernel:
    """How often the kernel stepped, and the two optimizers of which one may take it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, schedule: Any = None) -> None:
        self.steps, self._patch = 0, monkeypatch
        self.schedule = schedule or fa.cosine_decay_schedule(0.1, 9)
        values = [torch.randn(n) for n in SIZES]
        self.optimizers = [
            Optimizer([x.clone() for x in values], fa.adamax, lr=self.schedule) for _ in range(2)
        ]

    def step(self) -> None:
        """Step both, and compare them."""
        real = kernel.advance
        grads = [torch.randn(n) for n in SIZES]
        for optimizer in self.optimizers:
            for x, g in zip(optimizer.param_groups[0]["params"], grads, strict=True):
                x.grad = g
        with self._patch.context() as patch:
            patch.setattr(kernel, "advance", lambda *x: None)
            self.optimizers[1].step()

        def counted(*given: Any) -> Any:
            found = real(*given)
            self.steps += found is not None
            return found

        with self._patch.context() as patch:
            patch.setattr(kernel, "advance", counted)
            self.optimizers[0].step()
        states = [x.state_dict() for x in self.optimizers]
        params = [x.param_groups[0]["params"] for x in self.optimizers]
        assert states[0]["param_groups"] == states[1]["param_groups"]
        assert optree.tree_all(optree.tree_map(same, *(x["state"] for x in states)))
        assert all(map(torch.equal, *params))


needs_kernel = pytest.mark.skipif(not kernel.is_there(), reason="built without a compiler")


@needs_kernel
@pytest.mark.parametrize(
    "schedule", [None, lambda count: 0.1 * 0.9**count, lambda count: 0.1 / (1 + int(count))]
)
def test_a_scheduled_step_by_the_kernel(monkeypatch: pytest.MonkeyPatch, schedule: Any) -> None:
    run = Kernel(monkeypatch, schedule)
    for _ in range(5):
        run.step()
    assert run.steps == 4  # all but the first, which makes the state
    for optimizer in run.optimizers:
        optimizer.param_groups[0]["lr"] = 0.7  # which somebody sets over the schedule
    run.step()
    assert run.steps == 5
    for optimizer in run.optimizers:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run.step()
    run.step()


@needs_kernel
def test_a_rate_that_the_kernel_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Kernel(monkeypatch, lambda count: 0.2 - 0.1 * count)
    for _ in range(5):
        run.step()
    assert run.steps == 2  # until it is below zero


@needs_kernel
def test_counts_that_are_not_one_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Kernel(monkeypatch)
    run.step()
    for optimizer in run.optimizers:
        entry = optimizer.state[optimizer.param_groups[0]["params"][1]]
        entry["count"] = entry["count"].clone()
    run.step()
    assert run.steps == 0


@needs_kernel
def test_a_schedule_that_raises_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def schedule(count: Any) -> float:
        if count > 1:
            raise RuntimeError("no more")
        return 0.1

    run = Kernel(monkeypatch, schedule)
    run.step()
    run.step()
    before = [copy.deepcopy(x.state_dict()) for x in run.optimizers]
    for optimizer in run.optimizers:
        with pytest.raises(RuntimeError, match="no more"):
            optimizer.step()
    after = [x.state_dict() for x in run.optimizers]
    assert optree.tree_all(optree.tree_map(same, before, after))


def same(x: Any, y: Any) -> bool:
    return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
