"""Finding and changing what is in a state, through any nesting.

A state is a tree of NamedTuples, tuples, dicts and tensors. A part of it is addressed by the name
of its field or key, wherever that is; where a name is found twice, by its path. The file is longer
than others: public functions are documented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ._core import hyper, pytree
from ._core.pytree import EmptyState, Tree
from ._core.spelling import suggestion
from ._core.transform import GradientTransformation
from ._transforms.inject import InjectState


def tree_get_all(state: Tree, name: str) -> list[tuple[str, Any]]:
    """Return ``(path, value)`` of every field or dict key of that name, outermost first.

    Nothing is searched below a match. A path reads as Python does: ``state[1].exp_avg``.

    Example:
        >>> state = chain(identity(), scale_by_adamax()).init(torch.zeros(2))
        >>> tree_get_all(state, "exp_avg")
        [('state[1].exp_avg', tensor([0., 0.]))]
    """
    return list(_find(state, name, "state"))


def tree_get(state: Tree, name: str) -> Any:
    """Return the one value with that field name or dict key, wherever it is in ``state``.

    Raises:
        KeyError: there is none, or there are several, with their paths.

    Example:
        >>> tree_get(chain(identity(), scale_by_adamax()).init(torch.zeros(2)), "exp_avg")
        tensor([0., 0.])
    """
    return _one(tree_get_all(state, name), name, state)[1]


def tree_set(state: Tree, **values: Any) -> Tree:
    """Return ``state`` with new values for the fields or keys of these names.

    Args:
        state: any tree; it is not changed.
        **values: for each name, what takes its place.

    Raises:
        KeyError: a name is not in ``state``, or in several places.

    Example:
        >>> state = scale_by_adamax().init(torch.zeros(2))
        >>> tree_set(state, exp_avg=torch.ones(2)).exp_avg
        tensor([1., 1.])
    """
    for name, value in values.items():
        path, _ = _one(tree_get_all(state, name), name, state)
        state = _replaced(state, {path: value}, "state")
    return state


def tree_map_params(function: Callable[..., Any], state: Tree, params: Tree, *rest: Tree) -> Tree:
    """Apply ``function`` to every part of ``state`` that has one value for each parameter.

    Args:
        function: ``function(value, param, *others)``, for each leaf that has state.
        state: the state of any transform, for these ``params``.
        params: the parameters. For a single tensor, its values are those of its shape.
        *rest: more trees like ``params``, whose leaves are handed to ``function``.

    Returns:
        The new state; what does not belong to a parameter, such as a count, stays as it is.

    Example:
        >>> params = {"w": torch.zeros(2)}
        >>> state = chain(scale_by_adamax(), scale(0.1)).init(params)
        >>> tree_map_params(lambda value, p: value.double(), state, params)[0].exp_avg
        {'w': tensor([0., 0.], dtype=torch.float64)}
    """
    leaves, spec = pytree.flatten(params)
    single = spec.is_leaf()
    others = [pytree.match(spec, tree, f"rest[{i}]", "params") for i, tree in enumerate(rest)]

    def walk(node: Tree) -> Tree:
        values, structure = pytree.flatten(node)
        if structure == spec and not isinstance(node, EmptyState):
            new = [
                function(x, p, *row)
                if isinstance(x, Tensor) and (not single or x.shape == p.shape)
                else x
                for x, p, *row in zip(values, leaves, *others, strict=True)
            ]
            return pytree.unflatten(spec, new)
        if not pytree.is_node(node):
            return node
        children, _, build = pytree.open_node(node)
        return build([walk(child) for child in children])

    return walk(state)


def reset(tx: GradientTransformation, state: Tree, params: Tree, *names: str) -> Tree:
    """Return ``state`` with the parts of these names as ``tx.init(params)`` makes them.

    A name is a label of ``partition``, a link of ``named_chain``, or any field of a state. Without
    names everything is reset.

    Raises:
        KeyError: a name is not in the state, or in several places.

    Example:
        >>> tx = named_chain(("direction", scale_by_adamax()), ("rate", scale(0.1)))
        >>> params = torch.zeros(2)
        >>> _, state = tx.update(torch.ones(2), tx.init(params))
        >>> reset(tx, state, params, "direction")["direction"].exp_avg
        tensor([0., 0.])
    """
    fresh = tx.init(params)
    if not names:
        return fresh
    return tree_set(state, **{name: tree_get(fresh, name) for name in names})


def get_hyperparams(state: Tree) -> dict[str, Any]:
    """Return the hyperparameters that ``inject_hyperparams`` put into ``state``, by name.

    They are those of the last update; where a name is injected in several places, its keys are
    the paths instead.

    Raises:
        KeyError: ``inject_hyperparams`` is nowhere in the transform of this state.

    Example:
        >>> state = chain(identity(), inject_hyperparams(scale)(0.5)).init(torch.zeros(1))
        >>> get_hyperparams(state)
        {'factor': tensor(0.5000, dtype=torch.float64)}
    """
    found = _injected(state)
    names = [name for _, name, _ in found]
    return {
        name if names.count(name) == 1 else f"{path}.hyperparams[{name!r}]": value
        for path, name, value in found
    }


def set_hyperparams(state: Tree, **values: Any) -> Tree:
    """Return ``state`` with other hyperparameters, by name.

    Args:
        state: a state with ``inject_hyperparams`` somewhere in it; it is not changed.
        **values: a number, a tensor or a tree for each name. It takes the dtype and the device
            of what it replaces, and must have its structure.

    Raises:
        KeyError: a name that is not there, or is there in several places; or nothing is injected.
        TypeError: a value that is neither a number nor a real tensor.
        ValueError: a number that is not finite, or a tree of another structure.

    Example:
        >>> state = inject_hyperparams(adamax)(lr=0.1).init(torch.zeros(1))
        >>> get_hyperparams(set_hyperparams(state, lr=0.01))["lr"]
        tensor(0.0100, dtype=torch.float64)
    """
    found = _injected(state)
    for name, value in values.items():
        places = [(f"{path}.hyperparams[{key!r}]", old) for path, key, old in found if key == name]
        if not places:
            names = sorted({key for _, key, _ in found})
            raise KeyError(f"{name!r} must be one of {names}{suggestion(name, names)}")
        path, old = _one(places, name, state)
        hyper.check(name, value, signed=True)
        olds, spec = pytree.flatten(old)
        if isinstance(old, tuple) and isinstance(value, list):
            value = tuple(value)
        try:
            news = spec.flatten_up_to(value)
        except ValueError:
            news = None
        if news is None or any(map(pytree.is_node, news)):
            raise ValueError(
                f"{name} must have the structure of what it replaces, {old!r}, got {value!r}"
            )
        state = _replaced(
            state, {path: pytree.unflatten(spec, list(map(_like, news, olds)))}, "state"
        )
    return state


def _like(value: Any, old: Any) -> Any:
    if not isinstance(old, Tensor):
        return value
    if isinstance(value, Tensor):
        return value.to(dtype=old.dtype, device=old.device, copy=True)
    return torch.tensor(value, dtype=old.dtype, device=old.device)


def _injected(state: Tree) -> list[tuple[str, str, Any]]:
    """(path, name, value) of every injected hyperparameter.

    Raises:
        KeyError: the state is not that of a transform with injected hyperparameters.
    """
    states = [(path, x) for path, x in _nodes(state, "state") if isinstance(x, InjectState)]
    if not states:
        raise KeyError(
            "the state must have hyperparameters in it, got "
            f"{type(state).__name__} without: make its transform by inject_hyperparams, for "
            "example tx = inject_hyperparams(adamax)(lr=0.1)"
        )
    return [(path, name, x) for path, node in states for name, x in node.hyperparams.items()]


def _children(node: Tree, path: str) -> list[tuple[Any, str, Any]]:
    """(key, path, child) of the children of a container."""
    children, keys, _ = pytree.open_node(node)
    fields = hasattr(node, "_fields")
    return [
        (key, f"{path}.{key}" if fields else f"{path}[{key!r}]", child)
        for key, child in zip(keys, children, strict=True)
    ]


def _nodes(node: Tree, path: str) -> Iterator[tuple[str, Any]]:
    yield path, node
    if pytree.is_node(node):
        for _, below, child in _children(node, path):
            yield from _nodes(child, below)


def _find(node: Tree, name: str, path: str) -> Iterator[tuple[str, Any]]:
    if pytree.is_node(node):
        for key, below, child in _children(node, path):
            if key == name:
                yield below, child
            else:
                yield from _find(child, name, below)


def _one(found: list[tuple[str, Any]], name: str, state: Tree) -> tuple[str, Any]:
    if not found:
        nodes = [node for _, node in _nodes(state, "state") if pytree.is_node(node)]
        fields = [x for node in nodes for x in getattr(node, "_fields", ())]
        keys = [key for node in nodes if isinstance(node, dict) for key in map(str, node)]
        raise KeyError(
            f"{name!r} must be the name of a field or a key in the state, whose fields are "
            f"{', '.join(dict.fromkeys(fields)) or 'none'}{suggestion(name, [*fields, *keys])}"
        )
    if len(found) > 1:
        paths = ", ".join(path for path, _ in found)
        raise KeyError(
            f"{name!r} must be in the state once, it is at {paths}: go down to one first"
        )
    return found[0]


def _replaced(node: Tree, values: dict[str, Any], path: str) -> Tree:
    if path in values:
        return values[path]
    if not pytree.is_node(node):
        return node
    build = pytree.open_node(node)[2]
    return build([_replaced(child, values, below) for _, below, child in _children(node, path)])
