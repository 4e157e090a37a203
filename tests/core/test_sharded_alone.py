"""What a reduction of sharded tensors needs, for plain ones and in one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed as dist

from functional_adamax._core import sharded

X = torch.tensor([[1.0, 5.0], [3.0, 2.0]])


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_plain_tensor_passes_through_unchanged() -> None:
    assert not sharded.is_sharded(X)
    assert not sharded.is_sharded(torch.nn.Parameter(X))
    assert sharded.whole(X) is X
    assert sharded.settled(X) is X
    assert sharded.placed_like(torch.ones(1), X) is X
    assert sharded.beside(0.5, X) == 0.5
    assert sharded.beside(X, X) is X
    assert sharded.expanded_as(torch.tensor(2.0), X).tolist() == [[2.0, 2.0]] * 2


def test_numbers_are_combined_in_order() -> None:
    numbers = [torch.tensor(8.0), torch.tensor(2.0), torch.tensor(2.0)]
    assert sharded.combined(torch.div, numbers) == 2.0
    assert sharded.combined(torch.maximum, [torch.tensor(torch.nan), numbers[0]]).isnan()


def test_the_largest_element() -> None:
    assert sharded.largest(X) == 5.0
    assert sharded.largest(X, (0,)).tolist() == [[3.0, 5.0]]
    assert sharded.largest(torch.tensor(4.0)) == 4.0


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:torch")
def test_in_one_process_the_numbers_are_those_of_the_plain_tensor(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    for dim in (0, 1):
        x: Any = distribute_tensor(X, mesh, [Shard(dim)])
        assert sharded.is_sharded(x)
        assert torch.equal(sharded.whole(x), X)
        for dims in (None, (0,), (1,), (0, 1)):
            found = sharded.whole(sharded.settled(sharded.largest(x, dims)))
            assert torch.equal(found, sharded.largest(X, dims))
        assert sharded.positions(x).tolist() == [[0, 1], [2, 3]]
        assert torch.equal(sharded.whole(sharded.from_shard(X * 2, x)), X * 2)
        numbers = [sharded.largest(x), torch.tensor(7.0)]
        total = sharded.combined(torch.add, numbers)
        assert type(total) is torch.Tensor
        assert total == 12.0
        beside = sharded.beside(torch.tensor(2.0), x)
        assert isinstance(beside, DTensor)
        assert beside.placements == (Replicate(),)
        moved: Any = sharded.placed_like(x, distribute_tensor(X, mesh, [Replicate()]))
        assert moved.placements == (Shard(dim),)
        assert type(sharded.placed_like(X, x)) is torch.Tensor
        assert torch.equal(sharded.whole(sharded.expanded_as(torch.tensor(2.0), x)), 0 * X + 2)
