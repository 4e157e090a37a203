"""Schedules of pieces and cycles, against torch and NumPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from schedulers import assert_is_the_scheduler
from torch.optim import lr_scheduler

import functional_adamax as fa

CYCLE = {"max_lr": 1.0, "total_steps": 41, "div_factor": 20.0, "final_div_factor": 50.0}
TORCH = [
    (
        fa.piecewise_constant_schedule(1.0, {5: 0.5, 9: 0.5}),
        partial(lr_scheduler.MultiStepLR, milestones=[5, 9], gamma=0.5),
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
    assert_is_the_scheduler(schedule, make)


def test_scales_multiply_from_their_boundary_on() -> None:
    schedule = fa.piecewise_constant_schedule(2.0, {3: 0.5, 5: 0.0})
    assert [schedule(count) for count in (0, 2, 3, 4, 5, 99)] == [2.0, 2.0, 1.0, 1.0, 0.0, 0.0]
    assert fa.piecewise_constant_schedule(2.0)(7) == 2.0


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_an_interpolation_meets_its_points(kind: str) -> None:
    schedule = fa.piecewise_interpolate_schedule(kind, 2.0, {4: 0.5, 10: 3.0})
    points = {0: 2.0, 2: 1.5, 4: 1.0, 7: 2.0, 10: 3.0, 50: 3.0}  # middles are alike in both
    assert [schedule(count) for count in points] == pytest.approx([*points.values()], rel=1e-15)
    if kind == "linear":
        counts = np.arange(15)
        want = np.interp(counts, [0, 4, 10], [2.0, 1.0, 3.0])
        np.testing.assert_allclose([schedule(int(c)) for c in counts], want, rtol=1e-15)


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
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
]


@pytest.mark.parametrize(("make", "kind", "match"), WRONG)
def test_errors_say_what_is_wanted(make: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        make()
