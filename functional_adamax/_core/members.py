"""The members of ``vmap``s: their tensors stacked, and put back."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeAlias

from torch import Tensor

from .private import transforms

TakenOut: TypeAlias = tuple[Tensor, dict[int, int]]
"""A tensor outside of all transforms, and where in it the members of each level are."""


class Members:
    """Those of several ``vmap``s together, in the order of their indices."""

    __slots__ = ("_front", "count", "sizes")

    def __init__(self, sizes: dict[int, int]) -> None:
        self.sizes = sizes  # of the batches, by the levels of the vmaps; the outermost first
        self.count = prod(sizes.values()) if sizes else 0
        self._front = dict.fromkeys(sizes, 0) if len(sizes) < 2 else None

    @classmethod
    def of(cls, sizes: dict[int, int], tensors: Sequence[TakenOut]) -> Members | None:
        """Those of the ``vmap``s that some of ``tensors`` belong to; None where one is of others.

        There are none where no tensor belongs to a ``vmap``.
        """
        levels: set[int] = set().union(*[places for _, places in tensors])
        found = {level: size for level, size in sizes.items() if level in levels}
        return cls(found) if len(found) == len(levels) and 0 not in found.values() else None

    def stacked(self, taken: TakenOut) -> Tensor:
        """Return a tensor of all members, which come first, contiguous; outside of transforms."""
        x, places = taken
        if places != self._front:
            order = [places[level] for level in self.sizes if level in places]
            x = x.movedim(order, list(range(len(order))))
            for i, level in enumerate(self.sizes):
                x = x if level in places else x.unsqueeze(i)
            shape = x.shape[len(self.sizes) :]
            x = x.expand(*self.sizes.values(), *shape).reshape(self.count, *shape)
        return x.contiguous()

    def put_back(self, x: Tensor) -> Any:
        """Return a tensor of the ``vmap``s, of one whose members are stacked.

        They share one of shape ().
        """
        if x.dim() == 0:
            return x
        if self._front is None:
            x = x.view(*self.sizes.values(), *x.shape[1:])
        for level in self.sizes:
            x = transforms.batched(x, 0, level)
        return x


def first(x: Tensor) -> Tensor:
    """Return a tensor of shape () as the first member has it."""
    if not transforms.wraps(x):
        return x
    whole, _ = transforms.taken_out(x)
    return transforms.outside(lambda: whole.detach().reshape(-1)[0])
