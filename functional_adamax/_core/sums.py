"""Sums whose order is part of their definition, so that every way to compute them has one result.

The elements of each tensor are laid out in rows of 128, the last of them filled up with zeros, and
the rows are cut into chunks of 512. In each chunk the rows are added pairwise, neighbours first,
until one is left; then the rows that are left of all chunks of all tensors, and at last the numbers
in the row that is left of those. It takes additions of elements alone, which have the same bits in
every executor and on every number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import local
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

ROW, ROWS = 128, 512
_AT_ONCE = 16 * ROWS
"""So many rows are widened and squared at once, which bounds the memory that it takes."""


class Recorder(Protocol):
    """What takes note of what is asked about all leaves, while a program is made of the rest."""

    def sum_of_squares(self, tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Return what stands for the sum."""

    def count(self, x: Tensor, power: float) -> float:
        """Return what stands for the number of elements of a leaf to a power."""

    def root(self, total: Tensor) -> Tensor:
        """Return what stands for the root of a sum."""

    def largest(self, tensors: list[Tensor]) -> Tensor:
        """Return what stands for the largest absolute value, () in float64."""

    def are_finite(self, tensors: list[Tensor]) -> Tensor:
        """Return what stands for the answer, () bool."""

    def share(self, flags: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what stands for the part of the elements of one leaf that are true, ()."""

    def once(self, schedule: Callable[[Tensor], Tensor], count: Tensor) -> Tensor:
        """Return what stands for the value of a schedule, () in float64."""


class Watching(local):
    """Who is asked instead in this thread."""

    recorder: Recorder | None = None


watching = Watching()


def of_squares(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the sum of the squares of all elements, () in ``dtype``; real tensors, one device."""
    if watching.recorder is not None:
        return watching.recorder.sum_of_squares(tensors, dtype)
    chunks = [chunk for x in tensors for chunk in _chunks(x)]
    rows: list[Any] = [None] * len(chunks)
    for where in _alike(chunks):
        some = torch.stack([chunks[i] for i in where], 1)
        for i, row in zip(where, pairwise(some.to(dtype).square()).unbind(), strict=True):
            rows[i] = row
    return pairwise(pairwise(_filled(torch.stack(rows))))


def count(x: Tensor, power: float = 1.0) -> float:
    """Return the number of elements of a leaf to a power, as Python computes it."""
    if watching.recorder is not None:
        return watching.recorder.count(x, power)
    size: float = x.numel() ** power
    return size


def pairwise(x: Tensor) -> Tensor:
    """Return the sum of ``x``, whose length is a power of 2, over the first dimension."""
    while x.shape[0] > 1:
        x = x[0::2] + x[1::2]
    return x[0]


def _chunks(x: Tensor) -> Iterator[Tensor]:
    """The chunks of a tensor, each (rows, 128)."""
    for part in torch.split(x.reshape(-1), ROWS * ROW):
        rest = -part.shape[0] % ROW
        yield _filled((pad(part, (0, rest)) if rest else part).reshape(-1, ROW))


def _filled(rows: Tensor) -> Tensor:
    """Rows, with rows of zeros to the next power of 2, which change no sum."""
    rest = (1 << (rows.shape[0] - 1).bit_length()) - rows.shape[0]
    return pad(rows, (0, 0, 0, rest)) if rest else rows


def _alike(chunks: list[Tensor]) -> Iterator[list[int]]:
    """The positions of chunks that can be summed together."""
    groups: dict[Any, list[int]] = {}
    for i, chunk in enumerate(chunks):
        groups.setdefault((chunk.shape[0], chunk.dtype), []).append(i)
    for (count, _), where in groups.items():
        size = _AT_ONCE // count
        yield from (where[i : i + size] for i in range(0, len(where), size))
