"""Trees under ``torch.compile``: their structure in few objects.

A compiler follows a stand-in for optree in Python, which makes an object for each leaf, and spends
its time by the bytecode it follows. Here a container of nothing but leaves is one object.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .node import Tree, are_leaves, is_node, open_level


@dataclass(frozen=True)
class Spec:
    """The structure of a tree, which answers as that of optree does."""

    kind: type | None  # of the container; None for a leaf
    keys: tuple[Any, ...]
    metadata: Any  # what else sets containers of a kind apart
    children: tuple[Spec, ...] | None  # None if all are leaves
    num_leaves: int
    build: Callable[[list[Any]], Tree] | None = field(compare=False)

    def is_leaf(self) -> bool:
        """Whether the tree is a single leaf."""
        return self.kind is None

    def paths(self) -> list[tuple[Any, ...]]:
        """Return the keys that lead to each leaf."""
        if self.kind is None:
            return [()]
        if self.children is None:
            return [(key,) for key in self.keys]
        rows = zip(self.keys, self.children, strict=True)
        return [(key, *path) for key, child in rows for path in child.paths()]

    def codes(self, root: str) -> list[str]:
        """Return how Python code reaches each leaf from ``root``."""
        if self.kind is None:
            return [root]
        fields = getattr(self.kind, "_fields", None)
        at = [f"{root}.{x}" for x in fields] if fields else [f"{root}[{x!r}]" for x in self.keys]
        if self.children is None:
            return at
        return [code for x, child in zip(at, self.children, strict=True) for code in child.codes(x)]

    def flatten_up_to(self, tree: Tree) -> list[Any]:
        """Return what is in ``tree`` at the places of the leaves.

        Raises:
            ValueError: the structure of ``tree`` does not begin with this one.
        """
        if self.kind is None:
            return [tree]
        if not is_node(tree):
            raise ValueError
        found, keys, metadata, _ = _open(tree)
        if isinstance(tree, dict) and issubclass(self.kind, dict):
            if len(tree) != len(self.keys) or not all(key in tree for key in self.keys):
                raise ValueError
            found = [tree[key] for key in self.keys]
        elif type(tree) is not self.kind or keys != self.keys or metadata != self.metadata:
            raise ValueError
        if self.children is None:
            return found
        pairs = zip(self.children, found, strict=True)
        return [leaf for child, x in pairs for leaf in child.flatten_up_to(x)]

    def unflatten(self, leaves: Sequence[Any]) -> Tree:
        """Put ``leaves`` into this structure."""
        if self.build is None:
            return leaves[0]
        if self.children is None:
            return self.build(list(leaves))
        built, start = [], 0
        for child in self.children:
            built.append(child.unflatten(leaves[start : start + child.num_leaves]))
            start += child.num_leaves
        return self.build(built)


Opened = tuple[list[Any], tuple[Any, ...], Any, Callable[[list[Any]], Tree]]


def _open(node: Tree) -> Opened:
    """Return the children of a container, their keys, its metadata, and what builds it."""
    kind = type(node)
    if kind is dict and frozenset(map(type, node)) == {str}:  # in which optree's way may fail
        order, sorted_keys = tuple(node), tuple(sorted(node))

        def build(new: list[Any]) -> Tree:
            values = dict(zip(sorted_keys, new, strict=True))
            return {key: values[key] for key in order}

        return [node[key] for key in sorted_keys], sorted_keys, None, build
    children, metadata, keys, make = open_level(node)
    kept = None if issubclass(kind, (dict, deque)) else metadata
    return children, keys, kept, lambda new: make(metadata, new)


def flatten(tree: Tree) -> tuple[list[Any], Spec]:
    """Return the leaves of ``tree`` and its structure."""
    if are_leaves([tree]) or not is_node(tree):
        return [tree], Spec(None, (), None, None, 1, None)
    children, keys, metadata, build = _open(tree)
    kind = type(tree)
    if are_leaves(children):
        return children, Spec(kind, keys, metadata, None, len(children), build)
    leaves, specs = [], []
    for child in children:
        below, spec = flatten(child)
        leaves += below
        specs.append(spec)
    parts = None if all(spec.kind is None for spec in specs) else tuple(specs)
    return leaves, Spec(kind, keys, metadata, parts, len(leaves), build)
