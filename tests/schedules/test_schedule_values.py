"""Schedules against their formulas and torch's schedulers, their special cases and errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import functional_adamax as fa


def torch_values(make: Callable[[Any], Any], steps: int, lr: float = 1.0) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, values = make(optimizer), []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(values) < steps:
            scheduler.step()
    return values


CYCLE = {"max_lr": 1.0, "total_steps": 41, "div_factor": 20.0, "final_div_factor": 50.0}
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
        fa.piecewise_constant_schedule(1.0, {5: 0.5, 9: 0.5}),
        partial(lr_scheduler.MultiStepLR, milestones=[5, 9], gamma=0.5),
    ),
    (
        fa.cosine_decay_schedule(1.0, 40, 0.1),
        partial(lr_scheduler.CosineAnnealingLR, T_max=40, eta_min=0.1),
    ),
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
    (
        fa.cosine_onecycle_schedule(40, 1.0, (0.3 * 41 - 1) / 40, 20.0, 50.0),
        partial(lr_scheduler.OneCycleLR, pct_start=0.3, **CYCLE),
    ),
    (
        fa.linear_onecycle_schedule(40, 1.0, (0.3 * 41 - 1) / 40, (0.6 * 41 - 2) / 40, 20.0, 50.0),
        partial(
            lr_scheduler.OneCycleLR,
            pct_start=0.3,
            three_phase=True,
            anneal_strategy="linear",
            **CYCLE,
        ),
    ),
]


@pytest.mark.parametrize(("schedule", "make"), TORCH, ids=lambda x: getattr(x, "name", ""))
def test_it_is_the_scheduler_of_torch(schedule: Any, make: Any) -> None:
    got = [schedule(count) for count in range(41)]
    np.testing.assert_allclose(got, torch_values(make, 41), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "1-sqrt", "cosine"])
def test_warmup_stable_decay(kind: str) -> None:
    weight = {
        "linear": lambda x: 1 - x,
        "1-sqrt": lambda x: 1 - math.sqrt(x),
        "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    }[kind]
    schedule = fa.warmup_stable_decay_schedule(0.1, 2.0, 5, 10, 20, 0.3, cooldown=kind)
    for count in range(50):
        if count < 5:
            want = 0.1 + 1.9 * count / 5
        elif count < 15:
            want = 2.0
        else:
            want = 0.3 + 1.7 * weight(min(1.0, (count - 15) / 20))
        assert schedule(count) == pytest.approx(want, rel=1e-12)
    no_stages = fa.warmup_stable_decay_schedule(0.1, 2.0, 0, 0, 0, 0.3, cooldown=kind)
    assert no_stages(0) == 0.3


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
    assert fa.warmup_constant_schedule(0.0, 1.0, 0)(0) == 1.0
    assert fa.warmup_cosine_decay_schedule(0.0, 1.0, 0, 10)(0) == 1.0


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


def test_a_scheduler_of_torch_takes_it() -> None:
    schedule = fa.warmup_cosine_decay_schedule(0.1, 1.0, 3, 10)
    values = torch_values(partial(lr_scheduler.LambdaLR, lr_lambda=schedule), 15, lr=0.5)
    assert values == [0.5 * schedule(count) for count in range(15)]


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
    (
        lambda: fa.piecewise_constant_schedule(1.0, {5: -1.0}),
        ValueError,
        "scale 0 of .* must be in",
    ),
    (lambda: fa.piecewise_constant_schedule(1.0, [(5, 1), (4, 1)]), ValueError, "4 behind 5"),
    (lambda: fa.piecewise_constant_schedule(1.0, [5]), TypeError, "a dict or pairs, got 5"),
    (lambda: fa.piecewise_interpolate_schedule("cubic", 1.0), ValueError, "got 'cubic'"),
    (lambda: fa.linear_onecycle_schedule(10, 1.0, 0.5, 0.4), ValueError, r"pct_final.*\[0.5, 1\]"),
    (lambda: fa.cosine_onecycle_schedule(10, 1.0, 1.5), ValueError, r"pct_start.*\[0, 1\]"),
    (lambda: fa.warmup_cosine_decay_schedule(0, 1, 5, 5), ValueError, r"decay_steps.*\(5, inf\)"),
    (lambda: fa.warmup_stable_decay_schedule(0, 1, 5, -1, 5), ValueError, "stable_steps"),
    (
        lambda: fa.warmup_stable_decay_schedule(0, 1, 5, 1, 5, cooldown="exp"),
        ValueError,
        'cooldown must be "linear", "1-sqrt" or "cosine", got \'exp\'',
    ),
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
