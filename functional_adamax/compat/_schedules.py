"""Schedules among the hyperparameters of the parameter groups."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _tree
from .._inject import Injected, at_start, schedules_in
from .._schedule import is_schedule
from .._transform import GradientTransformation, same
from ._factory import Factory


class Schedules:
    """The schedules of each group, whose values they leave there for users to see.

    A value that somebody else sets in the group rules instead of the schedule, until the one that
    the schedule left is put back: ``scheduled_lr`` keeps it, in checkpoints too. A group that was
    not added has no schedules.
    """

    def __init__(self) -> None:
        self._of: list[dict[str, Any]] = []
        self._evaluate = False  # for a factory that takes numbers only

    def __bool__(self) -> bool:
        return any(self._of)

    def add(self, factory: Factory, group: dict[str, Any], values: dict[str, Any]) -> None:
        """Check the ``values`` of a new group, and take the schedules among them."""
        schedules = schedules_in(values)
        first = at_start(schedules)
        factory(**values | first)  # it checks the numbers
        self._evaluate |= bool(schedules) and not _takes(factory, values)
        self._of.append(schedules)
        for name, value in first.items():
            _show(group, name, value)

    def transform(self, factory: Factory, values: dict[str, Any]) -> GradientTransformation:
        """The transform of the hyperparameters ``values``."""
        names = set().union(*self._of) if self._evaluate else ()
        scheduled = {name: values[name] for name in names if is_schedule(values[name])}
        if not scheduled:
            return factory(**values)
        rest = {name: value for name, value in values.items() if name not in scheduled}
        return Injected(factory, {}, scheduled, rest).pair()

    def adopt(self, groups: list[dict[str, Any]]) -> None:
        """Take values in ``groups`` loaded without schedules for such that schedules left."""
        for group, schedules in zip(groups, self._of, strict=False):
            for name in schedules:
                group.setdefault(_key(name), group[name])

    def value(self, i: int, group: dict[str, Any], name: str) -> Any:
        """The hyperparameter of group ``i``: the schedule if it rules, else what the group says."""
        schedule = self._schedules(i).get(name)
        if schedule is None:
            return group[name]
        return schedule if _rules(group, name) else partial(_held, group[name])

    def show(self, i: int, group: dict[str, Any], count: Tensor) -> None:
        """Leave the values at ``count`` in group ``i``, of the schedules that rule."""
        for name, schedule in self._schedules(i).items():
            if _rules(group, name):
                _show(group, name, schedule(count))

    def _schedules(self, i: int) -> dict[str, Any]:
        return self._of[i] if i < len(self._of) else {}


def _takes(factory: Factory, values: dict[str, Any]) -> bool:
    try:
        factory(**values)
    except TypeError:
        return False
    return True


def _key(name: str) -> str:
    return f"scheduled_{name}"


def _rules(group: dict[str, Any], name: str) -> bool:
    return same(group[name], group[_key(name)])


def _show(group: dict[str, Any], name: str, value: Any) -> None:
    if not torch.compiler.is_compiling():  # which would make a constant of a number
        value = _tree.tree_map(_number, value)
    group[name] = group[_key(name)] = value


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _held(value: Any, count: Tensor) -> Any:
    """The schedule of one value."""
    del count
    return value
