"""Where tensors lie: dense or with holes, with an address or without, apart or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.func import grad, vmap

from functional_adamax._core import memory


def test_dense_memory() -> None:
    x = torch.empty(24)
    dense = [x, x.view(2, 3, 4).permute(2, 0, 1), x[:0], x[0], x.view(1, 24).expand(1, 24)]
    dense.append(x.view(4, 6).t()[None])
    holes = [x[::2], x.view(4, 6)[:, :3], x[:1].expand(3), x.as_strided((2, 2, 2), (1, 1, 5))]
    for y in dense + holes:
        wanted = torch.ops.aten.is_non_overlapping_and_dense(y)
        assert memory.is_dense(y) == wanted == any(y is z for z in dense)


def test_an_extent_is_from_the_first_element_to_behind_the_last() -> None:
    x = torch.empty(24)
    start = x.data_ptr()
    assert memory.extent(x) == (start, start + 96)
    assert memory.extent(x[3:5]) == (start + 12, start + 20)
    assert memory.extent(x.view(4, 6)[1:3, ::5]) == (start + 24, start + 72)
    assert memory.extent(x[:1].expand(9)) == (start, start + 4)
    assert memory.extent(x[0]) == (start, start + 4)
    assert memory.extent(x.view(torch.complex64)) == (start, start + 96)


def nowhere() -> dict[str, Any]:
    with FakeTensorMode():
        fake = torch.ones(2)
    return {
        "none": None,
        "number": 1.0,
        "empty": torch.ones(0, 3),
        "meta": torch.ones(2, device="meta"),
        "sparse": torch.ones(2).to_sparse(),
        "fake": fake,
        "lazy": torch.nn.UninitializedParameter(),
    }


@pytest.mark.parametrize("name", nowhere())
def test_what_has_no_address(name: str) -> None:
    x = nowhere()[name]
    assert memory.extent(x) is None
    assert not memory.has_address(x)
    assert memory.storages([x, x]) == set()
    assert memory.tied([x, x]) is None


def test_no_address_is_read_under_a_transform() -> None:
    found = []
    vmap(lambda x: found.append(memory.has_address(x)) or x)(torch.ones(2))
    grad(lambda x: found.append(memory.has_address(x)) or x)(torch.ones(()))
    assert found == [False, False]
    assert memory.has_address(torch.ones(1))


def test_storages_are_those_of_whole_tensors() -> None:
    x, y = torch.ones(4), torch.ones(4)
    assert memory.storages([x, x[2:], y]) == {x.data_ptr(), y.data_ptr()}


def test_tied_leaves_are_the_same_memory_in_the_same_shape() -> None:
    x, y = torch.ones(4), torch.ones(4)
    assert memory.tied([x, y, None, x]) == (0, 3)
    assert memory.tied([y, x, x.detach(), y]) == (1, 2)
    assert memory.tied([x, x[:2], x.view(2, 2)]) is None


def test_tensors_apart() -> None:
    x = torch.ones(8)
    assert memory.are_apart([x[:4], x[4:], torch.ones(0), torch.ones(2, device="meta")])
    assert not memory.are_apart([x[:4], torch.ones(1), x[3:]])
    assert not memory.are_apart([x[::2], x[1::2]])  # each reaches over the other
    assert memory.are_apart([])
