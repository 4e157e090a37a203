"""Schedules that warm up, against their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from schedulers import torch_values
from torch.optim import lr_scheduler

import functional_adamax as fa


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


def test_a_scheduler_of_torch_takes_it() -> None:
    schedule = fa.warmup_cosine_decay_schedule(0.1, 1.0, 3, 10)
    values = torch_values(partial(lr_scheduler.LambdaLR, lr_lambda=schedule), 15, lr=0.5)
    assert values == [0.5 * schedule(count) for count in range(15)]


def test_no_steps_are_a_jump() -> None:
    assert fa.warmup_constant_schedule(0.0, 1.0, 0)(0) == 1.0
    assert fa.warmup_cosine_decay_schedule(0.0, 1.0, 0, 10)(0) == 1.0


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: fa.warmup_cosine_decay_schedule(0, 1, 5, 5), ValueError, r"decay_steps.*\(5, inf\)"),
    (lambda: fa.warmup_stable_decay_schedule(0, 1, 5, -1, 5), ValueError, "stable_steps"),
    (
        lambda: fa.warmup_stable_decay_schedule(0, 1, 5, 1, 5, cooldown="exp"),
        ValueError,
        'cooldown must be "linear", "1-sqrt" or "cosine", got \'exp\'',
    ),
]


@pytest.mark.parametrize(("make", "kind", "match"), WRONG)
def test_errors_say_what_is_wanted(make: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        make()
