"""Who takes a step: the executor of each leaf, and why it is not a faster one.

A step is planned as ``step`` would plan it, and what it says of itself is shown; it is not taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ._core import checks, context, pytree
from ._core.links import checked_link
from ._core.plans import Plan
from ._core.pytree import Tree
from ._core.transform import GradientTransformation, Transform, Update
from ._execution import choice
from ._execution.choice import Taken
from ._execution.program import machine, whole
from ._schedules.scheduled import Counted

_UNLIKE = "its leaves are not all dense in memory, of one dtype and laid out alike"

Trees: TypeAlias = tuple[Tree, Any, Tree]
"""Gradients, state and parameters."""


@dataclass(frozen=True, repr=False)
class Explanation:
    """Who takes a step. It prints as a table, or as one line if all leaves are alike."""

    leaves: tuple[Taken, ...]
    """For each leaf its ``path``, its ``executor``, and ``why_not`` a faster one, or None."""

    def __repr__(self) -> str:
        kinds = {x[1:] for x in self.leaves}
        rows = [("every leaf", *x) for x in kinds] if len(kinds) == 1 else self.leaves
        texts = [[x or "" for x in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in texts]
        return "\n".join(lines) or "no leaves"


def explain(
    tx: GradientTransformation,
    params: Tree,
    grads: Tree = None,
    state: Any = None,
    *,
    donate: bool = False,
) -> Explanation:
    """Say for each leaf which executor takes its step, and why not a faster one.

    The values of a step do not depend on who takes it, its time does. From fast to slow:

    - ``"program"``: what the step does to a leaf was recorded once; it runs on a CPU over all
      leaves in one call, in one pass over memory. ``"kernel"``: the same for Adamax, written in
      C. ``"Triton"``: the same for Adamax on a GPU.
    - ``"torch's foreach"``, ``"torch in place"``: operations of torch that write, for Adamax.
      ``"one node of autograd"``: an Adamax step that is differentiated.
    - ``"the rule"``: the method, operation by operation. ``"as written"``: the ``update`` of the
      transform, operation by operation; transforms inside of it have executors of their own.
    - ``"none"``: the leaf has no gradient, and stays as it is.

    Args:
        tx: any transform.
        params: the parameters.
        grads: the gradients. Default: tensors like the parameters, for all that can have one.
        state: the state. Default: ``tx.init(params)``.
        donate: explain ``step(..., donate=True)``. Default: False.

    Returns:
        An ``Explanation``: ``leaves`` has a row ``(path, executor, why_not)`` for each leaf, and
        it prints as a table. To find it takes up to the time and the memory of a pure step. Nothing
        is written, and a schedule is asked once.

    Raises:
        ValueError, TypeError: the trees do not fit, or donated tensors share memory.

    Example:
        >>> params = {"w": torch.zeros(3), "b": torch.zeros(1).cfloat()}
        >>> explain(sgd(0.1), params)
        params['b']  the rule  it has a tensor in torch.complex64
        params['w']  program
    """
    tx = checked_link("tx", tx)
    grads = pytree.tree_map(_gradient, params) if grads is None else grads
    state = tx.init(params) if state is None else state
    if not isinstance(tx.update, Update):
        return _alike(grads, params, "as written", "it is a pair of functions")
    transform, trees = tx.update.transform.settled(state, grads, params), (grads, state, params)
    plan = _planned(transform, trees, donate)
    if isinstance(plan, choice.Step):
        return Explanation(tuple(plan.explained()))
    why = _why_not(transform, trees, donate)
    return _alike(grads, params, "program" if why is None else "as written", why)


def _gradient(p: Any) -> Tensor | None:
    """What stands for the gradient of a parameter."""
    return torch.zeros_like(p) if checks.trainable(p) else None


def _planned(transform: Transform, trees: Trees, donate: bool) -> Plan:
    plan = transform.plan(*trees, donate)
    while isinstance(plan, Counted):
        plan = plan.inner
    return plan


def _why_not(transform: Transform, trees: Trees, donate: bool) -> str | None:
    """Why a step of a whole transform is no program, or None if it is one."""
    if not machine.is_there():
        return f"programs do not run here: {machine.report().removeprefix('no: ')}"
    if context.traced():
        donate = False
        if context.only_vmaps() is None:
            return choice.FOLLOWED
    problem = whole.why_not(transform, *trees)
    if problem is not None:
        return problem
    plan = _planned(transform, trees, donate=True)
    plan.check()  # which asks the machine, and writes nothing
    if donate and plan.problem is not None:
        raise ValueError(plan.problem)
    if plan.new is None or not (donate or whole.update(transform, *trees) is None):
        return None
    recorded = torch.is_grad_enabled() and any(map(context.tracked, pytree.tensors(trees)))
    return choice.RECORDED if recorded else _UNLIKE


def _alike(grads: Tree, params: Tree, executor: str, why_not: str | None) -> Explanation:
    """An explanation that holds for all leaves, but for those that no program changes."""
    spec = pytree.flatten(params)[1]
    given = pytree.match(spec, grads, "grads", "params")
    pairs = zip(pytree.paths(spec, "params"), given, strict=True)
    rows = [
        Taken(path, *choice.NOBODY if g is None and why_not is None else (executor, why_not))
        for path, g in pairs
    ]
    return Explanation(tuple(rows))
