"""Between the checkpoints of ``torch.optim.Adamax`` and functional states.

A torch state dict numbers its parameters in the order the optimizer was given them; a tree
names them. They are paired by name where the state dict has names (an optimizer made from
``named_parameters()``), or where the caller gives them, and otherwise in the order in which
the tree was built, that of ``dict(module.named_parameters())`` for ``module.parameters()``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .._core import numerics, pytree, transform
from .._core.pytree import Tree
from .._methods.adamax import Adamax, AdamaxState
from ._entries import misfit
from ._loading import scalar_dtype
from ._saved import as_dict, pairs


def state_from_torch(
    state_dict: dict[str, Any] | Optimizer,
    params: Tree,
    *,
    order: Sequence[str] | None = None,
    state_dtype: torch.dtype | None = None,
) -> AdamaxState:
    """Return the functional state of a checkpoint of ``torch.optim.Adamax`` or ``compat.Adamax``.

    Args:
        state_dict: what ``optimizer.state_dict()`` returned, of any version; or the optimizer.
        params: the tree of parameters the state is for.
        order: the name of each leaf, its path joined by dots, in the order in which the
            optimizer was given its parameters. Default: the state dict's own ``param_names``,
            else the order in which the tree was built.
        state_dtype: dtype of the moments, the ``state_dtype`` of the transform that will go
            on. Default: None, the dtype of each parameter.

    Returns:
        ``AdamaxState``, of copies on the devices of ``params``. A parameter that had not been
        stepped gets the state ``init`` would give it.

    Raises:
        TypeError: it is no Adamax.
        ValueError: names or number of the parameters do not fit, or an entry is not what Adamax
            keeps for its parameter.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adamax(model.parameters())
        >>> params = {name: p.detach().clone() for name, p in model.named_parameters()}
        >>> state_from_torch(optimizer.state_dict(), params).step["bias"]
        tensor(0., dtype=torch.float64)
    """
    state_dict = as_dict(state_dict)
    leaves, spec = pytree.flatten(params)
    paths = pytree.paths(spec, "params")
    cells = _cells(params, state_dtype)
    for i, key, _ in pairs(state_dict, params, order):
        saved = state_dict["state"].get(key, {})
        if saved == {}:
            continue
        p = leaves[i]
        problem = misfit(saved, _kept(cells[i]), f"parameter {key!r} in the state dict", paths[i])
        if problem is not None:
            raise ValueError(
                f"{problem}; if it belongs to another parameter, give the names of the parameters "
                "as order="
            )
        step = torch.full_like(cells[i][0], float(saved["step"]))
        dtype = numerics.moment_dtype(p, state_dtype)
        moments = [
            saved[name].detach().to(device=p.device, dtype=dtype, copy=True)
            for name in ("exp_avg", "exp_inf")
        ]
        cells[i] = (step, *moments)
    return AdamaxState(*(pytree.unflatten(spec, column) for column in zip(*cells, strict=True)))


def state_to_torch(
    state: AdamaxState,
    params: Tree,
    state_dict: dict[str, Any] | Optimizer,
    *,
    order: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return a state dict for ``torch.optim.Adamax`` or ``compat.Adamax`` from a functional state.

    Args:
        state: the functional state.
        params: the tree of parameters the state is for.
        state_dict: a state dict of the optimizer that will load the result, or the optimizer;
            it gives the groups and their hyperparameters, its state is not looked at.
        order: as for ``state_from_torch``.

    Returns:
        A new state dict that shares no tensor with its inputs, for ``load_state_dict`` or
        ``torch.save``; ``torch.load(weights_only=True)`` accepts it. A leaf that has seen no
        gradient has no state, as in torch.

    Raises:
        TypeError: ``state`` is no ``AdamaxState``.
        ValueError: names, number or structure do not fit, or the state of a leaf is not what
            Adamax keeps for it.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adamax(model.parameters())
        >>> params = {name: p.detach().clone() for name, p in model.named_parameters()}
        >>> state = state_from_torch(optimizer, params)
        >>> optimizer.load_state_dict(state_to_torch(state, params, optimizer))
    """
    if not isinstance(state, AdamaxState):
        raise TypeError(
            f"state must be an AdamaxState, got {type(state).__name__}; of a ScheduledState "
            "pass .inner"
        )
    template = as_dict(state_dict)
    spec = pytree.flatten(params)[1]
    paths = pytree.paths(spec, "params")
    columns = [
        pytree.match(spec, tree, f"state.{name}", "params")
        for name, tree in zip(AdamaxState._fields, state, strict=True)
    ]
    cells = _cells(params, None)
    entries: dict[Any, dict[str, Tensor]] = {}
    for i, key, group in pairs(template, params, order):
        step, exp_avg, _ = row = [column[i] for column in columns]
        if not isinstance(step, Tensor):
            continue
        kept = _kept(cells[i])
        entry = dict(zip(AdamaxState._fields, row, strict=True))
        problem = misfit(entry, kept, f"state at {paths[i]}", paths[i])
        if problem is not None:
            raise ValueError(f"{problem}; give the state of these params")
        if step.item() > 0:
            capturable = group.get("capturable", False)
            dtype = torch.float32 if capturable else scalar_dtype()
            device = exp_avg.device if capturable else torch.device("cpu")
            entries[key] = {name: x.detach().clone() for name, x in entry.items()}
            entries[key]["step"] = step.detach().to(dtype=dtype, device=device, copy=True)
    return {"state": entries, "param_groups": copy.deepcopy(template["param_groups"])}


