"""The parts of a state that are trees like the parameters, found and replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._core import pytree
from ..._core.pytree import Tree
from .graph import Declined


class Column(NamedTuple):
    """A part of a state that is a tree like the parameters."""

    start: int  # of its leaves in the flat state
    dtypes: tuple[torch.dtype | None, ...]  # of each kind of leaves; None where it holds nothing
    vectors: tuple[bool, ...]  # whether it holds tensors like the leaves, or of one number each

    def old(self, kind: int) -> str:
        """The input of a record that it is."""
        return f"column {self.start} of {kind}"

    def new(self, kind: int) -> str:
        """The output of a record that it becomes."""
        return f"new column {self.start} of {kind}"


class Walker:
    """Walks a state in the order of its flat leaves, and replaces its parts."""

    def __init__(
        self, spec: Any, column: Callable[[int], Any], lone: Callable[[int, Any], Any]
    ) -> None:
        self._spec, self._column, self._lone = spec, column, lone
        self._position = 0

    def walk(self, node: Tree) -> Tree:
        """Return ``node`` with other columns, and other leaves that are in none."""
        start = self._position
        leaves, spec = pytree.flatten(node)
        is_tree = spec == self._spec and not spec.is_leaf()
        if is_tree and spec.type is tuple:  # which the states of links without state may be, too
            is_tree = any(isinstance(x, Tensor) for x in leaves)
        if is_tree:
            self._position += self._spec.num_leaves
            return self._column(start)
        if not pytree.is_node(node):
            self._position += 1
            return self._lone(start, node)
        children, _, build = pytree.open_node(node)
        return build([self.walk(child) for child in children])


def columns_of(
    spec: Any, state: Tree, flat: list[Any], like: list[tuple[int, Tensor]]
) -> tuple[Column, ...]:
    """The parts of a state that are trees like the parameters.

    ``like`` has the position of a leaf of each kind, and a tensor of its shape.

    Raises:
        Declined: it is not told whether a part holds tensors like a leaf, or numbers.
    """
    found: list[Column] = []

    def column(start: int) -> None:
        some = [flat[start + at] for at, _ in like]
        dtypes = tuple(x.dtype if isinstance(x, Tensor) else None for x in some)
        pairs = list(zip(some, like, strict=True))
        told = {x.dim() > 0 for x, (_, y) in pairs if isinstance(x, Tensor) and y.dim()}
        if len(told) != 1 and any(isinstance(x, Tensor) and not y.dim() for x, (_, y) in pairs):
            raise Declined("all leaves of a kind have no dimension")
        vectors = tuple(
            isinstance(x, Tensor) and (x.dim() > 0 if y.dim() else told == {True})
            for x, (_, y) in pairs
        )
        found.append(Column(start, dtypes, vectors))

    def lone(start: int, x: Any) -> None:
        if isinstance(x, Tensor) and spec.is_leaf() and x.dim():
            found.append(Column(start, (x.dtype,), (True,)))

    if all(x.dim() == 0 for _, x in like):
        raise Declined("all leaves have no dimension")
    Walker(spec, column, lone).walk(state)
    return tuple(found)


def example_of(where: Sequence[int], g: list[Any], p: list[Any]) -> tuple[int, Tensor]:
    """The position of a leaf, and a tensor of its shape; one with dimensions, if there is one."""
    found = (where[0], torch.zeros(()))
    for i in where:
        x = p[i] if g[i] is None and p else g[i]
        if isinstance(x, Tensor) and x.dim():
            return i, x
    return found
