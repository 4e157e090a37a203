"""Trees of tensors: with ``node``, what knows the pytree library (optree).

Every function of the library works on the flat leaves of a tree and puts the
result back into the same structure. ``None`` counts as a leaf, so that a
missing gradient keeps its place. ``EmptyState`` counts as a leaf too: it holds
the place of a leaf that has no state, which ``None`` cannot do because
``torch.func.vmap`` does not return it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor

from . import traced_pytree
from .node import LEAVES, EmptyState, Tree, is_node, open_node

T = TypeVar("T")

__all__ = ["EmptyState", "Tree", "is_node", "open_node"]

_INSERTION = "functional_adamax.insertion_order"
_is_empty = EmptyState.__instancecheck__
"""Whether a node is a leaf though optree would open it: in C, where a compiler does not follow."""


def flatten(tree: Tree) -> tuple[list[Any], Any]:
    """Return the leaves of ``tree`` and its structure, which ``unflatten`` and ``match`` take."""
    if torch.compiler.is_compiling():
        return traced_pytree.flatten(tree)
    return optree.tree_flatten(tree, is_leaf=_is_empty, none_is_leaf=True)


def unflatten(spec: Any, leaves: Sequence[Any]) -> Tree:
    """Put ``leaves`` into the structure ``spec``."""
    return spec.unflatten(leaves)


def tree_map(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """Apply ``function`` to every leaf, ``None`` and ``EmptyState`` included."""
    leaves, spec = flatten(tree)
    return unflatten(spec, [function(leaf) for leaf in leaves])


def map_tensors(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """Apply ``function`` to every tensor; what is none stays as it is."""
    return tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, tree)


def paths(spec: Any, root: str) -> list[str]:
    """Return how Python code reaches each leaf from ``root``: ``params['fc']['weight']``."""
    if isinstance(spec, traced_pytree.Spec):
        return spec.codes(root)
    return [accessor.codify(root) for accessor in spec.accessors()]


def names(spec: Any) -> list[str]:
    """Return each leaf's path joined by dots, as modules name parameters: ``fc.weight``."""
    return [".".join(map(str, path)) for path in spec.paths()]


def insertion_order(tree: Tree) -> list[int]:
    """Return the positions of the leaves in the order in which dict keys were inserted.

    Leaves of a dict come in sorted order from ``flatten``; a module lists its parameters, and
    an optimizer numbers them, in order of insertion.
    """
    position = {path: i for i, path in enumerate(flatten(tree)[1].paths())}
    with optree.dict_insertion_ordered(True, namespace=_INSERTION):
        inserted = optree.tree_paths(
            tree, is_leaf=_is_empty, none_is_leaf=True, namespace=_INSERTION
        )
    return [position[path] for path in inserted]


def match(spec: Any, tree: Tree, name: str, wanted: str, cure: str = "") -> list[Any]:
    """Return the leaves of ``tree`` in the order of ``spec``; errors end in ``cure``.

    ``dict``, ``OrderedDict`` and ``defaultdict`` stand for one another, in any key order.

    Raises:
        ValueError: ``tree`` has another structure; names the first differing path.
    """
    try:
        leaves: list[Any] = spec.flatten_up_to(tree)
    except ValueError:
        problem = _mismatch(unflatten(spec, [None] * spec.num_leaves), tree, name)
        raise ValueError(f"{name} must have the structure of {wanted}: {problem}{cure}") from None
    if LEAVES.issuperset(map(type, leaves)):
        return leaves
    for i, leaf in enumerate(leaves):
        if leaf is not None and not isinstance(leaf, (Tensor, EmptyState)):
            raise TypeError(
                f"{paths(spec, name)[i]} must be a tensor or None, got "
                f"{type(leaf).__name__}; {name} must have the structure of {wanted}{cure}"
            )
    return leaves


