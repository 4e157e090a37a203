"""Schedules: a learning rate that is a function of the number of updates so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

from torch import Tensor

from .._core import checks, donation, hyper, pytree
from .._core.hyper import Hyperparameter
from .._core.node import public_node
from .._core.plans import Plan
from .._core.pytree import Tree
from .._core.transform import GradientTransformation, Transform
from .curve import Curve

Schedule: TypeAlias = Callable[[Tensor], Any]
"""A function of the number of ``update`` calls before this one (0-d int64, first call: 0)."""


@public_node
class ScheduledState(NamedTuple):
    """State of a transform whose learning rate is a schedule."""

    count: Tensor  # type: ignore[assignment]  # (), int64: number of update calls so far
    inner: Any  # the state of the transform itself


def is_schedule(lr: Hyperparameter | Schedule) -> bool:
    """Whether ``lr`` is a schedule; a container is a tree even if it can be called."""
    container = isinstance(lr, (Tensor, dict, list, tuple)) or pytree.is_node(lr)
    return not container and callable(lr)  # in this order: a compiler cannot ask a dict


def is_pure(schedule: Any) -> bool:
    """Whether it is a schedule of numbers of this library, which may be asked more than once."""
    return isinstance(schedule, Curve) and schedule.is_plain


def check_lr(lr: Hyperparameter | Schedule) -> None:
    """Check a learning rate that may be a schedule, whose values are not known yet."""
    if not is_schedule(lr):
        hyper.check("lr", lr)


def ask(schedule: Schedule, count: Tensor) -> Any:
    """Return what a schedule says at ``count``, NumPy's numbers as Python's."""
    return hyper.plain(schedule(count))


def with_schedule(transform: Transform) -> GradientTransformation:
    """Return the pair of a transform with a field ``lr``, driven by it if it is a schedule."""
    lr = transform.lr  # type: ignore[attr-defined]
    return (Scheduled(transform) if is_schedule(lr) else transform).pair()


@dataclass(frozen=True, eq=False, repr=False)
class Scheduled(Transform):
    """``transform``, its ``lr`` replaced at each update by ``lr(count)``."""

    is_local: ClassVar[bool] = True

    transform: Transform

    def init(self, params: Tree) -> ScheduledState:
        return ScheduledState(pytree.count(params), self.transform.init(params))

    def update(
        self, updates: Tree, state: ScheduledState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, ScheduledState]:
        new, inner = self._now(state).update(updates, state.inner, params, **extra)
        return new, ScheduledState(state.count + 1, inner)

    def plan(
        self, grads: Tree, state: ScheduledState, params: Tree, donate: bool = False, **extra: Any
    ) -> Plan:
        now = self._now(state)
        donate = donate and donation.are_writable([state.count])
        return Counted(now.plan(grads, state.inner, params, donate, **extra), state.count)

    @property
    def asks(self) -> bool:  # type: ignore[override]  # of this one it is told by a field
        lr = self.transform.lr  # type: ignore[attr-defined]
        return is_schedule(lr) and not is_pure(lr)

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        lr = self.transform.lr  # type: ignore[attr-defined]
        if not is_schedule(lr) or not isinstance(state, ScheduledState):
            return self
        now = self.transform if is_pure(lr) else self._now(state)
        inner = now.settled(state.inner, updates, params)
        return self if inner is self.transform else dataclasses.replace(self, transform=inner)

    def _now(self, state: ScheduledState) -> Any:
        checks.state(state, ScheduledState, "; a constant lr has a state without count")
        lr = self.transform.lr  # type: ignore[attr-defined]
        if not is_schedule(lr):  # it was asked
            return self.transform
        return dataclasses.replace(self.transform, lr=ask(lr, state.count))  # type: ignore[call-arg]

    def __repr__(self) -> str:
        return repr(self.transform)


class Counted(Plan):
    """A step that is counted once it is taken."""

    def __init__(self, inner: Plan, count: Tensor) -> None:
        self.inner, self._count = inner, count

    def check(self) -> None:
        self.inner.check()
        self.problem = self.inner.problem

    def __call__(self) -> tuple[Tree, ScheduledState]:
        params, inner = self.inner()
        self.problem = self.inner.problem
        count = self._count.add_(1) if self.inner.in_place else self._count + 1
        self.in_place = self.inner.in_place
        return params, ScheduledState(count, inner)
