"""The state dict of an Adamax, and which of its parameters are which leaves of a tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from .._core import checks, pytree
from .._core.pytree import Tree
from .._methods.adamax import Adamax, AdamaxState
from ._optimizer import Optimizer as CompatOptimizer


def as_dict(given: dict[str, Any] | Optimizer) -> dict[str, Any]:
    """The state dict, of an Adamax.

    Raises:
        TypeError: it is no state dict, or that of another optimizer.
        ValueError: its groups and its entries do not belong together.
    """
    state_dict = given.state_dict() if isinstance(given, Optimizer) else given
    _check_form(state_dict)
    groups, state = state_dict["param_groups"], state_dict["state"]
    keys = [key for group in groups for key in group["params"]]
    if isinstance(given, Optimizer):
        right, got = _is_adamax(given), type(given).__name__
    else:
        entries = [state[key] for key in keys if isinstance(state.get(key), dict)]
        right = all({"lr", "betas", "eps", "weight_decay"} <= x.keys() for x in groups) and all(
            not x or set(AdamaxState._fields) <= x.keys() for x in entries
        )
        got = "that of another optimizer"
    if not right:
        raise TypeError(
            f"an Adamax is needed, or its state dict, got {got}: "
            "make the transform, and init its state"
        )
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise ValueError(
            f"the state dict must have each parameter in its groups once, got {twice[0]!r} twice"
        )
    kinds = tuple({type(key) for key in keys})  # keys of another kind are no parameters
    unknown = [key for key in state if isinstance(key, kinds) and key not in keys]
    if unknown:
        raise ValueError(
            f"each entry in the state dict must be that of a parameter in its groups, got one for "
            f"{unknown[0]!r}: its parameter is missing from 'params' of a group, or it has to go"
        )
    return state_dict


def _check_form(given: Any) -> None:
    """Check that something has the form of a state dict.

    Raises:
        TypeError: it has not.
    """
    what, wanted = "state_dict", "an optimizer, or what its state_dict() returned"
    if not isinstance(given, dict):
        raise TypeError(f"{what} must be {wanted}, got {checks.describe(given)}")
    for name, kind in (("param_groups", list), ("state", dict)):
        if not isinstance(given.get(name), kind):
            raise TypeError(
                f"{what} must be {wanted}: {what}[{name!r}] must be a {kind.__name__}, "
                f"got {checks.describe(given.get(name))}"
            )
    for i, group in enumerate(given["param_groups"]):
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            raise TypeError(
                f"{what} must be {wanted}: {what}['param_groups'][{i}] must be a dict with a list "
                f"under 'params', got {checks.describe(group)}"
            )


def _is_adamax(optimizer: Optimizer) -> bool:
    if not isinstance(optimizer, CompatOptimizer):
        return isinstance(optimizer, torch.optim.Adamax)
    transforms = map(optimizer.transform_of, optimizer.param_groups)
    return all(isinstance(x, Adamax) and not x.decoupled for x in transforms)


def pairs(
    state_dict: dict[str, Any], params: Tree, order: Sequence[str] | None
) -> list[tuple[int, Any, dict[str, Any]]]:
    """Pair leaves with numbers: (position of the leaf, number in the state dict, its group)."""
    owners = [(key, group) for group in state_dict["param_groups"] for key in group["params"]]
    leaves = checks.parameters(params)[0]
    positions = [i for i in pytree.insertion_order(params) if leaves[i] is not None]
    if len(owners) != len(positions):
        raise ValueError(
            f"the state dict has {len(owners)} parameters and params has {len(positions)} tensors"
        )
    if order is None and all(isinstance(key, str) for key, _ in owners):
        order = [key for key, _ in owners]  # a checkpoint of torch.distributed.checkpoint
    if order is None and all("param_names" in group for group in state_dict["param_groups"]):
        order = [name for group in state_dict["param_groups"] for name in group["param_names"]]
    if order is not None:
        names = pytree.names(pytree.flatten(params)[1])
        by_name = {names[i]: i for i in positions}
        if sorted(order) != sorted(by_name):
            missing, unknown = sorted({*by_name} - {*order}), sorted({*order} - {*by_name})
            raise ValueError(
                "order must name every tensor of params once: "
                f"missing {missing[:3]}, unknown {unknown[:3]}"
            )
        positions = [by_name[name] for name in order]
    return [(i, key, group) for i, (key, group) in zip(positions, owners, strict=True)]
