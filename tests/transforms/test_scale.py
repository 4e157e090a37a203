"""Scaling: the factor of each update, in its own dtype, and the sign of a learning rate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import vmap
from trees import DTYPES, assert_equal

import functional_adamax as fa


def once(tx: fa.GradientTransformation, updates: Any) -> Any:
    return tx.update(updates, tx.init(updates))[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [-0.3, 7, torch.tensor(-0.3), torch.tensor([-0.3])], ids=repr)
def test_updates_are_multiplied_and_keep_their_dtype(factor: Any, dtype: torch.dtype) -> None:
    g = torch.randn(9, dtype=dtype)
    parts = torch.view_as_real(g) if dtype.is_complex else g
    wide = parts.float() if dtype.itemsize == 2 else parts
    number = factor.reshape(()).to(wide.dtype) if isinstance(factor, torch.Tensor) else factor
    want = (wide * number).to(parts.dtype)
    want = torch.view_as_complex(want) if dtype.is_complex else want
    assert_equal(once(fa.scale(factor), g), want)


def test_a_learning_rate_turns_a_direction_round() -> None:
    g = torch.tensor([2.0, -0.0, torch.inf, torch.nan])
    down = once(fa.scale_by_learning_rate(0.5), g)
    assert down[:3].tolist() == [-1.0, 0.0, -torch.inf]
    assert down[3].isnan()
    assert torch.equal(down[:3], once(fa.scale(-0.5), g)[:3])
    assert once(fa.scale_by_learning_rate(0), g[:1]).item() == 0.0


def test_a_schedule_is_asked_for_the_count() -> None:
    tx = fa.scale_by_learning_rate(lambda count: 0.5**count)
    state = tx.init(torch.zeros(1))
    found = []
    for _ in range(3):
        updates, state = tx.update(torch.ones(1), state)
        found.append(updates.item())
    assert found == [-1.0, -0.5, -0.25]
    assert state.count == 3


def test_factors_of_each_part_and_each_member() -> None:
    tree = {"w": torch.ones(2), "b": None, "c": torch.ones(0, 2)}
    factors = {"w": torch.tensor([1.0, 3.0]), "b": 5.0, "c": 2.0}
    got = once(fa.scale(factors), tree)
    assert got["b"] is None
    assert_equal(got, {"w": torch.tensor([1.0, 3.0]), "b": None, "c": torch.ones(0, 2)})
    members = vmap(lambda f, g: once(fa.scale(f), g))(torch.tensor([2.0, 3.0]), torch.ones(2, 2))
    assert members.tolist() == [[2.0, 2.0], [3.0, 3.0]]


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"factor must be finite, got nan"):
        fa.scale(float("nan"))
    with pytest.raises(ValueError, match=r"lr must be in \[0, inf\), got -0.1"):
        fa.scale_by_learning_rate(-0.1)
    with pytest.raises(ValueError, match=r"factor must be a number, .* of shape \(3,\)"):
        once(fa.scale(torch.ones(3)), torch.ones(2))
