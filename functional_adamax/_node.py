"""One container of a tree: whether it is one, and its children; the leaves that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import optree

Tree: TypeAlias = Any
"""Any pytree known to optree: dict, list, tuple, NamedTuple, registered node, or one leaf."""


class EmptyState(NamedTuple):
    """The state of a transform, or of one leaf, that has none."""


def is_empty(node: Any) -> bool:
    """Whether ``node`` is a leaf though optree would open it."""
    return isinstance(node, EmptyState)


def is_node(value: Any) -> bool:
    """Whether ``value`` is a container that optree would open."""
    return not optree.tree_is_leaf(value, is_leaf=is_empty, none_is_leaf=True)


def open_node(node: Tree) -> tuple[list[Any], list[Any], Callable[[list[Any]], Tree]]:
    """Return the children of a container, their keys, and what builds it from new children.

    A key is a field name, a dict key or a position.
    """
    children, metadata, keys, build = optree.tree_flatten_one_level(
        node, is_leaf=is_empty, none_is_leaf=True
    )
    names = node._fields if optree.is_namedtuple(node) else keys
    return list(children), list(names), lambda new: build(metadata, new)
