"""What belongs to the tree, computed once for members that are alike."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from functional_adamax._execution.program import once


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool], ids=str)
def test_members_with_the_same_bits_share_a_tensor(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 1.0, -0.0, 1.0, math.nan, 0.0, math.nan], dtype=torch.float64)
    x = x.nan_to_num(3) if not dtype.is_floating_point else x
    found = once.single(x.to(dtype))
    assert torch.equal(torch.stack(found).nan_to_num(7), x.to(dtype).nan_to_num(7))
    floats = dtype.is_floating_point
    groups = [[0, 5], [1, 3], [2], [4, 6]] if floats else [[0, 2, 5], [1, 3], [4, 6]]
    if dtype == torch.bool:
        groups = [[0, 2, 5], [1, 3, 4, 6]]
    assert {tuple(i for i, y in enumerate(found) if y is z) for z in found} == {*map(tuple, groups)}


def test_numbers_become_tensors() -> None:
    assert once.single(2.0).dtype == torch.float64
    assert [x.item() for x in once.single((1.0, 2.0))] == [1.0, 2.0]
    assert torch.equal(
        once.tensor((1.0, torch.tensor(2.0).double())), torch.tensor([1.0, 2.0]).double()
    )
    one = torch.tensor(1)
    assert once.tensor(one) is once.single(one) is one


def test_an_operation_is_done_once_for_members_that_are_alike() -> None:
    calls: list[Any] = []

    def add(x: Tensor, y: Tensor, alpha: float) -> Tensor:
        calls.append((x.item(), y.item()))
        return x + alpha * y

    many = once.single(torch.tensor([1.0, 2.0, 1.0]))
    found = once.done(add, [many, torch.tensor(10.0)], {"alpha": 2.0})
    assert [x.item() for x in found] == [21.0, 22.0, 21.0]
    assert found[0] is found[2]
    assert len(calls) == 2
    other = once.single(torch.tensor([1.0, 1.0, 2.0]))
    assert [x.item() for x in once.done(add, [many, other], {"alpha": 1.0})] == [2.0, 3.0, 3.0]
    assert once.done(add, [many[0], other[2]], {"alpha": 1.0}).item() == 3.0


def test_whether_sums_are_zero() -> None:
    assert once.are_zero(0.0).item() is True
    assert [x.item() for x in once.are_zero((0.0, math.nan, 0.0))] == [True, False, True]
