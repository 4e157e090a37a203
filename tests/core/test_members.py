"""The members of ``vmap``s, stacked and put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from functional_adamax._core.members import Members, first
from functional_adamax._core.private import transforms

X = torch.randn(2, 3, 4)


def inside(x: Tensor, *more: Tensor) -> tuple[Members | None, list[Tensor]]:
    """The members of all tensors, and those stacked."""
    sizes = transforms.lone_vmaps()
    assert sizes is not None
    taken = [transforms.taken_out(y) for y in (x, *more)]
    found = Members.of(sizes, taken)
    assert found is not None
    return found, transforms.outside(lambda: [found.stacked(y) for y in taken])


@pytest.mark.parametrize("dims", [(0, 0), (1, 0), (2, 1), (0, 1)])
def test_members_come_first_and_are_put_back(dims: tuple[int, int]) -> None:
    seen: list[Any] = []

    def one(x: Tensor) -> Tensor:
        members, (stacked,) = inside(x)
        assert members is not None
        seen.append((members.count, stacked))
        return transforms.outside(lambda: members.put_back(2 * stacked))

    found = vmap(vmap(one, dims[1]), dims[0])(X)
    wanted = vmap(vmap(lambda x: 2 * x, dims[1]), dims[0])(X)
    count, stacked = seen[0]
    assert torch.equal(found, wanted)
    assert torch.equal(2 * stacked, wanted.flatten(0, 1))
    assert count == len(stacked)
    assert stacked.is_contiguous()


def test_members_share_what_belongs_to_none_of_them() -> None:
    def one(x: Tensor) -> Tensor:
        members, (own, shared) = inside(x, X[0])
        assert members is not None
        assert torch.equal(own, X.flatten(0, 1))
        assert torch.equal(shared, X[0].expand(6, 3, 4))
        assert members.put_back(torch.ones(())).dim() == 0
        return x

    vmap(vmap(one))(X)


def test_only_the_vmaps_that_a_tensor_belongs_to() -> None:
    def one(x: Tensor, y: Tensor) -> Tensor:
        members, (stacked,) = inside(x)
        assert members is not None
        assert (members.count, list(members.sizes)) == (2, [1])
        assert torch.equal(stacked, X)
        nobody, (alone,) = inside(X)
        assert nobody is not None
        assert nobody.count == 0
        assert torch.equal(nobody.put_back(alone), X)
        return y

    vmap(lambda x: vmap(lambda y: one(x, y))(torch.ones(3)))(X)


def test_tensors_of_other_transforms_have_no_members() -> None:
    kept: list[Tensor] = []
    grad(lambda x: kept.append(x) or x.sum())(torch.ones(3))
    vmap(vmap(lambda x: kept.append(x) or x))(X)

    def one(x: Tensor) -> Tensor:
        sizes = transforms.lone_vmaps()
        assert sizes is not None
        for y in kept:
            assert Members.of(sizes, [transforms.taken_out(x), transforms.taken_out(y)]) is None
        return x

    vmap(one)(X)


def test_the_number_of_the_first_member() -> None:
    numbers = torch.arange(6.0).view(2, 3)
    seen: list[Tensor] = []
    vmap(vmap(lambda x: seen.append(first(x)) or x), 1)(numbers)
    assert [x.item() for x in seen] == [0.0]
    assert first(numbers) is numbers
