"""Executor: the native kernel under ``vmap``, in one call for all leaves and all members.

The tensors of all members lie stacked in memory, so the kernel steps them as so many rows, each
with the hyperparameters of its member: the bits are those of a loop over the members.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._core import context
from .._core.private import transforms
from .adamax_rule import AdamaxLeaf
from .native import kernel
from .work import Columns, Work, leaves_of


def compute(work: Work, add: bool) -> Columns | None:
    """Step all leaves inside of one ``vmap``, or return None.

    None where the kernel cannot take them all: other transforms are running, autograd records, a
    leaf has no gradient or is the same for all members, or a hyperparameter is neither a number
    nor one for each member.
    """
    batch = context.only_vmap()
    if batch is None or any(g is None for g in work.g):
        return None
    leaves = list(leaves_of(work, range(len(work.g))).values())
    if not leaves or not all(map(_is_batched, leaves)):
        return None
    level, members = batch
    found = transforms.outside(partial(_stepped, leaves, members, add))
    if found is None:
        return None
    rows = [[transforms.batched(x, 0, level) for x in row[:4]] for row in found]
    for leaf, row in zip(leaves, rows, strict=True):
        if not transforms.is_batched(leaf.t):
            row[1] = leaf.t + 1
    first, t, m, u = map(list, zip(*rows, strict=True))
    return first, t, m, u


def _stepped(leaves: list[AdamaxLeaf], members: int, add: bool) -> list[list[Any]] | None:
    """The rows of leaves that are stacked, or None where the kernel does not take them."""
    stacked = [_stacked(leaf, members) for leaf in leaves]
    if torch.is_grad_enabled() and any(
        x.requires_grad for leaf in stacked for x in leaf if isinstance(x, Tensor)
    ):
        return None
    ready = kernel.as_read(stacked, members)
    return None if ready is None else kernel.step(ready, add, members=members)


def _is_batched(leaf: AdamaxLeaf) -> bool:
    """Whether each member has its own tensors, and hyperparameters of shape () at most."""
    own = leaf[1:4] if leaf.p is None else leaf[:4]
    return all(isinstance(x, Tensor) and transforms.is_batched(x) for x in own) and not any(
        isinstance(x, Tensor) and x.dim() for x in leaf[5:10]
    )


def _stacked(leaf: AdamaxLeaf, members: int) -> AdamaxLeaf:
    """The tensors of all members, the members first; a hyperparameter that they share as it is."""
    rates = [_whole(x) if isinstance(x, Tensor) else x for x in leaf[5:]]
    tensors = [None if x is None else _whole(x).contiguous() for x in leaf[:4]]
    t = _whole(leaf.t)
    return AdamaxLeaf._make([*tensors, t.expand(members).contiguous(), *rates])


def _whole(x: Tensor) -> Tensor:
    """The tensor of all members, the members first; one that they share as it is."""
    if not transforms.is_batched(x):
        return x
    whole = transforms.unwrapped(x)
    place = transforms.place_of_batch(x)
    return whole if place == 0 else whole.movedim(place, 0)
