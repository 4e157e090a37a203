"""One whole step, from gradients to new parameters, pure or over donated buffers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ._core import checks, growth
from ._core.links import call_update, checked_link
from ._core.plans import Plan, by_update, compiled
from ._core.pytree import Tree
from ._core.transform import GradientTransformation, Update


def step(
    tx: GradientTransformation,
    grads: Tree,
    state: Any,
    params: Tree,
    *,
    donate: bool = False,
    **extra: Any,
) -> tuple[Tree, Any]:
    """Return the parameters and the state after one step of ``tx``.

        updates, state = tx.update(grads, state, params)
        params = apply_updates(params, updates)

    Args:
        tx: any transform.
        grads: gradients, a tree like ``params``; None leaves its parameter alone.
        state: the state ``tx`` last returned.
        params: the parameters.
        donate: permit the step to write its results over the tensors of ``params`` and
            ``state``, which the caller gives up; only what is returned counts. The
            values are the same bit for bit. Under ``torch.compile``, a ``torch.func``
            transform or forward-mode differentiation, and where grad mode is on and an
            input requires grad, nothing is written. Default: False, inputs are never written.
        **extra: passed to ``tx.update``.

    Returns:
        ``(params, state)``.

    Raises:
        ValueError: with ``donate``, two of the donated tensors, or a donated tensor and a
            gradient, share memory.
        TypeError: ``tx`` is no transform.
        Exception: whatever ``tx.update`` raises for bad input. Everything is checked
            before anything is written.

    Example:
        >>> from functional_adamax import adamax
        >>> tx, params = adamax(lr=0.5), torch.tensor([1.0, 2.0])
        >>> state = tx.init(params)
        >>> params, state = step(tx, torch.tensor([1.0, -1.0]), state, params, donate=True)
        >>> params
        tensor([0.5000, 2.5000])
    """
    if not hasattr(tx, "init"):  # which a dict has not, unlike update
        tx = checked_link("tx", tx)  # raises, naming what was given
    if params is None and grads is not None:
        checks.params_given(None, "to step")
    step = plan(tx, grads, state, params, donate, **extra)
    new = step()
    if step.problem is not None:
        raise ValueError(step.problem)
    if not step.in_place:
        growth.note((params, state), new)
    return new


def plan(
    tx: GradientTransformation,
    grads: Tree,
    state: Any,
    params: Tree,
    donate: bool = False,
    **extra: Any,
) -> Plan:
    """Return the step of any transform before it is taken."""
    if isinstance(tx.update, Update):
        transform = tx.update.transform
        if torch.compiler.is_compiling() and transform.is_local and not extra:
            for executor in compiled:
                found = executor.plan(transform, grads, state, params, donate)
                if found is not None:
                    return found
        return transform.plan(grads, state, params, donate, **extra)
    return by_update(partial(_update, tx), grads, state, params, donate, extra)


def _update(
    tx: GradientTransformation, grads: Tree, state: Any, params: Tree, **extra: Any
) -> tuple[Tree, Any]:
    return call_update(tx, grads, state, params, extra)
