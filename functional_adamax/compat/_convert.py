"""Between the checkpoints of ``torch.optim.Adamax`` and functional states.

A torch state dict numbers its parameters in the order the optimizer was given them; a tree
names them. They are paired by name where the state dict has names (an optimizer made from
``named_parameters()``), or where the caller gives them, and otherwise in the order in which
the tree was built, that of ``dict(module.named_parameters())`` for ``module.parameters()``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .. import _check, _rule, _transform, _tree
from .._adamax import Adamax, AdamaxState, init_leaf
from .._tree import Tree
from ._loading import scalar_dtype
from ._optimizer import Optimizer as CompatOptimizer


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
        ValueError: names, number or shapes of the parameters do not fit.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adamax(model.parameters())
        >>> params = {name: p.detach().clone() for name, p in model.named_parameters()}
        >>> state_from_torch(optimizer.state_dict(), params).step["bias"]
        tensor(0., dtype=torch.float64)
    """
    state_dict = _as_dict(state_dict)
    leaves, spec = _tree.flatten(params)
    cells = [init_leaf(p, state_dtype) for p in leaves]
    for i, key, _ in _pairs(state_dict, params, order):
        saved = state_dict["state"].get(key)
        if not saved:
            continue
        p, step = leaves[i], cells[i][0]
        step = torch.full_like(step, float(saved["step"]))
        moments = []
        for name in ("exp_avg", "exp_inf"):
            if saved[name].shape != p.shape:
                raise ValueError(
                    f"{name} of parameter {key} in the state dict must have the shape of "
                    f"{_tree.paths(spec, 'params')[i]}, {tuple(p.shape)}, "
                    f"got {tuple(saved[name].shape)}; give the names of the parameters as order="
                )
            dtype = _rule.moment_dtype(p, state_dtype)
            moments.append(saved[name].detach().to(device=p.device, dtype=dtype, copy=True))
        cells[i] = (step, *moments)
    return AdamaxState(*(_tree.unflatten(spec, column) for column in zip(*cells, strict=True)))


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
        ValueError: names, number or structure do not fit.

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
    template = _as_dict(state_dict)
    spec = _tree.flatten(params)[1]
    columns = [
        _tree.match(spec, tree, f"state.{name}", "params")
        for name, tree in zip(AdamaxState._fields, state, strict=True)
    ]
    entries: dict[Any, dict[str, Tensor]] = {}
    for i, key, group in _pairs(template, params, order):
        step, exp_avg, exp_inf = (column[i] for column in columns)
        if isinstance(step, Tensor) and step.item() > 0:
            capturable = group.get("capturable", False)
            dtype = torch.float32 if capturable else scalar_dtype()
            device = exp_avg.device if capturable else torch.device("cpu")
            entries[key] = {
                "step": step.detach().to(dtype=dtype, device=device, copy=True),
                "exp_avg": exp_avg.detach().clone(),
                "exp_inf": exp_inf.detach().clone(),
            }
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
        ValueError: names or number of the parameters do not fit, or the groups differ in
            ``maximize`` or ``state_dtype``, which a transform has once.

    Example:
        >>> optimizer = torch.optim.Adamax([torch.zeros(2)], lr=0.1)
        >>> hyperparameters_from_torch(optimizer, torch.zeros(2))["lr"]
        0.1
    """
    state_dict = _as_dict(state_dict)
    leaves, spec = _tree.flatten(params)
    groups: list[Any] = [None] * len(leaves)
    for i, _, group in _pairs(state_dict, params, order):
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

    def tree(read: Any) -> Any:
        values = [None if group is None else read(group) for group in groups]
        values = [_plain(x) for x in values]
        known = [x for x, group in zip(values, groups, strict=True) if group is not None]
        if known and all(_transform.same(value, known[0]) for value in known):
            return known[0]
        return _tree.unflatten(spec, values)

    return {
        "lr": tree(lambda group: group["lr"]),
        "betas": (tree(lambda group: group["betas"][0]), tree(lambda group: group["betas"][1])),
        "eps": tree(lambda group: group["eps"]),
        "weight_decay": tree(lambda group: group["weight_decay"]),
        "maximize": once("maximize", False),
        "state_dtype": once("state_dtype", None),
    }


def _plain(value: Any) -> Any:
    """A hyperparameter of a group as the functional side takes it: a number, or a 0-d copy."""
    if isinstance(value, Tensor):
        return value.detach().clone().reshape(())
    return value if value is None or isinstance(value, (int, float)) else float(value)


def _as_dict(given: dict[str, Any] | Optimizer) -> dict[str, Any]:
    """The state dict, of an Adamax."""
    state_dict = given.state_dict() if isinstance(given, Optimizer) else given
    if isinstance(given, Optimizer):
        right, got = _is_adamax(given), type(given).__name__
    else:
        groups, entries = state_dict["param_groups"], state_dict["state"].values()
        right = all({"lr", "betas", "eps", "weight_decay"} <= x.keys() for x in groups) and all(
            not x or set(AdamaxState._fields) <= x.keys() for x in entries
        )
        got = "that of another optimizer"
    if not right:
        raise TypeError(
            f"an Adamax is needed, or its state dict, got {got}: "
            "make the transform, and init its state"
        )
    return state_dict


def _is_adamax(optimizer: Optimizer) -> bool:
    if not isinstance(optimizer, CompatOptimizer):
        return isinstance(optimizer, torch.optim.Adamax)
    transforms = map(optimizer.transform_of, optimizer.param_groups)
    return all(isinstance(x, Adamax) and not x.decoupled for x in transforms)


def _pairs(
    state_dict: dict[str, Any], params: Tree, order: Sequence[str] | None
) -> list[tuple[int, Any, dict[str, Any]]]:
    """Pair leaves with numbers: (position of the leaf, number in the state dict, its group)."""
    owners = [(key, group) for group in state_dict["param_groups"] for key in group["params"]]
    leaves = _check.parameters(params)[0]
    positions = [i for i in _tree.insertion_order(params) if leaves[i] is not None]
    if len(owners) != len(positions):
        raise ValueError(
            f"the state dict has {len(owners)} parameters and params has {len(positions)} tensors"
        )
    if order is None and all(isinstance(key, str) for key, _ in owners):
        order = [key for key, _ in owners]  # a checkpoint of torch.distributed.checkpoint
    if order is None and all("param_names" in group for group in state_dict["param_groups"]):
        order = [name for group in state_dict["param_groups"] for name in group["param_names"]]
    if order is not None:
        names = _tree.names(_tree.flatten(params)[1])
        by_name = {names[i]: i for i in positions}
        if sorted(order) != sorted(by_name):
            missing, unknown = sorted({*by_name} - {*order}), sorted({*order} - {*by_name})
            raise ValueError(
                "order must name every tensor of params once: "
                f"missing {missing[:3]}, unknown {unknown[:3]}"
            )
        positions = [by_name[name] for name in order]
    return [(i, key, group) for i, (key, group) in zip(positions, owners, strict=True)]