def hyperparameters_from_torch(
    state_dict: dict[str, Any] | Optimizer,
    params: Tree,
    *,
    order: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the keyword arguments of ``functional_adamax.adamax`` that continue a checkpoint.

    Args:
        state_dict: what ``optimizer.state_dict()`` returned; or the optimizer.
        params: the tree of parameters.
        order: as for ``state_from_torch``.

    Returns:
        ``lr, betas, eps, weight_decay, maximize, state_dtype``. A hyperparameter on which the
        groups differ is a tree shaped like ``params``.

    Raises:
        TypeError: it is no Adamax.
        ValueError: names or number of the parameters do not fit, a hyperparameter is not what
            Adamax has, or the groups differ in ``maximize`` or ``state_dtype``, which a transform
            has once.

    Example:
        >>> optimizer = torch.optim.Adamax([torch.zeros(2)], lr=0.1)
        >>> hyperparameters_from_torch(optimizer, torch.zeros(2))["lr"]
        0.1
    """
    state_dict = as_dict(state_dict)
    leaves, spec = pytree.flatten(params)
    groups: list[Any] = [None] * len(leaves)
    for i, _, group in pairs(state_dict, params, order):
        groups[i] = group
    present = [group for group in groups if group is not None]

    def once(name: str, default: Any) -> Any:
        values = [group.get(name, default) for group in present]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"the groups of the state dict differ in {name}, which a transform has once; "
                "continue them with one transform for each"
            )
        return values[0] if values else default

    def tree(name: str, place: int | None = None) -> Any:
        values = [None if group is None else _plain(name, place, group[name]) for group in groups]
        known = [x for x, group in zip(values, groups, strict=True) if group is not None]
        if known and all(transform.same(value, known[0]) for value in known):
            return known[0]
        return pytree.unflatten(spec, values)

    return {
        "lr": tree("lr"),
        "betas": (tree("betas", 0), tree("betas", 1)),
        "eps": tree("eps"),
        "weight_decay": tree("weight_decay"),
        "maximize": once("maximize", False),
        "state_dtype": once("state_dtype", None),
    }


def _plain(name: str, place: int | None, value: Any) -> Any:
    """A hyperparameter of a group as the functional side takes it: a number, or a 0-d copy."""
    if place is not None:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(f"{name} in the state dict must be two numbers, got {value!r}")
        name, value = f"{name}[{place}]", value[place]
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().clone().reshape(())
    if not isinstance(value, Real):
        raise ValueError(
            f"{name} in the state dict must be a number or a tensor with one element, got {value!r}"
        )
    return value if isinstance(value, (int, float)) else float(value)


def _cells(params: Tree, state_dtype: torch.dtype | None) -> list[tuple[Any, ...]]:
    """The step and the moments of each parameter before its first gradient."""
    leaves, spec = pytree.flatten(params)
    fresh = Adamax(state_dtype=state_dtype).fresh(spec, leaves)
    return list(zip(*(pytree.flatten(tree)[0] for tree in fresh), strict=True))


def _kept(cell: Sequence[Any]) -> dict[str, Tensor]:
    """What Adamax keeps for a parameter, by name."""
    named = zip(AdamaxState._fields, cell, strict=True)
    return {name: x for name, x in named if isinstance(x, Tensor)}
