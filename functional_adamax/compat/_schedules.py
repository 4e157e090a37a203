"""Schedules among the hyperparameters of the parameter groups."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._inject import schedules_in
from .._transform import same


class Schedules:
    """The schedules of each group, and the values they left there for users to see.

    A value that somebody else sets in the group rules instead of the schedule, until the one that
    the schedule left is put back. A group that was not added has no schedules.
    """

    def __init__(self) -> None:
        self._of: list[dict[str, Any]] = []
        self._shown: list[dict[str, Any]] = []

    def __bool__(self) -> bool:
        return any(self._of)

    def add(self, group: dict[str, Any], values: dict[str, Any]) -> None:
        """Take the schedules among the ``values`` of a new group."""
        schedules = schedules_in(values)
        self._of.append(schedules)
        self._shown.append({})
        start = torch.zeros((), dtype=torch.int64, device="cpu")
        for name, schedule in schedules.items():
            self._show(len(self._of) - 1, group, name, schedule(start))

    def adopt(self, groups: list[dict[str, Any]]) -> None:
        """Take the values that stand in loaded ``groups`` for those the schedules left."""
        for i, schedules in enumerate(self._of):
            self._shown[i] = {name: groups[i][name] for name in schedules}

    def value(self, i: int, group: dict[str, Any], name: str) -> Any:
        """The hyperparameter of group ``i``: the schedule if it rules, else what the group says."""
        schedule = self._schedules(i).get(name)
        if schedule is None:
            return group[name]
        return schedule if self._rules(i, group, name) else partial(_held, group[name])

    def show(self, i: int, group: dict[str, Any], count: Tensor) -> None:
        """Leave the values at ``count`` in group ``i``, of the schedules that rule."""
        for name, schedule in self._schedules(i).items():
            if self._rules(i, group, name):
                self._show(i, group, name, schedule(count))

    def _schedules(self, i: int) -> dict[str, Any]:
        return self._of[i] if i < len(self._of) else {}

    def _rules(self, i: int, group: dict[str, Any], name: str) -> bool:
        return same(group[name], self._shown[i].get(name))

    def _show(self, i: int, group: dict[str, Any], name: str, value: Any) -> None:
        number = value.item() if isinstance(value, Tensor) else value
        group[name] = self._shown[i][name] = number


def _held(value: Any, count: Tensor) -> Any:
    """The schedule of one value."""
    del count
    return value
