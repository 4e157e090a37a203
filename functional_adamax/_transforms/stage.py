"""Stages of a chain that treat each leaf alone: the walk over the leaves, once.

A stage is hyperparameters and a ``rule``, which says what becomes of the update of one leaf. What
it computes for all leaves together, such as a norm, is in ``once``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from .._core import checks, hyper, pytree
from .._core.pytree import EmptyState, Tree
from .._core.transform import Stateless, Transform
from .._execution.program import whole as whole

_NOTHING: dict[str, Any] = {}


class Seen(NamedTuple):
    """What the rule of a stage sees of one leaf."""

    u: Tensor  # the update
    p: Any  # the parameter, where the stage needs it
    h: dict[str, Any]  # hyperparameters that broadcast to the leaf, and what ``once`` returned
    kept: dict[str, Any]  # what the state holds of the leaf, by the name of the field


class Stage(Stateless):
    """A stage without state."""

    is_local: ClassVar[bool] = True

    strict: ClassVar[bool] = True
    """Whether updates are refused that can be no gradients, such as sparse ones."""

    @abstractmethod
    def rule(self, x: Seen) -> Tensor:
        """Return what becomes of the update."""

    def hyper(self) -> dict[str, Any]:
        """Return the hyperparameters that ``rule`` reads, by name. Default: all fields."""
        return self._values()

    def once(self, updates: list[Tensor]) -> dict[str, Any]:
        """Return what is computed once for all updates."""
        del updates
        return {}

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del params, extra
        leaves, spec = pytree.flatten(updates)
        if self.strict:
            checks.gradients(spec, leaves, leaves, self.name, "updates")
        return pytree.unflatten(spec, self.applied(updates, leaves, leaves)), state

    def applied(self, tree: Tree, updates: list[Any], leaves: list[Any]) -> list[Any]:
        """The rule on each update; ``leaves``, of ``tree``, is what hyperparameters fit."""
        rows = _rows(self.hyper(), tree, leaves)
        shared = self.once([u for u in updates if u is not None])
        if shared:
            rows = [h | shared for h in rows]
        columns = zip(updates, leaves, rows, strict=True)
        return [None if u is None else self.rule(Seen(u, p, h, _NOTHING)) for u, p, h in columns]


class Keeping(Transform):
    """A stage that keeps something of each leaf, in a NamedTuple of trees."""

    is_local: ClassVar[bool] = True

    state: ClassVar[type[Any]]

    @abstractmethod
    def start(self, p: Tensor) -> Sequence[Tensor]:
        """Return what the state holds of a parameter before its first update, field by field."""

    @abstractmethod
    def rule(self, x: Seen) -> tuple[Tensor, dict[str, Any]]:
        """Return what becomes of the update, and what is kept now, field by field."""

    @abstractmethod
    def fitting(self, spec: Any, kept: dict[str, list[Any]], updates: list[Any]) -> list[Any]:
        """Check the leaves of the state; return the tensors that updates must fit."""

    def hyper(self) -> dict[str, Any]:
        """Return the hyperparameters that ``rule`` reads, by name."""
        return {}

    def init(self, params: Tree) -> Any:
        leaves, spec = checks.parameters(params)
        empty = [EmptyState()] * len(self.state._fields)
        rows = [self.start(p) if checks.trainable(p) else empty for p in leaves]
        columns = ([row[k] for row in rows] for k in range(len(empty)))
        return self.state(*(pytree.unflatten(spec, column) for column in columns))

    def update(
        self, updates: Tree, state: Any, params: Tree = None, **extra: Any
    ) -> tuple[Tree, Any]:
        del params, extra
        checks.state(state, self.state)
        *others, last = self.state._fields
        tree = getattr(state, last)
        column, spec = pytree.flatten(tree)
        kept = {
            name: pytree.match(spec, getattr(state, name), f"state.{name}", f"state.{last}")
            for name in others
        }
        kept[last] = column
        given = pytree.match(spec, updates, "updates", checks.INITIAL)
        like = self.fitting(spec, kept, given)
        checks.gradients(spec, given, like, self.name, "updates")
        rows = _rows(self.hyper(), tree, like)
        for i, u in enumerate(given):
            if u is not None:
                before = {name: column[i] for name, column in kept.items()}
                given[i], after = self.rule(Seen(u, None, rows[i], before))
                for name, x in after.items():
                    kept[name][i] = x
        columns = (pytree.unflatten(spec, column) for column in kept.values())
        return pytree.unflatten(spec, given), self.state(*columns)


def _rows(values: dict[str, Any], tree: Tree, leaves: list[Any]) -> list[dict[str, Any]]:
    """The hyperparameters of each leaf."""
    columns = [hyper.per_leaf(name, x, tree, leaves) for name, x in values.items()]
    if not columns:
        return [_NOTHING] * len(leaves)
    return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]