def _mismatch(wanted: Tree, tree: Tree, name: str, prefix: bool = False) -> str | None:
    """Return what first sets ``tree`` apart from ``wanted``, with its path, or None."""
    if prefix and not is_node(tree):
        return None
    if not is_node(wanted):
        return f"{name} must be one value, got a {type(tree).__name__}" if is_node(tree) else None
    if not is_node(tree):
        return f"{name} must be a {type(wanted).__name__}, got {type(tree).__name__}"
    if type(wanted) is not type(tree) and not (isinstance(wanted, dict) and isinstance(tree, dict)):
        return f"{name} must be a {type(wanted).__name__}, got {type(tree).__name__}"
    children, keys, _ = open_node(wanted)
    others, other_keys, _ = open_node(tree)
    fields = optree.is_namedtuple(wanted)
    at = {k: f"{name}.{k}" if fields else f"{name}[{k!r}]" for k in [*keys, *other_keys]}
    missing = [f"{at[key]} is missing" for key in keys if key not in other_keys]
    extra = [f"{at[key]} is unexpected" for key in other_keys if key not in keys]
    if missing or extra:
        return " and ".join(missing[:1] + extra[:1])
    found = dict(zip(other_keys, others, strict=True))
    for key, child in zip(keys, children, strict=True):
        below = _mismatch(child, found[key], at[key], prefix)
        if below is not None:
            return below
    return None


def spread(prefix: Tree, tree: Tree, name: str) -> list[Any]:
    """Return one value per leaf of ``tree`` from ``prefix``, the same tree or a prefix of it.

    A prefix ends where a single value is meant for everything below it, so a
    lone value is a prefix of every tree.

    Raises:
        ValueError: ``prefix`` is no prefix of ``tree``.
    """
    spec = flatten(tree)[1]
    values, prefix_spec = flatten(prefix)
    if prefix_spec.is_leaf():
        return [values[0] for _ in range(spec.num_leaves)]
    if prefix_spec == spec:
        return values
    try:
        prefix_spec.flatten_up_to(tree)
    except ValueError:
        problem = _mismatch(tree, prefix, name, prefix=True)
        raise ValueError(
            f"{name} must have the structure of params, or be a prefix of it: {problem}"
        ) from None
    at = dict(zip(prefix_spec.paths(), values, strict=True))  # a compiler cannot build constants
    cuts = ((path[:i] for i in range(len(path) + 1)) for path in spec.paths())
    return [next(at[cut] for cut in some if cut in at) for some in cuts]


def placed(leaves: Sequence[Any], where: Sequence[int], values: Iterable[Any]) -> list[Any]:
    """Return ``leaves`` with ``values`` at the positions ``where``."""
    result = list(leaves)
    for i, value in zip(where, values, strict=True):
        result[i] = value
    return result


_HOLE = object()


@dataclass(frozen=True)
class Layout:
    """A tree without its tensors."""

    spec: Any
    leaves: tuple[Any, ...]

    def build(self, tensors: Iterable[Tensor]) -> Tree:
        """Put tensors where tensors were, in the order of ``split``."""
        rest = iter(tensors)
        return unflatten(self.spec, [next(rest) if x is _HOLE else x for x in self.leaves])


def split(tree: Tree) -> tuple[Layout, list[Tensor]]:
    """Return ``tree`` without its tensors, and the tensors."""
    leaves, spec = flatten(tree)
    holes = tuple(_HOLE if isinstance(x, Tensor) else x for x in leaves)
    return Layout(spec, holes), tensors(tree)


def tensors(tree: Tree) -> list[Tensor]:
    """Return the tensors of ``tree``."""
    return [x for x in flatten(tree)[0] if isinstance(x, Tensor)]


def instances(tree: Tree, kind: type[T]) -> list[T]:
    """Return the containers of a kind in ``tree``, none of them within another."""
    if isinstance(tree, kind):
        return [tree]
    if not is_node(tree):
        return []
    return [found for child in open_node(tree)[0] for found in instances(child, kind)]


def count(tree: Tree) -> Tensor:
    """A counter at 0, on the device of the first tensor of ``tree``."""
    found = tensors(tree)
    return torch.zeros((), dtype=torch.int64, device=found[0].device if found else None)
