"""One container of a tree, its children and what builds it; and what is a leaf."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias, TypeVar, get_type_hints

import optree
import torch

from .private import trees

Tree: TypeAlias = Any
"""Any pytree known to optree: dict, list, tuple, NamedTuple, registered node, or one leaf."""

Kind = TypeVar("Kind", bound=type[Any])


def public_node(kind: Kind) -> Kind:
    """Give a public NamedTuple its public name, wherever it is defined, in whatever is saved.

    Under that name, ``functional_adamax.AdamaxState`` for example, pickles find it, and so do
    the structures that ``torch.export`` saves, beside which it saves the example inputs. Those
    it loads safely first.
    """
    kind.__annotations__ = get_type_hints(kind)  # which are looked up in the module it names
    kind.__module__ = kind.__module__.split("._")[0]
    trees.register(kind, f"{kind.__module__}.{kind.__name__}")
    torch.serialization.add_safe_globals([kind])
    return kind


@public_node
class EmptyState(NamedTuple):
    """The state of a transform, or of one leaf, that has none."""


LEAVES = frozenset({torch.Tensor, torch.nn.Parameter, EmptyState, type(None)})


def are_leaves(values: Iterable[Any]) -> bool:
    """Whether all are tensors, None or EmptyState, by their types; subclasses are not looked for.

    Written so that Dynamo traces few operations.
    """
    return frozenset(map(type, values)) <= LEAVES


def is_empty(node: Any) -> bool:
    """Whether ``node`` is a leaf though optree would open it."""
    return isinstance(node, EmptyState)


def is_node(value: Any) -> bool:
    """Whether ``value`` is a container that optree would open."""
    is_leaf = value is None or is_empty(value)
    return not is_leaf and optree.register_pytree_node.get(type(value)) is not None


def open_node(node: Tree) -> tuple[list[Any], list[Any], Callable[[list[Any]], Tree]]:
    """Return the children of a container, their keys, and what builds it from new children.

    A key is a field name, a dict key or a position.
    """
    children, metadata, keys, build = open_level(node)
    names = node._fields if optree.is_namedtuple(node) else keys
    return children, list(names), lambda new: build(metadata, new)


def open_level(
    node: Tree,
) -> tuple[list[Any], Any, tuple[Any, ...], Callable[[Any, list[Any]], Tree]]:
    """Return the children of a container, its metadata, keys or positions, and what builds it.

    The last takes the metadata and new children.
    """
    children, metadata, keys, build = optree.tree_flatten_one_level(
        node, is_leaf=is_empty, none_is_leaf=True
    )
    return list(children), metadata, tuple(keys), build
