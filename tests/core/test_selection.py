"""Choices by flags that are tensors: what is not taken reaches neither results nor derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from trees import assert_equal

import functional_adamax as fa
from functional_adamax._core import selection

YES, NO = torch.tensor(True), torch.tensor(False)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, complex(0, torch.nan)])
def test_one_element_that_is_not_finite_is_enough(bad: Any) -> None:
    fine = [torch.zeros(3), None, torch.zeros(0), torch.tensor(1, dtype=torch.int64)]
    assert selection.is_finite(fine, torch.zeros(())).item() is True
    found = selection.is_finite([*fine, torch.tensor([0.0, bad])], torch.zeros(()))
    assert (found.item(), found.shape, found.dtype) == (False, (), torch.bool)


def test_members_are_judged_alone() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, torch.nan]])
    assert vmap(lambda x: selection.is_finite([x], x.sum()))(x).tolist() == [True, False]
    new = vmap(lambda c, a, b: selection.select(c, a, b))(x[:, 1].isfinite(), x, torch.zeros(2, 2))
    assert new.tolist() == [[1.0, 2.0], [0.0, 0.0]]


def test_the_whole_tree_is_taken_or_left() -> None:
    new = {"w": torch.tensor([1.0, torch.nan]), "e": fa.EmptyState(), "n": None}
    old = {"w": torch.zeros(2), "e": fa.EmptyState(), "n": None}
    assert_equal(selection.select(NO, new, old), old)
    taken = selection.select(YES, new, old)
    np.testing.assert_array_equal(taken["w"].numpy(), [1.0, np.nan])
    assert taken["n"] is None
    assert taken["e"] == fa.EmptyState()
    with pytest.raises(ValueError, match="the new tree must have the structure of the one before"):
        selection.select(YES, {"v": new["w"]}, old)


def test_a_result_has_the_dtype_of_the_new_tree() -> None:
    found = selection.select(NO, torch.ones(2), torch.zeros(2, dtype=torch.float64))
    assert (found.dtype, found.tolist()) == (torch.float32, [0.0, 0.0])


def test_what_is_not_taken_has_no_derivative() -> None:
    def function(x: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        shown = selection.presentable(x, used)
        return selection.select(used, shown.sqrt(), x)

    assert grad(lambda x: function(x, NO))(torch.zeros(())) == 1.0
    assert grad(lambda x: function(x, YES))(torch.tensor(4.0)) == 0.25
    assert selection.presentable(None, YES) is None
    assert selection.presentable(torch.tensor(torch.nan), NO) == 1.0


@pytest.mark.parametrize("said", [True, np.bool_(True), torch.tensor(True)])
def test_what_a_function_may_say(said: Any) -> None:
    found = selection.flag(said, "skip", torch.device("cpu"))
    assert (found.item(), found.dtype, found.shape) == (True, torch.bool, ())


@pytest.mark.parametrize(
    ("said", "got"),
    [
        (1, "int"),
        (None, "None"),
        (np.float64(1), "float"),
        (torch.ones(()), r"a torch.float32 tensor of shape \(\)"),
        (torch.tensor([True]), r"a torch.bool tensor of shape \(1,\)"),
    ],
)
def test_what_it_may_not_say(said: Any, got: str) -> None:
    with pytest.raises(TypeError, match=f"skip must return a bool, or .* shape .*, got {got}"):
        selection.flag(said, "skip", torch.device("cpu"))


def test_zeros_where_the_condition_fails() -> None:
    updates = {"w": torch.tensor([torch.nan, 2.0]), "none": None}
    assert selection.zeros_unless(NO, updates)["w"].tolist() == [0.0, 0.0]
    assert selection.zeros_unless(NO, updates)["none"] is None
    assert selection.zeros_unless(YES, updates)["w"][1] == 2.0
