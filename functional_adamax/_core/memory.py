"""Where tensors lie: whether an address may be read, and whether two share memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .private import transforms

PLAIN = {Tensor, torch.nn.Parameter}
"""The classes of tensors that are nothing but memory."""


def has_address(leaf: Any) -> bool:
    """Whether ``leaf`` is a tensor whose address may be read here.

    Not under ``torch.compile`` or a ``torch.func`` transform, and not for a tensor without
    elements or without data of its own: a fake tensor, or a wrapper such as a DTensor.
    """
    return not torch.compiler.is_compiling() and extent(leaf) is not None


def extent(leaf: Any) -> tuple[int, int] | None:
    """Return where a tensor begins and ends in memory, if it has an address; no compiler asks."""
    if (
        not isinstance(leaf, Tensor)
        or transforms.wraps(leaf)
        or leaf.layout != torch.strided
        or type(leaf).__torch_dispatch__ is not Tensor.__torch_dispatch__
        or torch.nn.parameter.is_lazy(leaf)
        or leaf.numel() == 0
        or leaf.data_ptr() == 0
    ):
        return None
    start = leaf.data_ptr()
    places = 1 + sum((n - 1) * s for n, s in zip(leaf.shape, leaf.stride(), strict=True))
    return start, start + places * leaf.element_size()


def is_dense(x: Tensor) -> bool:
    """Whether the elements of ``x`` lie side by side in memory, in whatever order."""
    covered = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != covered and x.numel() != 0:
            return False
        covered *= size
    return True


def storages(leaves: Iterable[Any]) -> set[int]:
    """Return the addresses of the storages of ``leaves``, where they may be read."""
    return {x.untyped_storage().data_ptr() for x in leaves if has_address(x)}


def tied(leaves: Sequence[Any]) -> tuple[int, int] | None:
    """Return the positions of the first two leaves that are the same memory, or None."""
    first: dict[tuple[int, torch.Size], int] = {}
    for i, leaf in enumerate(leaves):
        if has_address(leaf):
            j = first.setdefault((leaf.data_ptr(), leaf.shape), i)
            if j != i:
                return j, i
    return None


def are_apart(tensors: Sequence[Tensor]) -> bool:
    """Whether no two of these share memory, asked while a compiler follows other code."""
    if torch.compiler.is_dynamo_compiling():
        return False
    ranges = sorted(found for x in tensors if (found := extent(x)) is not None)
    return all(end <= start for (_, end), (start, _) in pairwise(ranges))
