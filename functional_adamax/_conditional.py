"""Transforms that are applied on some calls only, as a condition says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from . import _tree
from ._chain import call_update, checked_link
from ._transform import GradientTransformation, Transform
from ._tree import Tree


class ConditionalState(NamedTuple):
    """State of a transform that a condition guards."""

    count: Tensor  # type: ignore[assignment]  # (), int64: number of update calls so far
    inner: Any  # state of the transform, of the calls on which it was applied


@dataclass(frozen=True, eq=False, repr=False)
class Conditionally(Transform):
    """A transform applied where a condition on the count holds."""

    name: ClassVar[str] = "conditionally"

    inner: GradientTransformation
    condition: Callable[[Tensor], Any]
    otherwise: str = "pass"

    def init(self, params: Tree) -> ConditionalState:
        tensors = _tree.tensors(params)
        device = tensors[0].device if tensors else None
        return ConditionalState(
            torch.zeros((), dtype=torch.int64, device=device), self.inner.init(params)
        )

    def update(
        self, updates: Tree, state: ConditionalState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, ConditionalState]:
        if not isinstance(state, ConditionalState):
            raise TypeError(
                f"state must be the ConditionalState that init returned, got {type(state).__name__}"
            )
        new, inner = call_update(self.inner, updates, state.inner, params, extra)
        if self.otherwise == "zero":
            updates = _tree.tree_map(lambda u: None if u is None else torch.zeros_like(u), updates)
        holds = self.condition(state.count)
        return (
            select(holds, new, updates),
            ConditionalState(state.count + 1, select(holds, inner, state.inner)),
        )


def select(condition: Any, new: Tree, old: Tree) -> Tree:
    """Return ``new`` where a condition of shape () holds, else ``old``, a tree like it.

    Both are computed; nothing is multiplied, so what is not taken leaves no NaN behind.
    """
    xs, spec = _tree.flatten(new)
    ys = _tree.match(spec, old, "the tree kept", "the new one")
    return _tree.unflatten(spec, [_choice(condition, x, y) for x, y in zip(xs, ys, strict=True)])


def _choice(condition: Any, x: Any, y: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    if not isinstance(condition, Tensor):
        return x if condition else y.to(x.dtype)
    return torch.where(condition.to(x.device), x, y.to(x.dtype))


def conditionally(
    inner: GradientTransformation, condition: Callable[[Tensor], Any], otherwise: str = "pass"
) -> GradientTransformation:
    """Apply ``inner`` on those calls on which ``condition(count)`` holds.

        updates, inner_state = inner(updates)     if condition(count)
        updates, inner_state = updates or 0, as they were      else

    Args:
        inner: any transform. It is computed on every call, and its results are taken or not.
        condition: from the number of ``update`` calls so far (() int64, first call: 0) to a bool
            or a tensor of shape () of bools.
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
