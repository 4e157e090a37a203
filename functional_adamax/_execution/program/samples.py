"""The update of a transform over a few leaves, by the rule: what its programs are held against."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._core import apply, pytree
from ..._core.pytree import Tree
from .columns import Walker
from .trees import Given, in_tree


class Sample(NamedTuple):
    """A step of a leaf of each kind with numbers as they come, and what a transform makes of it."""

    g: list[Any]
    p: list[Any]
    state: list[Any]  # flat
    trees: tuple[list[float], ...]  # of hyperparameters, a number for each leaf
    at: dict[int, int]  # of the starts in the state that is recorded, those in this one
    first: list[Any]
    new: list[Any]  # the state after the step


def sample(given: Given, shape: tuple[int, ...], seed: int) -> Sample:
    """Run an update over a leaf of each kind, by the rule."""
    generator = torch.Generator("cpu").manual_seed(seed)
    kinds, known = range(len(given.kinds)), {c.start: c for c in given.columns}
    state: list[Any] = []
    at: dict[int, int] = {}

    def made(dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator, device="cpu")

    def column(start: int) -> Tree:
        c = known.get(start)
        leaves: dict[int, Any] = {k: pytree.EmptyState() for k in kinds}
        for k, dtype in enumerate(() if c is None else c.dtypes):
            if c is not None and dtype is not None:
                number = torch.tensor(seed, dtype=dtype, device="cpu")
                leaves[k] = made(dtype).abs() if c.vectors[k] else number
        at[start] = len(state)
        state.extend(leaves.values())
        return leaves

    def lone(start: int, x: Any) -> Any:
        if start in known:
            return column(start)
        if isinstance(x, Tensor):
            value = seed % 2 if x.dtype == torch.bool else seed
            x = torch.as_tensor(value, dtype=x.dtype, device="cpu")
        at[start] = len(state)
        state.append(x)
        return x

    old = Walker(given.spec, column, lone).walk(given.state)
    g = [made(given.dtype) if x.has_gradient else None for x in given.kinds]
    p = [made(given.params) for _ in kinds] if given.params else []
    params = dict(enumerate(p)) if given.params else None
    trees = tuple([0.1 + 0.2 * k + 0.05 * j for k in kinds] for j in range(len(given.trees)))
    values = {in_tree(j, k): x for j, row in enumerate(trees) for k, x in enumerate(row)}
    transform = given.small(list(given.numbers), values.__getitem__)
    updates, new = transform.update(dict(enumerate(g)), old, params)
    first = apply.updated(params, updates) if given.add else updates
    return Sample(g, p, state, trees, at, list(first.values()), pytree.flatten(new)[0])
