"""Checks on a parameter group, all of them before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _default_to_fused_or_foreach, _get_capturable_supported_devices

from .. import _check, _tree


def uses_foreach(group: dict[str, Any], params: list[Tensor]) -> bool:
    """Whether torch would step ``params`` by its foreach form."""
    foreach: bool | None = group["foreach"]
    if foreach is None:
        foreach = _default_to_fused_or_foreach(params, group["differentiable"], use_fused=False)[1]
    return foreach


def check_group(
    group: dict[str, Any], state: Mapping[Any, dict[str, Any]], differentiable: bool
) -> None:
    """Raise what the step of ``group`` would raise."""
    beta1, beta2 = group["betas"]
    numbers = {"betas[0]": beta1, "betas[1]": beta2}
    numbers |= {name: group[name] for name in ("lr", "eps", "weight_decay")}
    for name, value in numbers.items():
        if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.numel() == 1):
            raise TypeError(
                f"{name} of a parameter group must be a number or a 1-element Tensor, got {value!r}"
            )
    if not isinstance(beta1, Tensor) and beta1 == 1:
        raise ZeroDivisionError("betas[0] of a parameter group must be below 1, got 1")
    if group["foreach"] and group["differentiable"]:
        raise AssertionError("_foreach ops don't support autograd")
    for p in group["params"]:
        if p.grad is not None:
            _check_parameter(p, p.grad, state.get(p, {}), group, differentiable)


def _check_parameter(
    p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any], differentiable: bool
) -> None:
    if grad.is_sparse:
        raise RuntimeError("Adamax does not support sparse gradients")
    exp_avg, exp_inf = state.get("exp_avg", p), state.get("exp_inf", p)
    step = state.get("step", p)
    if grad.dtype != exp_avg.dtype and group.get("state_dtype") is None:
        raise RuntimeError(
            f"expected a gradient of the dtype of the moments, {exp_avg.dtype}, but got "
            f"{grad.dtype}; pass state_dtype= to step in a dtype of its own"
        )
    if not exp_avg.shape == exp_inf.shape == p.shape:
        raise RuntimeError(
            f"exp_avg and exp_inf must have the shape of their parameter, {tuple(p.shape)}, but "
            f"have {tuple(exp_avg.shape)} and {tuple(exp_inf.shape)}"
        )
    if not isinstance(step, Tensor):
        raise RuntimeError(
            "API has changed, `state_steps` argument must contain a list of singleton tensors"
        )
    if differentiable and p.is_leaf and p.requires_grad:
        raise RuntimeError(
            "a leaf Variable that requires grad is being used in an in-place operation: "
            "differentiable=True can step only tensors that are no leaves (clones of "
            "parameters). To differentiate through steps of plain parameters use the "
            "functional pair: tx = functional_adamax.adamax(...), "
            "params, state = functional_adamax.step(tx, grads, state, params)"
        )
    if not torch.is_inference_mode_enabled() and any(
        x.is_inference() for x in (p, exp_avg, exp_inf, step)
    ):
        raise RuntimeError(
            "Inplace update to inference tensor outside InferenceMode is not allowed: the "
            "parameter or its state was made in torch.inference_mode()"
        )
    if group["capturable"]:
        devices = _get_capturable_supported_devices(supports_xla=not uses_foreach(group, [p]))
        if not (p.device.type == step.device.type and p.device.type in devices):
            raise AssertionError(
                "If capturable=True, params and state_steps must be on supported devices: "
                f"{devices}."
            )


def warn_about_group(group: dict[str, Any]) -> None:
    """Warn of an eps that rounds to zero, and of different parameters that are one memory."""
    _check.warn_if_eps_vanishes(group["eps"], group["params"], group.get("state_dtype"))
    params = list(dict.fromkeys(group["params"]))
    pair = _tree.tied(params)
    if pair is not None:
        names = group.get("param_names") or [f"params[{i}]" for i in range(len(group["params"]))]
        named = dict(zip(group["params"], names, strict=True))
        a, b = (named[params[i]] for i in pair)
        _check.warn(
            f"{a} and {b} are the same memory: each step writes it once for each of them, from a "
            "state of its own. Give the optimizer one of them"
        )
