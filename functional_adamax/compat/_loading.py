"""Loading a checkpoint without losing precision and without sharing memory.

``torch.optim.Optimizer.load_state_dict`` casts every state tensor to the dtype of its parameter
and, where nothing is to be cast, adopts the tensor it was given. Neither can be overridden, but
both pass by what is no tensor. So the last load hook wraps the tensors, and ``__setstate__``,
which torch calls with the loaded state, unwraps, casts and copies them.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, _get_scalar_dtype

from .. import _rule

_MOMENTS = ("exp_avg", "exp_inf")


@dataclass(frozen=True)
class _Shielded:
    tensor: Tensor


def scalar_dtype() -> torch.dtype:
    """The dtype torch.optim gives ``step``: float32, or float64 where that is the default dtype."""
    dtype: torch.dtype = _get_scalar_dtype()  # type: ignore[no-untyped-call]
    return dtype


def shield(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Load hook: the same state dict with every state tensor wrapped."""
    del optimizer
    return {**state_dict, "state": {k: _wrap(v) for k, v in state_dict["state"].items()}}


def _wrap(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Shielded(value)
    if isinstance(value, dict):
        return {k: _wrap(v) for k, v in value.items()}
    return value


def restore(state: MutableMapping[Any, Any], param_groups: list[dict[str, Any]]) -> None:
    """Turn loaded or unpickled state into that of live parameters, in place.

    Wrapped tensors are copied and cast: ``step`` to float32 on the device of its parameter if
    the group is capturable, else as it is; moments to ``state_dtype``, or the parameter's dtype;
    any other tensor as torch casts it. A ``step`` that is a number becomes a tensor.
    """
    groups = {p: group for group in param_groups for p in group["params"]}
    for key, value in state.items():
        group = groups.get(key)
        if group is not None and not isinstance(value.get("step"), (Tensor, _Shielded, type(None))):
            step = torch.tensor(float(value["step"]), dtype=scalar_dtype())
            value["step"] = step.to(key.device) if group["capturable"] else step
        state[key] = _unwrap(value, None, key, group)


def _unwrap(value: Any, name: Any, p: Any, group: dict[str, Any] | None) -> Any:
    if isinstance(value, dict):
        return {k: _unwrap(v, k, p, group) for k, v in value.items()}
    if not isinstance(value, _Shielded):
        return value
    if group is None or (name == "step" and not group["capturable"]):
        return value.tensor.clone()
    return value.tensor.to(device=p.device, dtype=_dtype(value.tensor, name, p, group), copy=True)


def _dtype(tensor: Tensor, name: Any, p: Tensor, group: dict[str, Any]) -> torch.dtype:
    if name == "step":
        return torch.float32
    if name in _MOMENTS and group.get("state_dtype") is not None:
        return _rule.moment_dtype(p, group["state_dtype"])
    return p.dtype if p.is_floating_point() else tensor.dtype


def restore_exactly(state: MutableMapping[Any, Any]) -> None:
    """Copy loaded tensors to the devices of their parameters, in place; dtypes stay."""
    for p, entry in state.items():
        for name, value in entry.items() if isinstance(entry, dict) else ():
            if isinstance(value, _Shielded):
                device = p.device if isinstance(p, Tensor) else value.tensor.device
                entry[name] = value.tensor.to(device=device, copy=True)
