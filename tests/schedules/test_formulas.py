"""Schedules of one formula, against torch, with exact ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from schedulers import assert_is_the_scheduler
from torch.optim import lr_scheduler

import functional_adamax as fa

TORCH = [
    (fa.constant_schedule(1.0), partial(lr_scheduler.ConstantLR, factor=1.0)),
    (
        fa.linear_schedule(0.25, 1.0, 10),
        partial(lr_scheduler.LinearLR, start_factor=0.25, total_iters=10),
    ),
    (
        fa.polynomial_schedule(1.0, 0.0, 2, 20),
        partial(lr_scheduler.PolynomialLR, total_iters=20, power=2),
    ),
    (fa.exponential_decay(1.0, 1, 0.9), partial(lr_scheduler.ExponentialLR, gamma=0.9)),
    (
        fa.exponential_decay(1.0, 7, 0.5, staircase=True),
        partial(lr_scheduler.StepLR, step_size=7, gamma=0.5),
    ),
    (
        fa.cosine_decay_schedule(1.0, 40, 0.1),
        partial(lr_scheduler.CosineAnnealingLR, T_max=40, eta_min=0.1),
    ),
]


@pytest.mark.parametrize(("schedule", "make"), TORCH, ids=lambda x: getattr(x, "name", ""))
def test_it_is_the_scheduler_of_torch(schedule: Any, make: Any) -> None:
    assert_is_the_scheduler(schedule, make)


def test_the_ends_are_exact_and_counts_are_not_rounded() -> None:
    for make in (fa.linear_schedule, partial(fa.polynomial_schedule, power=3)):
        schedule = make(init_value=0.1, end_value=0.3, transition_steps=7)
        assert (schedule(0), schedule(7), schedule(10**9)) == (0.1, 0.3, 0.3)
    schedule = fa.cosine_decay_schedule(0.1, 10**6)
    assert schedule(10**6) == 0.0
    want = 0.1 * math.sin(math.pi / 2e6) ** 2  # (1 + cos) / 2 keeps four digits of it
    assert schedule(10**6 - 1) == pytest.approx(want, rel=1e-9)
    far = fa.linear_schedule(0.0, 1.0, 2**53)
    assert far(torch.tensor(2**24 + 1)).item() == (2**24 + 1) / 2**53


def test_no_steps_are_a_jump() -> None:
    schedule = fa.linear_schedule(1.0, 2.0, 0, transition_begin=3)
    assert [schedule(count) for count in range(5)] == [1.0, 1.0, 1.0, 2.0, 2.0]


def test_exponential_decay_ends_where_it_is_told() -> None:
    for rate, end in ((0.5, 0.3), (2.0, 3.0)):
        schedule = fa.exponential_decay(1.0, 2, rate, transition_begin=4, end_value=end)
        assert [schedule(count) for count in (0, 4, 6, 100)] == [1.0, 1.0, rate, end]


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: fa.constant_schedule("a"), TypeError, r"value must be a real number.*got 'a'"),
    (
        lambda: fa.constant_schedule(math.nan),
        ValueError,
        r"value must be in \(-inf, inf\), got nan",
    ),
    (lambda: fa.constant_schedule(torch.ones(2)), ValueError, r"shape \(\) or \(1,\).*\(2,\)"),
    (lambda: fa.constant_schedule(torch.ones((), dtype=torch.cfloat)), TypeError, "complex64"),
    (lambda: fa.linear_schedule(1, 0, -1), ValueError, r"transition_steps must be in \[0, inf\)"),
    (lambda: fa.linear_schedule(1, 0, 5, -1), ValueError, "transition_begin must be"),
    (lambda: fa.polynomial_schedule(1, 0, 0, 5), ValueError, r"power must be in \(0, inf\), got 0"),
    (lambda: fa.exponential_decay(1, 0, 0.5), ValueError, r"transition_steps must be in \(0, inf"),
    (lambda: fa.exponential_decay(1, 5, 0.0), ValueError, r"decay_rate must be in \(0, inf\)"),
    (lambda: fa.cosine_decay_schedule(1.0, 0), ValueError, "decay_steps"),
]


@pytest.mark.parametrize(("make", "kind", "match"), WRONG)
def test_errors_say_what_is_wanted(make: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        make()
