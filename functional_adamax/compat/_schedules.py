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
    the schedule left is put back. A group that was not added has no schedules.
    """

    def __init__(self) -> None:
        self._of: list[dict[str, Any]] = []
        self._left: list[dict[str, Any]] = []
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
        self._left.append({name: _shown(value) for name, value in first.items()})
        group.update(self._left[-1])

    def transform(self, factory: Factory, values: dict[str, Any]) -> GradientTransformation:
        """The transform of the hyperparameters ``values``."""
        names = set().union(*self._of) if self._evaluate else ()
        scheduled = {name: values[name] for name in names if is_schedule(values[name])}
        if not scheduled:
            return factory(**values)
        rest = {name: value for name, value in values.items() if name not in scheduled}
        return Injected(factory, {}, scheduled, rest).pair()

    def adopt(self, i: int, group: dict[str, Any], count: Tensor | None) -> None:
        """Take the values of a loaded group for such that the schedules left.

        With the number of updates so far, those that the schedules did not leave are told apart.
        """
        for name, schedule in self._schedules(i).items():
            left = group[name] if count is None else _shown(schedule((count - 1).clamp(min=0)))
            self._left[i][name] = left

    def value(self, i: int, group: dict[str, Any], name: str) -> Any:
        """The hyperparameter of group ``i``: the schedule if it rules, else what the group says."""
        schedule = self._schedules(i).get(name)
        if schedule is None:
            return group[name]
        rules = _rules(group[name], self._left[i].get(name))
        if isinstance(rules, Tensor):
            return partial(_chosen, rules, schedule, group[name])
        return schedule if rules else partial(_held, group[name])

    def show(self, i: int, group: dict[str, Any], count: Tensor) -> None:
        """Leave the values at ``count`` in group ``i``, of the schedules that rule."""
        for name, schedule in self._schedules(i).items():
            left = self._left[i]
            rules = _rules(group[name], left.get(name))
            if isinstance(rules, Tensor):
                group[name] = _chosen(rules, schedule, group[name], count)
                left[name] = _chosen(rules, schedule, left[name], count)
            elif rules:
                value = schedule(count)
                group[name], left[name] = _shown(value), _shown(value)

    def _schedules(self, i: int) -> dict[str, Any]:
        return self._of[i] if i < len(self._of) else {}


def _takes(factory: Factory, values: dict[str, Any]) -> bool:
    try:
        factory(**values)
    except TypeError:
        return False
    return True


def _shown(value: Any) -> Any:
    """A value as it is shown: a number, or under a compiler, which keeps none, a new tensor."""
    if torch.compiler.is_compiling():
        return _tree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, value)
    return _tree.tree_map(_number, value)


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _rules(value: Any, left: Any) -> bool | Tensor:
    """Whether the schedule rules: what it left is there. A tensor where a compiler cannot ask."""
    if not torch.compiler.is_compiling():
        return same(_tree.tree_map(_number, value), _tree.tree_map(_number, left))
    values, spec = _tree.flatten(value)
    others, other_spec = _tree.flatten(left)
    if spec != other_spec:
        return False
    pairs = list(zip(values, others, strict=True))
    both = [isinstance(x, Tensor) and isinstance(y, Tensor) for x, y in pairs]
    if not all(t or same(x, y) for t, (x, y) in zip(both, pairs, strict=True)):
        return False
    equal = [(x == y).all() for t, (x, y) in zip(both, pairs, strict=True) if t]
    return torch.stack(equal).all() if equal else True


def _chosen(rules: Tensor, schedule: Any, value: Any, count: Tensor) -> Any:
    """What the schedule says where it rules, else the value."""
    said, spec = _tree.flatten(schedule(count))
    pairs = zip(said, _tree.flatten(value)[0], strict=True)
    return _tree.unflatten(
        spec, [torch.where(rules, x, y) if isinstance(y, Tensor) else y for x, y in pairs]
    )


def _held(value: Any, count: Tensor) -> Any:
    """The schedule of one value."""
    del count
    return value
