"""What schedules say in a step: asked once for a count, shown as numbers, compared by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.func import vmap

import functional_adamax as fa
from functional_adamax.compat import _shown
from functional_adamax.compat._shown import Said, chosen, is_same, shown

NAN = float("nan")


def test_equal_schedules_are_asked_once_for_a_count() -> None:
    asked: list[int] = []

    def schedule(count: Any) -> Any:
        asked.append(int(count))
        return np.float64(count / 2)

    said = Said()
    for _ in range(2):
        for count in (0, 1):
            found = said.by(schedule, None)(torch.tensor(count))
            assert (type(found), found) == (float, count / 2)
    assert asked == [0, 1]
    one, two = (said.by(fa.linear_schedule(1.0, 0.0, n), None) for n in (10, 10))
    assert one is two, "schedules are compared by value"
    assert said.by(fa.linear_schedule(1.0, 0.0, 11), None) is not one
    Said().by(schedule, None)(torch.tensor(0))
    assert asked == [0, 1, 0], "another step asks again"


def test_a_count_that_nobody_knows_leaves_what_is_shown() -> None:
    asked = Said().by(abs, 0.7)
    assert asked(torch.zeros((), dtype=torch.int64, device="meta")) == 0.7


def test_a_count_that_is_followed_is_no_key() -> None:
    asked = Said().by(lambda count: count * 2, None)
    assert vmap(asked)(torch.tensor([1, 2])).tolist() == [2, 4]
    assert asked.said == {}


def test_what_is_shown_is_a_number_or_a_copy() -> None:
    one, many = torch.tensor([0.5]), torch.tensor([1.0, 2.0])
    found = shown({"a": one, "b": many, "c": (np.float32(2), None)})
    assert found["a"] == 0.5
    assert type(found["a"]) is float
    assert found["c"] == (2.0, None)
    assert found["b"] is not many
    assert torch.equal(found["b"], many)


@pytest.mark.parametrize(
    ("now", "before", "wanted"),
    [
        (0.5, 0.5, True),
        (0.5, torch.tensor(0.5), True),
        (0.5, 0.25, False),
        (NAN, float("nan"), True),
        (NAN, 0.5, False),
        ((0.9, 0.99), (0.9, 0.99), True),
        ((0.9, 0.99), (0.9, 0.999), False),
        ((0.9, 0.99), [0.9, 0.99], False),
        ({"a": 1}, {"a": 1.0}, True),
        (torch.ones(2), torch.ones(2), True),
        (torch.ones(2), torch.ones(3), False),
        (torch.ones(2), 1.0, False),
        (None, None, True),
    ],
)
def test_values_are_one_by_value(now: Any, before: Any, wanted: bool) -> None:
    assert is_same(now, before) is wanted
    assert is_same(before, now) is wanted


@pytest.mark.parametrize("rules", [True, False])
def test_what_a_schedule_says_is_chosen_where_it_rules(rules: bool) -> None:
    def schedule(count: Any) -> Any:
        return {"a": count * 1.0, "b": torch.tensor(3.0)}

    found = chosen(
        torch.tensor(rules), schedule, {"a": 7.0, "b": torch.tensor(8.0)}, torch.tensor(2)
    )
    assert found == ({"a": 2.0, "b": 3.0} if rules else {"a": 7.0, "b": 8.0})
    pair = chosen(torch.tensor(rules), lambda count: (0.5, None), (0.25, None), torch.tensor(0))
    assert pair == (0.25, None), "a number that no tensor meets was set"


def test_a_copy_is_a_new_tensor() -> None:
    x = torch.ones(2)
    copy = _shown._copy(x)
    assert torch.equal(copy, x)
    assert copy.data_ptr() != x.data_ptr()
