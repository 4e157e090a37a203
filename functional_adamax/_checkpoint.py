"""Trees as plain containers, which ``torch.load(weights_only=True)`` accepts, and back.

A state is made of NamedTuples, which a safe load takes only where their types are known. Here
each node becomes a dict from its field names, keys or positions to its children, so that a leaf
is found by the structure around it and not by its place in a list.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._core import checks, pytree
from ._core.pytree import EmptyState, Tree


def to_state_dict(tree: Tree) -> Any:
    """Return ``tree`` as nested dicts with the same tensors, for ``torch.save``.

    Args:
        tree: any tree of tensors: a state, parameters, or a tuple of both.

    Returns:
        A dict for each container (field name, key or position to child), tensors and None
        as they are, an empty dict for ``EmptyState()``. Tensors are shared, not copied.

    Example:
        >>> to_state_dict(adamax().init(torch.zeros(2)))["exp_avg"]
        tensor([0., 0.])
    """
    if not pytree.is_node(tree):
        return {} if isinstance(tree, EmptyState) else tree
    children, keys, _ = pytree.open_node(tree)
    return {key: to_state_dict(child) for key, child in zip(keys, children, strict=True)}


def from_state_dict(like: Tree, state_dict: Any) -> Tree:
    """Return a tree with the containers of ``like`` and copies of the tensors of ``state_dict``.

    Args:
        like: a tree of the wanted structure, ``tx.init(params)`` for a state. Its tensors give
            shape and device; a tensor is moved there and keeps the dtype it was saved with.
        state_dict: what ``to_state_dict`` returned.

    Raises:
        ValueError: a key is missing or unexpected, or a tensor has another shape or is of another
            kind: integer for floating, complex for real.

    Example:
        >>> tx, params = adamax(), torch.zeros(2)
        >>> saved = to_state_dict(tx.init(params))
        >>> from_state_dict(tx.init(params), saved).exp_avg
        tensor([0., 0.])
    """
    return _restore(like, state_dict, "state_dict")


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
        if saved != to_state_dict(like):
            raise ValueError(
                f"{path} must be {to_state_dict(like)!r}, got {checks.describe(saved)}"
            )
        return like
    children, keys, build = pytree.open_node(like)
    if not isinstance(saved, dict):
        raise ValueError(f"{path} must be a dict, got {checks.describe(saved)}")
    for key in keys:
        if key not in saved:
            raise ValueError(f"{path}[{key!r}] is missing from the saved state")
    for key in saved:
        if key not in keys:
            raise ValueError(f"{path}[{key!r}] is unexpected: the state has no place for it")
    return build(
        [_restore(c, saved[k], f"{path}[{k!r}]") for c, k in zip(children, keys, strict=True)]
    )
