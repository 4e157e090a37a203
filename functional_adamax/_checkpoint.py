"""Trees as plain containers, which ``torch.load(weights_only=True)`` accepts, and back.

A state is made of NamedTuples, which a safe load takes only where their types are known. Here
each node becomes a dict from its field names, keys or positions to its children, so that a leaf
is found by the structure around it and not by its place in a list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor

from ._core import checks, pytree
from ._core.pytree import EmptyState, Tree


def to_state_dict(tree: Tree, *, sep: str | None = None) -> Any:
    """Return ``tree`` as dicts with the same tensors, for ``torch.save`` or safetensors.

    Args:
        tree: any tree of tensors: a state, parameters, or a tuple of both.
        sep: None for nested dicts; a string for one flat dict, in which it joins the keys of
            nested ones to the name of a tensor.

    Returns:
        A dict for each container (field name, key or position to child), tensors and None
        as they are, an empty dict for ``EmptyState()``; or the flat dict of the tensors alone.
        Tensors are shared, not copied.

    Raises:
        ValueError: two tensors have one name; another ``sep`` tells them apart.

    Example:
        >>> to_state_dict(adamax().init(torch.zeros(2)))["exp_avg"]
        tensor([0., 0.])
        >>> list(to_state_dict(adamax().init({"w": torch.zeros(2)}), sep="/"))
        ['step/w', 'exp_avg/w', 'exp_inf/w']
    """
    nested = _nested(tree)
    if sep is None:
        return nested
    flat: dict[str, Tensor] = {}
    for path, x in _tensors(nested):
        name = sep.join(map(str, path))
        if name in flat:
            raise ValueError(f"two tensors are called {name!r}: give another sep than {sep!r}")
        flat[name] = x
    return flat


def _nested(tree: Tree) -> Any:
    if not pytree.is_node(tree):
        return {} if isinstance(tree, EmptyState) else tree
    children, keys, _ = pytree.open_node(tree)
    return {key: _nested(child) for key, child in zip(keys, children, strict=True)}


def _tensors(nested: Any) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """The tensors of nested dicts, and the keys that lead to each."""
    if isinstance(nested, Tensor):
        yield (), nested
    elif isinstance(nested, dict):
        for key, value in nested.items():
            for path, x in _tensors(value):
                yield (key, *path), x


def from_state_dict(like: Tree, state_dict: Any, *, sep: str | None = None) -> Tree:
    """Return a tree with the containers of ``like`` and copies of the tensors of ``state_dict``.

    Args:
        like: a tree of the wanted structure, ``tx.init(params)`` for a state. Its tensors give
            shape and device; a tensor is moved there and keeps the dtype it was saved with.
        state_dict: what ``to_state_dict`` returned.
        sep: as it was given there.

    Raises:
        ValueError: a key is missing or unexpected, or a tensor has another shape or is of another
            kind: integer for floating, complex for real.

    Example:
        >>> tx, params = adamax(), torch.zeros(2)
        >>> saved = to_state_dict(tx.init(params))
        >>> from_state_dict(tx.init(params), saved).exp_avg
        tensor([0., 0.])
    """
    if sep is not None:
        state_dict = _unflattened(like, state_dict, sep)
    return _restore(like, state_dict, "state_dict")


def _unflattened(like: Tree, flat: Any, sep: str) -> Any:
    """Nested dicts like those of ``like``, with the tensors of a flat one."""
    if not isinstance(flat, dict):
        raise ValueError(f"state_dict must be a dict, got {checks.describe(flat)}")
    names = to_state_dict(like, sep=sep)
    _check_keys(names, flat, "state_dict")
    tensors = iter([flat[name] for name in names])

    def filled(nested: Any) -> Any:
        if isinstance(nested, dict):
            return {key: filled(value) for key, value in nested.items()}
        return next(tensors) if isinstance(nested, Tensor) else nested

    return filled(_nested(like))


def _check_keys(keys: Collection[Any], saved: dict[Any, Any], path: str) -> None:
    for key in keys:
        if key not in saved:
            raise ValueError(f"{path}[{key!r}] is missing from the saved state")
    for key in saved:
        if key not in keys:
            raise ValueError(f"{path}[{key!r}] is unexpected: the state has no place for it")


def _restore(like: Tree, saved: Any, path: str) -> Tree:
    if isinstance(like, Tensor):
        if not isinstance(saved, Tensor) or saved.shape != like.shape:
            raise ValueError(
                f"{path} must be a tensor of shape {tuple(like.shape)}, "
                f"got {checks.describe(saved)}"
            )
        if checks.kind(saved) != checks.kind(like):
            raise ValueError(
                f"{path} must be {checks.kind(like)} tensor, such as {like.dtype}, "
                f"got {checks.describe(saved)}: give the state dict of this transform"
            )
        return saved.detach().to(like.device, copy=True)
    if not pytree.is_node(like):
        if saved != _nested(like):
            raise ValueError(f"{path} must be {_nested(like)!r}, got {checks.describe(saved)}")
        return like
    children, keys, build = pytree.open_node(like)
    if not isinstance(saved, dict):
        raise ValueError(f"{path} must be a dict, got {checks.describe(saved)}")
    _check_keys(keys, saved, path)
    return build(
        [_restore(c, saved[k], f"{path}[{k!r}]") for c, k in zip(children, keys, strict=True)]
    )
