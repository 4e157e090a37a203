"""Run the rule, each leaf by the fastest executor that fits.

An executor is another spelling of ``_rule.step``. It takes only what it can do bit-equally on a
CPU (``tests/test_executors.py``); the rule itself takes the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from . import (
    _apply,
    _batched,
    _context,
    _foreach,
    _inplace,
    _kernel,
    _recorded,
    _rule,
    _tree,
    _triton,
)
from ._rule import Columns, Leaf

Row = Sequence[Any]
"""The results for one leaf: the update or the new parameter, t, m and u."""


def compute(
    leaves: list[Leaf], ready: list[Leaf] | None, maximize: bool, decoupled: bool, add: bool
) -> Sequence[Row]:
    """Step ``leaves``, purely; with ``add``, the new parameters take the place of the updates.

    A leaf without gradient has the update None, or its parameter as it is. ``ready`` is what
    ``_kernel.ready`` made of the leaves.
    """
    batch = None if ready else _batched.step(leaves, maximize, decoupled, add)
    if batch is not None:
        return batch
    if ready:
        differentiated = [_is_differentiated(leaf) for leaf in leaves]
        if not any(differentiated):
            return _native(ready, maximize, decoupled, add)
        if all(differentiated) and all(map(_recorded.takes, ready)):
            return _recorded.step(ready, maximize, decoupled, add, native=True)
    return [_one(leaf, maximize, decoupled, add) for leaf in leaves]


def compiled(
    columns: Columns, rates: list[tuple[Any, ...]], maximize: bool, decoupled: bool, add: bool
) -> list[list[Any]] | None:
    """What ``compute`` returns, column by column, as one operator that a compiler traces, or None.

    ``rates`` has the hyperparameters, lr to weight_decay, of each leaf, or once those of all.
    """
    from . import _operator  # which needs the compiler, and takes long to import

    return _operator.step(columns, rates, maximize, decoupled, add)


def compiled_write(
    columns: Columns, rates: tuple[Any, ...], maximize: bool, decoupled: bool
) -> Callable[[], None] | None:
    """Return ``write`` as operators that a compiler traces, or None.

    All leaves have a gradient, and the same ``rates``, lr to weight_decay.
    """
    from . import _operator

    return _operator.overwrite(columns, rates, maximize, decoupled)


def _one(leaf: Leaf, maximize: bool, decoupled: bool, add: bool) -> Row:
    if leaf.g is None:
        return leaf.p if add else None, leaf.t, leaf.m, leaf.u
    if not _context.traced():
        ready = _kernel.ready([leaf], maximize, decoupled)
        if not _is_differentiated(leaf):
            if ready:
                return _native(ready, maximize, decoupled, add)[0]
        elif _recorded.takes(leaf):
            native = ready is not None
            return _recorded.step(ready or [leaf], maximize, decoupled, add, native)[0]
    return _by_rule(leaf, maximize, decoupled, add)


def _by_rule(leaf: Leaf, maximize: bool, decoupled: bool, add: bool) -> Row:
    update, *state = _rule.step(leaf, maximize, decoupled)
    return _apply.add(leaf.p, update) if add else update, *state


def _is_differentiated(leaf: Leaf) -> bool:
    """Whether autograd records what enters the moments or scales them."""
    if not torch.is_grad_enabled():
        return False
    if leaf.g.requires_grad or leaf.m.requires_grad:  # as they nearly always do if anything does
        return True
    inputs = leaf if _rule.decays(leaf) else leaf[1:]
    return any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


def _native(leaves: list[Leaf], maximize: bool, decoupled: bool, add: bool) -> list[Row]:
    inside = add and not _context.recorded(leaf.p for leaf in leaves)
    rows: list[Row] = [row[:4] for row in _kernel.step(leaves, maximize, decoupled, inside)]
    if add and not inside:
        sums = (_apply.add(leaf.p, row[0]) for leaf, row in zip(leaves, rows, strict=True))
        rows = [(p, *row[1:]) for p, row in zip(sums, rows, strict=True)]
    return rows


def plan(
    leaves: list[Leaf],
    maximize: bool,
    decoupled: bool,
    foreach: bool | None = None,
    *,
    ready: bool = False,
) -> Callable[[], None]:
    """Return what steps ``leaves``, each of which has a gradient, over their p, m, u and t.

    What an executor does not take in place is computed before, by the rule: if that raises, nothing
    is written. ``foreach`` asks for torch's foreach kernels, or with False for none of them. None
    means ours on CUDA devices, and for what they do not take, torch's where ``torch.optim`` would
    use them, for plain tensors on CUDA devices. ``ready`` says that ``_kernel.ready`` returned the
    leaves.
    """
    if foreach is None and not ready:
        foreach = all(_plain_cuda(leaf.p) for leaf in leaves)
        if any(map(_triton.takes, leaves)):
            return partial(_by_triton, leaves, maximize, decoupled, foreach)
    return _plan(leaves, maximize, decoupled, bool(foreach), ready)


def _plan(
    leaves: list[Leaf], maximize: bool, decoupled: bool, foreach: bool, ready: bool
) -> Callable[[], None]:
    in_turn = follow_writes(leaves)
    if not (foreach or in_turn):
        taken = leaves if ready else _kernel.ready(leaves, maximize, decoupled)
        if taken and _kernel.are_apart(taken):
            return partial(_by_kernel, taken, maximize, decoupled)
    return _by_torch(leaves, maximize, decoupled, foreach, in_turn)


def follow_writes(leaves: list[Leaf]) -> bool:
    """Whether a hyperparameter lies where a step over ``leaves`` would write."""
    hyper = [x for leaf in leaves for x in leaf[5:] if isinstance(x, Tensor)]
    if not hyper:
        return False
    written = _tree.storages(x for leaf in leaves for x in (leaf.p, leaf.m, leaf.u, leaf.t))
    return not written.isdisjoint(_tree.storages(hyper))


def _by_kernel(leaves: list[Leaf], maximize: bool, decoupled: bool) -> None:
    if not _kernel.write(leaves, maximize, decoupled):  # an odd counter, or memory that was moved
        _by_torch(leaves, maximize, decoupled, foreach=False, in_turn=False)()


def _by_triton(leaves: list[Leaf], maximize: bool, decoupled: bool, foreach: bool) -> None:
    ours = [_triton.takes(leaf) for leaf in leaves]
    if _triton.write(list(compress(leaves, ours)), maximize, decoupled):
        leaves = [leaf for leaf, taken in zip(leaves, ours, strict=True) if not taken]
    _plan(leaves, maximize, decoupled, foreach, ready=False)()


def _by_torch(
    leaves: list[Leaf], maximize: bool, decoupled: bool, foreach: bool, in_turn: bool
) -> Callable[[], None]:
    """Plan in torch's operations; with ``in_turn``, each step sees what those before it wrote."""
    inside = [_inplace.takes(leaf, decoupled) for leaf in leaves]
    if not all(inside):
        in_turn = in_turn or not _tree.are_apart([x for leaf in leaves for x in leaf[:5]])
    together: list[Leaf] = []
    steps: list[Callable[[], None]] = []
    for leaf, taken in zip(leaves, inside, strict=True):
        if taken and foreach:
            together.append(leaf)
        elif taken:
            steps.append(partial(_inplace.write, leaf, maximize))
        elif in_turn:
            steps.append(partial(_write_by_rule, leaf, maximize, decoupled))
        else:
            steps.append(partial(_copy, leaf, _by_rule(leaf, maximize, decoupled, add=True)))
    return partial(_run, [*steps, partial(_foreach.write, together, maximize)])


def _run(steps: list[Callable[[], None]]) -> None:
    for step in steps:
        step()


def _plain_cuda(p: torch.Tensor) -> bool:
    return type(p) in (torch.Tensor, torch.nn.Parameter) and p.is_cuda


def _write_by_rule(leaf: Leaf, maximize: bool, decoupled: bool) -> None:
    _copy(leaf, _by_rule(leaf, maximize, decoupled, add=True))


def _copy(leaf: Leaf, new: Row) -> None:
    p, t, m, u = new
    leaf.p.copy_(p)
    torch._foreach_copy_([leaf.t], [t])  # Dynamo may drop a copy_ into a float64 scalar
    leaf.m.copy_(m)
    leaf.u.copy_(u)
