"""Donated trees: whether a step may be written over them, and the writing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import context, memory, pytree, sharded
from .pytree import Tree


def may_write(grads: Tree, state: Any, params: Tree) -> bool:
    """Whether ``params`` and ``state`` may be written, with nobody but their owner to notice.

    Not where elements of one tensor overlap, or lie scattered between those of others.
    """
    if context.traced():
        return False
    return are_writable(pytree.tensors((state, params)), pytree.tensors(grads))


def are_writable(donated: list[Tensor], given: Sequence[Tensor] = ()) -> bool:
    """The same of tensors, beside which others are ``given``."""
    if context.recorded([*given, *donated]):
        return False
    if not torch.is_inference_mode_enabled() and any(x.is_inference() for x in donated):
        return False
    return all(x.is_contiguous() or memory.is_dense(x) for x in donated)


def shared_memory(grads: Tree, state: Any, params: Tree) -> str | None:
    """Return which two donated tensors, or donated one and gradient, share memory, or None."""
    trees = {"grads": grads, "params": params, "state": state}
    flat = {name: pytree.flatten(tree) for name, tree in trees.items()}
    ranges = sorted(
        (*extent, name == "grads", name, i)
        for name, (leaves, _) in flat.items()
        for i, x in enumerate(leaves)
        if (extent := memory.extent(x)) is not None
    )
    reach: dict[bool, tuple[int, str, int]] = {}  # the furthest end so far: gradients, donated
    for start, end, is_grad, name, i in ranges:
        for other_is_grad, (other_end, other, j) in reach.items():
            if start < other_end and not (is_grad and other_is_grad):
                first = pytree.paths(flat[other][1], other)[j]
                second = pytree.paths(flat[name][1], name)[i]
                return (
                    f"donated tensors must not share memory, but {first} and {second} do: "
                    "clone one of them, or call step with donate=False"
                )
        if end > reach.get(is_grad, (0,))[0]:
            reach[is_grad] = (end, name, i)
    return None


def are_alike(new: Tree, old: Tree) -> bool:
    """Whether every tensor of ``new`` has a place of its shape and dtype in ``old``."""
    (layout, xs), (old_layout, ys) = pytree.split(new), pytree.split(old)
    return layout == old_layout and all(
        (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device)
        for x, y in zip(xs, ys, strict=True)
    )


def write_over(old: Tree, new: Tree) -> Callable[[], None]:
    """Return what copies the results of a pure step over the donated trees."""
    sources, targets = pytree.tensors(new), pytree.tensors(old)
    written = memory.storages(targets)
    pairs = [
        (
            sharded.placed_like(y, x if written.isdisjoint(memory.storages([x])) else x.clone()),
            y,
        )
        for x, y in zip(sources, targets, strict=True)
        if x is not y
    ]
    return partial(_copy, pairs)


def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for source, target in pairs:
        target.copy_(source)
