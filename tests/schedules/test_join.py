"""Schedules joined at boundaries: each part sees its own counts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from schedulers import assert_is_the_scheduler
from torch.optim import lr_scheduler

import functional_adamax as fa

TORCH = [
    (
        fa.sgdr_schedule(
            {
                "init_value": 1.0,
                "peak_value": 1.0,
                "warmup_steps": 0,
                "decay_steps": n,
                "end_value": 0.1,
            }
            for n in (6, 12, 24)
        ),
        partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=6, T_mult=2, eta_min=0.1),
    ),
]


@pytest.mark.parametrize(("schedule", "make"), TORCH, ids=lambda x: getattr(x, "name", ""))
def test_it_is_the_scheduler_of_torch(schedule: Any, make: Any) -> None:
    assert_is_the_scheduler(schedule, make)


def test_parts_of_a_join_see_their_own_counts_only() -> None:
    seen: list[list[float]] = [[], []]

    def first(count: torch.Tensor) -> Any:
        seen[0].append(count.item())
        assert count.dtype == torch.int64
        return 1 / (4 - count)  # infinite at 4

    def second(count: torch.Tensor) -> Any:
        seen[1].append(count.item())
        return 2.0

    schedule = fa.join_schedules([first, second], [3])
    values = [schedule(torch.tensor(count)).item() for count in range(6)]
    assert values == pytest.approx([1 / 4, 1 / 3, 1 / 2, 2.0, 2.0, 2.0], rel=1e-6)
    assert seen == [[0, 1, 2, 3, 3, 3], [0, 0, 0, 0, 1, 2]]
    assert isinstance(schedule(1), torch.Tensor)
    assert fa.join_schedules([fa.constant_schedule(2.0)], [])(5) == 2.0


def test_a_warm_up_before_an_exponential_decay() -> None:
    schedule = fa.warmup_exponential_decay_schedule(0.0, 1.0, 4, 2, 0.25, end_value=0.01)
    values = [schedule(count) for count in (0, 2, 4, 5, 6, 100)]
    assert values == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.25, 0.01], rel=1e-15)


def test_a_boundary_in_the_middle_of_a_step_begins_at_the_next() -> None:
    schedule = fa.join_schedules([lambda count: count * 1.0, lambda count: 10.0 + count], [2.5])
    assert [float(schedule(torch.tensor(count))) for count in (2, 3)] == [2.0, 10.5]


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: fa.join_schedules([], []), ValueError, "got 0 schedules and 0 boundaries"),
    (lambda: fa.join_schedules([abs, abs], [3, 4]), ValueError, "2 schedules and 2 boundaries"),
    (lambda: fa.join_schedules([abs, 0.1], [3]), TypeError, r"schedules\[1\] must be a function"),
    (lambda: fa.join_schedules([abs] * 3, [3, 2]), ValueError, r"boundaries\[1\].*\[3, inf\)"),
    (lambda: fa.sgdr_schedule([]), ValueError, "got 0 schedules"),
]


@pytest.mark.parametrize(("make", "kind", "match"), WRONG)
def test_errors_say_what_is_wanted(make: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        make()
