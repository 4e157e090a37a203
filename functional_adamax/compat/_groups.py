"""Checks on a parameter group, all of them before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .._core import checks, context, memory, numerics
from .._core.private import optim


def uses_foreach(group: dict[str, Any], params: list[Tensor]) -> bool:
    """Whether torch would step ``params`` by its foreach form."""
    foreach: bool | None = group["foreach"]
    if foreach is None:
        foreach = optim.fused_or_foreach(params, group["differentiable"], use_fused=False)[1]
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
    for name, p in zip(names_of(group), group["params"], strict=True):
        _check_parameter(name, p, state.get(p, {}), group, differentiable)


def warn_if_out_of_range(group: dict[str, Any], position: int) -> bool:
    """Warn of numbers with which torch would not make a group, but steps one, and say whether."""
    numbers = {name: group[name] for name in ("lr", "eps", "weight_decay")}
    numbers |= {f"betas[{i}]": beta for i, beta in enumerate(group["betas"])}
    for name, value in numbers.items():
        if isinstance(value, Tensor) and not value.is_cpu:
            continue  # nothing here waits for a device
        end = 1.0 if name.startswith("betas") else math.inf
        if not (0.0 <= value < end or (value == math.inf and end == math.inf)):
            checks.warn(
                f"{name} of parameter group {position} should be in [0, {end:g}), got {value}: the "
                "step is taken with it, as torch.optim.Adamax takes it. A scheduler may have gone "
                "too far"
            )
            return True
    return False


def names_of(group: dict[str, Any]) -> list[str]:
    """How messages name the parameters of a group."""
    names, count = group.get("param_names", ()), len(group["params"])
    return list(names) if len(names) == count else [f"params[{i}]" for i in range(count)]


def _check_parameter(
    name: str, p: Tensor, state: dict[str, Any], group: dict[str, Any], differentiable: bool
) -> None:
    grad = p.grad
    if grad is None:
        return
    if grad.is_sparse:
        raise RuntimeError(f"Adamax does not support sparse gradients, as {name} has")
    if not checks.trainable(p):
        raise NotImplementedError(
            f"Adamax steps floating and complex parameters, but {name} is {p.dtype}: set its "
            "gradient to None"
        )
    if grad.shape != p.shape:
        raise RuntimeError(
            f"the gradient of {name} must have its shape, {tuple(p.shape)}, but has "
            f"{tuple(grad.shape)}"
        )
    exp_avg, exp_inf = state.get("exp_avg", p), state.get("exp_inf", p)
    step = state.get("step", p)
    if grad.dtype != exp_avg.dtype and group.get("state_dtype") is None:
        raise RuntimeError(
            f"expected a gradient of the dtype of the moments, {exp_avg.dtype}, but got "
            f"{grad.dtype} for {name}; pass state_dtype= to step in a dtype of its own"
        )
    if not _are_moments(exp_avg, exp_inf, p):
        raise RuntimeError(
            f"exp_avg and exp_inf of {name} must have the shape of their parameter and be "
            f"{'complex' if p.is_complex() else 'floating'} like it, but are "
            f"{checks.describe(exp_avg)} and {checks.describe(exp_inf)}"
        )
    if not isinstance(step, Tensor):
        raise RuntimeError(
            "API has changed, `state_steps` argument must contain a list of singleton tensors"
        )
    if "step" in state and step.numel() != 1:
        raise RuntimeError(f"step of {name} must have one element, got {checks.describe(step)}")
    if differentiable and p.is_leaf and p.requires_grad:
        raise RuntimeError(
            "a leaf Variable that requires grad is being used in an in-place operation: "
            "differentiable=True can step only tensors that are no leaves (clones of "
            "parameters). To differentiate through steps of plain parameters use the "
            "functional pair: tx = functional_adamax.adamax(...), "
            "params, state = functional_adamax.step(tx, grads, state, params)"
        )
    check_writable([(name, p), *((f"{k} of {name}", x) for k, x in state.items())])
    if group["capturable"]:
        devices = optim.capturable_devices(supports_xla=not uses_foreach(group, [p]))
        if not (p.device.type == step.device.type and p.device.type in devices):
            raise AssertionError(
                "If capturable=True, params and state_steps must be on supported devices: "
                f"{devices}."
            )
    else:
        _check_range(p, state.get("step", torch.zeros(())), group)


def _are_moments(exp_avg: Any, exp_inf: Any, p: Tensor) -> bool:
    return all(
        checks.trainable(x) and x.shape == p.shape and x.is_complex() == p.is_complex()
        for x in (exp_avg, exp_inf)
    )


def check_writable(named: Iterable[tuple[str, Any]]) -> None:
    """Raise what torch raises where it would write to an expanded tensor, or one of inference."""
    for name, x in named:
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            continue
        if any(n > 1 and stride == 0 for n, stride in zip(x.shape, x.stride(), strict=True)):
            raise RuntimeError(
                "unsupported operation: more than one element of the written-to tensor refers to a "
                f"single memory location. Please clone() {name} before the step"
            )
        if x.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                "Inplace update to inference tensor outside InferenceMode is not allowed: "
                f"{name} was made in torch.inference_mode()"
            )


def _check_range(p: Tensor, step: Tensor, group: dict[str, Any]) -> None:
    """Raise what torch raises for numbers: a bias of zero, and what the moments cannot hold."""
    given = group["lr"], group["weight_decay"], group["betas"][0]
    if context.traced() or any(isinstance(x, Tensor) and not x.is_cpu for x in given):
        return  # a trace has no values, and nothing here waits for a device
    values: list[Any] = [
        x.detach().reshape(()) if isinstance(x, Tensor) else float(x) for x in given
    ]
    lr, decay, b1 = values
    foreach = uses_foreach(group, [p])
    lr = float(lr) if foreach else lr
    t = (step.detach() + 1).item() if step.is_cpu and memory.has_address(step) else 1.0
    rate = lr / (1 - b1**t)
    dtype = numerics.moment_dtype(p, group.get("state_dtype"))
    if max(abs(rate), abs(decay)) <= torch.finfo(dtype).max:
        return
    x = torch.zeros((), dtype=dtype)
    x = x.real if foreach else x
    if decay != 0:
        x.add(x, alpha=float(decay))
    x.real.addcdiv_(x.real, x.real, value=float(-rate))


def warn_about_group(group: dict[str, Any]) -> None:
    """Warn of an eps that rounds to zero, and of different parameters that are one memory."""
    checks.warn_if_eps_vanishes(group["eps"], group["params"], group.get("state_dtype"))
    params = list(dict.fromkeys(group["params"]))
    pair = memory.tied(params)
    if pair is not None:
        named = dict(zip(group["params"], names_of(group), strict=True))
        a, b = (named[params[i]] for i in pair)
        checks.warn(
            f"{a} and {b} are the same memory: each step writes it once for each of them, from a "
            "state of its own. Give the optimizer one of them"
        )
