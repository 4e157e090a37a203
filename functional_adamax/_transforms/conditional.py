"""Transforms that are applied on some calls only, as a condition says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._core import checks, pytree, selection
from .._core.links import Said, call_update, checked_link, remade, settled
from .._core.node import public_node
from .._core.pytree import Tree
from .._core.transform import GradientTransformation, Transform


@public_node
class ConditionalState(NamedTuple):
    """State of a transform that a condition guards."""

    count: Tensor  # type: ignore[assignment]  # (), int64: number of update calls so far
    inner: Any  # state of the transform, of the calls on which it was applied


@dataclass(frozen=True, eq=False, repr=False)
class Conditionally(Transform):
    """A transform applied where a condition on the count holds."""

    is_local: ClassVar[bool] = True
    asks: ClassVar[bool] = True

    inner: GradientTransformation
    condition: Callable[[Tensor], Any]
    otherwise: str = "pass"

    def init(self, params: Tree) -> ConditionalState:
        return ConditionalState(pytree.count(params), self.inner.init(params))

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        if not isinstance(state, ConditionalState):
            return self
        inner = settled(self.inner, state.inner, updates, params)
        return remade(self, inner=inner, condition=Said(self._holds(state)))

    def update(
        self, updates: Tree, state: ConditionalState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, ConditionalState]:
        checks.state(state, ConditionalState)
        holds = self._holds(state)
        shown = pytree.tree_map(lambda u: selection.presentable(u, holds), updates)
        new, inner = call_update(self.inner, shown, state.inner, params, extra)
        if self.otherwise == "zero":
            updates = pytree.tree_map(lambda u: None if u is None else torch.zeros_like(u), updates)
        return (
            selection.select(holds, new, updates),
            ConditionalState(state.count + 1, selection.select(holds, inner, state.inner)),
        )

    def _holds(self, state: ConditionalState) -> Tensor:
        return selection.flag(self.condition(state.count), "condition", state.count.device)


def conditionally(
    inner: GradientTransformation, condition: Callable[[Tensor], Any], otherwise: str = "pass"
) -> GradientTransformation:
    """Apply ``inner`` on those calls on which ``condition(count)`` holds.

        updates, inner_state = inner(updates)     if condition(count)
        updates, inner_state = updates or 0, as they were      else

    Args:
        inner: any transform. It is computed on every call, and its results are taken or not.
        condition: from the number of ``update`` calls so far (() int64, first call: 0) to a bool
            or a tensor of shape () of bools. What is not taken reaches no derivative.
        otherwise: "pass" lets the updates through as they are, "zero" makes them zero.
            Default: "pass".

    Returns:
        A transform with the state ``ConditionalState(count, inner)``.

    Example:
        >>> tx = conditionally(scale(10.0), lambda count: count % 2 == 1)
        >>> state = tx.init(torch.zeros(1))
        >>> for _ in range(2):
        ...     updates, state = tx.update(torch.ones(1), state)
        ...     print(updates)
        tensor([1.])
        tensor([10.])
    """
    if not callable(condition):
        raise TypeError(f"condition must be a function of the count, got {condition!r}")
    if otherwise not in ("pass", "zero"):
        raise ValueError(f"otherwise must be 'pass' or 'zero', got {otherwise!r}")
    return Conditionally(checked_link("inner", inner), condition, otherwise).pair()
