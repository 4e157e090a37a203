"""Hooks of steps and of state dicts, and subclasses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from twins import BOTH, one

from functional_adamax.compat import Adamax


@BOTH
def test_step_hooks_run_in_torchs_order(cls: Any) -> None:
    order: list[str] = []

    class Traced(cls):
        def _optimizer_step_code(self) -> None:
            order.append("step code")

    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Traced([p])
    handles = [
        register_optimizer_step_pre_hook(lambda *_: order.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: order.append("global post")),
        optimizer.register_step_pre_hook(lambda *_: order.append("pre")),
        optimizer.register_step_post_hook(lambda *_: order.append("post")),
    ]
    optimizer.step()
    assert order == ["global pre", "pre", "step code", "post", "global post"]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert order[5:] == ["step code"]


def test_a_step_pre_hook_may_replace_the_arguments_and_nothing_else() -> None:
    p, optimizer = one()
    seen = []
    handle = optimizer.register_step_pre_hook(
        lambda opt, args, kwargs: ((opt, lambda: 42), kwargs) if not seen else None
    )
    optimizer.register_step_post_hook(lambda opt, args, kwargs: seen.append((opt, len(args))))
    assert optimizer.step() == 42
    assert seen == [(optimizer, 2)]
    handle.remove()
    optimizer.register_step_pre_hook(lambda *_: "nonsense")
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.step()


def test_state_dict_hooks_with_prepend_and_removal() -> None:
    p, optimizer = one()
    optimizer.step()
    order: list[str] = []
    handles = [
        optimizer.register_state_dict_pre_hook(lambda opt: order.append("pre 2")),
        optimizer.register_state_dict_pre_hook(lambda opt: order.append("pre 1"), prepend=True),
        optimizer.register_state_dict_post_hook(
            lambda opt, sd: {**sd, "late": order.append("post 2")}
        ),
        optimizer.register_state_dict_post_hook(
            lambda opt, sd: order.append("post 1"), prepend=True
        ),
    ]
    assert "late" in optimizer.state_dict()
    assert order == ["pre 1", "pre 2", "post 1", "post 2"]
    for handle in handles:
        handle.remove()
    assert "late" not in optimizer.state_dict()
    assert len(order) == 4


def test_load_state_dict_hooks_with_prepend_and_removal() -> None:
    p, optimizer = one(lr=0.1)
    optimizer.step()
    saved = optimizer.state_dict()
    order: list[str] = []

    def change(opt: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        order.append("pre 2")
        state_dict["state"][0]["exp_avg"] = torch.full((3,), 7.0)
        return state_dict

    def check(opt: Any) -> None:
        order.append("post 2")
        assert torch.equal(opt.state[p]["exp_avg"], torch.full((3,), 7.0))

    optimizer.register_load_state_dict_pre_hook(change)
    optimizer.register_load_state_dict_pre_hook(lambda *_: order.append("pre 1"), prepend=True)
    optimizer.register_load_state_dict_post_hook(check)
    optimizer.register_load_state_dict_post_hook(lambda *_: order.append("post 1"), prepend=True)
    optimizer.load_state_dict(copy.deepcopy(saved))
    assert order == ["pre 1", "pre 2", "post 1", "post 2"]
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 2  # ours did not stay


@BOTH
def test_load_hooks_may_remove_themselves(cls: Any) -> None:
    optimizer = cls([torch.nn.Parameter(torch.ones(2))])
    calls, handles = [], []

    def once(*_: Any) -> None:
        calls.append(1)
        handles[0].remove()

    handles.append(optimizer.register_load_state_dict_pre_hook(once))
    for _ in range(2):
        optimizer.load_state_dict(optimizer.state_dict())
    assert calls == [1]


def test_a_subclass_that_calls_super_step_keeps_working() -> None:
    class Counting(Adamax):
        calls = 0

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            return super().step(closure)

    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Counting([p], lr=0.1)
    optimizer.step()
    assert optimizer.calls == 1
    assert p.detach().tolist() == pytest.approx([0.9, 0.9])
