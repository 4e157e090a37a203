"""Loading a checkpoint without losing precision and without sharing memory.

``torch.optim.Optimizer.load_state_dict`` casts every state tensor to the dtype of its parameter
and, where nothing is to be cast, adopts the tensor it was given. Neither can be overridden, but
both pass by what they do not know. So the last load hook wraps all values, and ``__setstate__``,
which torch calls with the loaded state, unwraps, casts and copies them. torch also pairs parameters
by position; where both sides have names, the hook puts those of the checkpoint into the order of
the optimizer before.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ._entries import is_step
from ._layout import WHOLE

Place: TypeAlias = tuple[torch.device, torch.dtype]


@dataclass(frozen=True)
class _Shielded:
    value: Any


def scalar_dtype() -> torch.dtype:
    """The dtype torch.optim gives ``step``: float32, or float64 where that is the default dtype."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def shield(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Load hook: the same state dict in the order of the optimizer, with every value wrapped.

    Raises:
        ValueError: the groups have other names than those of the optimizer.
    """
    groups = state_dict["param_groups"]
    if len(groups) == len(optimizer.param_groups):  # else torch raises
        pairs = enumerate(zip(groups, optimizer.param_groups, strict=True))
        groups = [_in_order(i, saved, live) for i, (saved, live) in pairs]
    state = {k: _wrap(v) for k, v in state_dict["state"].items()}
    return {**state_dict, "param_groups": groups, "state": state}


def _in_order(i: int, saved: dict[str, Any], live: dict[str, Any]) -> dict[str, Any]:
    """A saved group with its parameters in the order of the live ones of the same names."""
    keys, names = list(saved["params"]), live.get("param_names")
    given = keys if all(isinstance(key, str) for key in keys) else saved.get("param_names")
    if names is None or given is None or len(keys) != len(live["params"]):
        return saved
    given, names = list(given), list(names)
    if given == keys and {*given} != {*names}:
        # torch.distributed.checkpoint has put them into the order of the parameters already; they
        # are names of the module, which need not be those that the optimizer was given.
        given = names
    if not len(given) == len(names) == len(keys):
        return saved
    if given != names:
        _check_names(f"param_groups[{i}]['param_names'] of the state dict", given, names)
        at = dict(zip(given, keys, strict=True))
        keys = [at[name] for name in names]
    return {**saved, "params": keys, "param_names": names}


def _check_names(what: str, given: list[str], names: list[str]) -> None:
    """Check that one of two lists of names is the other in another order."""
    missing = [name for name in names if name not in given]
    unexpected = [name for name in given if name not in names]
    problems = [f"{x!r} is missing" for x in missing[:1]]
    problems += [f"{x!r} is unexpected" for x in unexpected[:1]]
    if not problems and len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        problems = [f"{twice!r} comes twice, in another order"]
    if problems:
        raise ValueError(
            f"{what} must be the names of the parameters of this optimizer: "
            f"{' and '.join(problems)}; rename them there, or delete 'param_names' there to load "
            "by position"
        )


def _wrap(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _wrap(v) for k, v in value.items()}
    return _Shielded(value)


def opened(value: Any) -> Any:
    """A loaded value, or an entry of them, without wrappers."""
    if isinstance(value, dict):
        return {k: opened(v) for k, v in value.items()}
    return value.value if isinstance(value, _Shielded) else value


def rename_whole(state: MutableMapping[Any, Any]) -> None:
    """Give a state that is one tree its name, in place: it was saved under an empty key."""
    for p, entry in state.items():
        if isinstance(p, Tensor) and isinstance(entry, dict) and "" in entry:
            entry[WHOLE] = entry.pop("")


def make_steps_tensors(state: MutableMapping[Any, Any]) -> None:
    """Make tensors of shape () of steps that are numbers, or tensors of one element, in place."""
    for p, entry in state.items():
        named = isinstance(p, Tensor) and isinstance(entry, dict)
        for name in filter(is_step, entry if named else ()):
            step = opened(entry[name])
            if isinstance(step, Real) and not isinstance(step, bool):
                entry[name] = _Shielded(torch.tensor(float(step), dtype=scalar_dtype()))
            elif isinstance(step, Tensor) and step.numel() == 1 and step.dim() > 0:
                entry[name] = _Shielded(step.reshape(()))


def restore(
    state: MutableMapping[Any, Any],
    param_groups: list[dict[str, Any]],
    place: Callable[..., Place],
) -> None:
    """Turn loaded or unpickled state into that of live parameters, in place.

    Wrapped tensors are copied, those of a parameter to the device and the dtype that ``place`` says
    for a tensor, its name, its parameter and the group.
    """
    groups = {p: group for group in param_groups for p in group["params"]}
    for p, value in state.items():
        state[p] = _restored(value, None, p, groups.get(p), place)


def _restored(
    value: Any, name: Any, p: Any, group: dict[str, Any] | None, place: Callable[..., Place]
) -> Any:
    if isinstance(value, dict):
        return {k: _restored(v, k, p, group, place) for k, v in value.items()}
    x = opened(value)
    if x is value or not isinstance(x, Tensor):
        return x
    device, dtype = (x.device, x.dtype) if group is None else place(x, name, p, group)
    return x.to(device=device, dtype=dtype, copy=True)
