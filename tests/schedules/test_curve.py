"""The pieces of which curves are made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import grad, vmap

import functional_adamax as fa
from functional_adamax._schedules import curve


def test_progress_is_clamped_and_no_steps_are_a_jump() -> None:
    def done(t: float, begin: float, steps: float) -> float:
        return curve.progress(torch.tensor(t), begin, steps).item()

    assert [done(t, 2.0, 4.0) for t in (-1e30, 2.0, 3.0, 6.0, 1e30)] == [0.0, 0.0, 0.25, 1.0, 1.0]
    assert [done(t, 2.0, 0.0) for t in (1.0, 2.0, 3.0)] == [0.0, 1.0, 1.0]


def test_the_ends_of_a_way_are_exact() -> None:
    start, end = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    assert curve.between(start, end, one) == start
    assert curve.between(start, end, 0 * one) == end


def test_powers_and_cosines_are_precise_near_zero() -> None:
    x = torch.tensor([0.0, 5e-324, 1e-9, 0.25, 1.0], dtype=torch.float64)
    assert curve.power(x, 0.5).tolist() == pytest.approx(x.sqrt().tolist(), rel=1e-15)
    want = [math.sin(math.pi / 2 * y) ** 2 for y in x.tolist()]
    assert curve.cosine(x).tolist() == pytest.approx(want, rel=1e-15, abs=0)
    slope = grad(lambda x: curve.power(x, 0.5))(torch.zeros((), dtype=torch.float64))
    assert slope == 0, "where the root has none"


def test_a_scalar_has_the_dtype_asked_for() -> None:
    like = torch.zeros((), dtype=torch.float32)
    for value in (2, 2.0, np.float64(2), torch.tensor(2), torch.tensor([2.0]).double()):
        found = curve.scalar(value, like)
        assert (found.dtype, found.shape, found.item()) == (torch.float32, (), 2.0)


def test_the_next_counts_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, asked = fa.cosine_decay_schedule(1.0, 100), []
    evaluate = type(schedule).evaluate
    monkeypatch.setattr(
        type(schedule), "evaluate", lambda self, c: asked.append(c.numel()) or evaluate(self, c)
    )
    for count in (7, 500, 500, 8, 9, 501, 10, 71, 72):
        assert schedule(torch.tensor(count)).shape == ()
    assert asked == [1, 1, 64, 64, 64]
    for other in (torch.tensor(3.0), torch.tensor([3]), torch.tensor(3).int()):
        schedule(other)
    vmap(schedule)(torch.arange(3))
    assert asked[5:] == [1, 1, 1, 1]
    for count in range(5000):
        schedule(torch.tensor(count))
    assert len(schedule._at_counts) < 1200


def test_curves_that_are_not_of_numbers_are_asked_for_each_count() -> None:
    given: list[torch.Tensor] = []
    mixed = fa.join_schedules([fa.constant_schedule(0.1), lambda c: given.append(c) or 0.2], [4])
    learned = fa.constant_schedule(torch.tensor(0.1, requires_grad=True))
    for count in range(5):
        assert mixed(torch.tensor(count)) == (0.1 if count < 4 else 0.2)
        assert learned(torch.tensor(count)).requires_grad
    assert [x.item() for x in given] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("value", "bounds", "wanted"),
    [
        (2.0, {"low": 0.0, "high": 1.0}, r"x must be in \[0, 1\], got 2.0"),
        (0.0, {"low": 0.0, "above": True}, r"x must be in \(0, inf\), got 0.0"),
        (math.inf, {}, r"x must be in \(-inf, inf\), got inf"),
        (torch.ones(2), {}, r"shape \(\) or \(1,\), got .* \(2,\); for several .* use vmap"),
    ],
)
def test_numbers_out_of_range_are_named(value: Any, bounds: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        curve.check_scalar("x", value, **bounds)
    curve.check_scalar("x", 0.5, **bounds)
