"""A learning rate that is a schedule: what is one, who counts, and steps of what has no memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.func import vmap
from trees import clone, leaves

import functional_adamax as fa
from functional_adamax._schedules import scheduled


def test_a_sweep_over_schedules_is_one_vmap() -> None:
    def train(warmup: torch.Tensor) -> torch.Tensor:
        tx = fa.adamax(fa.warmup_cosine_decay_schedule(0.0, 0.1, warmup, 20))
        params = torch.ones(2, dtype=torch.float64)
        state = tx.init(params)
        for _ in range(8):
            params, state = fa.step(tx, params, state, params)
        return params

    lengths = torch.tensor([2.0, 5.0, 8.0])
    got = vmap(train)(lengths)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(got[i], train(length), rtol=1e-12, atol=0)


@pytest.mark.parametrize("way", ["update", "step", "donated"])
@pytest.mark.parametrize("method", [fa.adamax, fa.adamaxw, fa.adam, fa.sgd])
def test_a_scheduled_transform_steps_what_has_no_memory(method: Any, way: str) -> None:
    params = {"w": torch.ones(3, device="meta")}
    tx = method(fa.linear_schedule(0.1, 0.0, 10))
    state = tx.init(params)
    if way == "update":
        params, new = tx.update(params, state, params)
    else:
        params, new = fa.step(tx, clone(params), state, params, donate=way == "donated")
    assert {x.device.type for x in leaves((params, new))} == {"meta"}
    assert params["w"].shape == (3,)
    assert new.count.dtype == torch.int64


def test_what_is_a_schedule() -> None:
    class Callable(dict):  # type: ignore[type-arg]
        def __call__(self, count: Any) -> float:
            return 0.1

    for yes in (abs, fa.constant_schedule(0.1), lambda count: 0.1):
        assert scheduled.is_schedule(yes)
    for no in (0.1, None, torch.ones(()), [abs], {"w": abs}, Callable()):
        assert not scheduled.is_schedule(no)
    with pytest.raises(ValueError, match=r"lr must be in \[0, inf\), got -1"):
        scheduled.check_lr(-1)


def test_numbers_of_numpy_are_made_pythons() -> None:
    said = scheduled.ask(lambda count: [np.float32(0.5), np.int64(int(count))], torch.tensor(3))
    assert said == [0.5, 3]
    assert [type(x) for x in said] == [float, int]


@pytest.mark.parametrize("donate", [False, True])
def test_a_step_counts_once_and_asks_for_the_count_before(donate: bool) -> None:
    asked: list[int] = []

    def schedule(count: torch.Tensor) -> float:
        asked.append(int(count))
        return 0.5

    tx, p = fa.sgd(schedule), torch.ones(2)
    state = tx.init(p)
    assert (state.count, state.count.dtype) == (0, torch.int64)
    for i in range(3):
        before = state.count
        p, state = fa.step(tx, torch.ones(2), state, p, donate=donate)
        assert (state.count is before) == donate
        assert state.count == i + 1
    assert asked == [0, 1, 2]
    assert p.tolist() == [-0.5, -0.5]
    with pytest.raises(TypeError, match="ScheduledState .*; a constant lr has a state without cou"):
        tx.update(p, fa.sgd(0.5).init(p))


def test_it_prints_as_the_transform_and_a_number_makes_none() -> None:
    assert repr(fa.scale_by_learning_rate(abs)) == f"scale_by_learning_rate(lr={abs!r})"
    assert fa.scale_by_learning_rate(0.5).init(torch.ones(1)) == fa.EmptyState()
