"""Schedules among the hyperparameters of the parameter groups.

A group keeps its schedules under ``"schedules"``; a checkpoint has only the names there. Beside a
hyperparameter that is one, such as ``lr``, it keeps under ``"scheduled_lr"`` what the schedule left
there: any other value was set by somebody, and rules instead.

Schedulers of torch set ``lr`` after every step. When the first one is attached, it copies what is
there to ``"initial_lr"``. One that leaves the rate alone writes this value again and again, or
nothing: then the schedule rules. ``"scheduled_initial_lr"`` says that the copy is one of what the
schedule left: the ``initial_lr`` of OneCycleLR is not. It is None once a scheduler set another
value, and from then on the scheduler rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._core import checks
from .._core.transform import GradientTransformation, same
from .._schedules.scheduled import Schedule, is_pure, is_schedule
from .._transforms.arguments import schedules_in
from .._transforms.inject import Injected
from ._factory import Factory
from ._shown import Said, chosen, is_same, shown
from ._values import held, joined

Group = dict[str, Any]
KEY = "schedules"


def of(group: Group) -> dict[str, Any]:
    """The schedules of a group, by the name of the hyperparameter."""
    found = group.get(KEY)
    return found if isinstance(found, dict) else {}


def left(name: str) -> str:
    """The key for what the schedule of a hyperparameter left."""
    return f"scheduled_{name}"


def initial(name: str) -> str:
    """The key for what a scheduler of torch found when it was attached."""
    return f"initial_{name}"


def take(group: Group, factory: Factory, values: dict[str, Any]) -> None:
    """Check the ``values`` of a new group, and keep the schedules among them."""
    schedules, first = schedules_in(factory, values)
    _forget(group, values)  # what the group of another optimizer kept
    if schedules:
        group[KEY] = schedules
    for name, value in first.items():
        group[name], group[left(name)] = shown(value), shown(value)


def check_names(values: dict[str, Any]) -> None:
    """Check that no hyperparameter has a name that is needed here.

    Raises:
        TypeError: one has.
    """
    if taken := {KEY, *map(left, values)} & set(values):
        raise TypeError(
            f"factory takes {sorted(taken)}, under which groups keep schedules: rename the argument"
        )


def _forget(group: Group, values: Iterable[str]) -> None:
    if of(group) or isinstance(group.get(KEY), list):
        del group[KEY]
    for name in values:
        group.pop(left(name), None)
        group.pop(left(initial(name)), None)


def take_over(groups: Sequence[Group], before: Sequence[Group], names: Iterable[str]) -> None:
    """Give loaded groups the schedules of those before them.

    What they hold without saying that it was scheduled, such as a constant rate, is no value that
    somebody set over the schedule.
    """
    for group, old in zip(groups, before, strict=False):
        _forget(group, set(names) - set(of(old)))
        if of(old):
            group[KEY] = of(old)
        for name in of(group):
            group.setdefault(name, old[name])
            group.setdefault(left(name), group[name])
            if initial(name) in group:
                group.setdefault(left(initial(name)), group[initial(name)])


def without_functions(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """State dict hook: names in place of the functions, numbers of Python in place of NumPy's."""
    for group in state_dict["param_groups"]:
        group.update({k: optimizer.plain(v) for k, v in group.items() if k != "params"})
        if of(group):
            group[KEY] = sorted(of(group))


def transform(
    factory: Factory, values: dict[str, Any], evaluated: Iterable[str]
) -> GradientTransformation:
    """The transform of the hyperparameters ``values``.

    Those that are ``evaluated`` may be schedules that ``factory`` does not take as functions.
    """
    scheduled = {name: values[name] for name in evaluated if is_schedule(values[name])}
    if not scheduled:
        return factory(**values)
    rest = {name: value for name, value in values.items() if name not in scheduled}
    return Injected(factory, {}, scheduled, rest).pair()


def value(group: Group, name: str, said: Said) -> Any:
    """The hyperparameter of a group: the schedule if it rules, else what the group says."""
    schedule = of(group).get(name)
    if schedule is None:
        return held(group, name)
    if is_schedule(group[name]):  # a new one
        group[KEY] = of(group) | {name: group[name]}
        group[name] = group[left(name)]
        group.pop(left(initial(name)), None)
        return value(group, name, said)
    now, rules = _now(group, name), _rules(group, name)
    asked = _in_step(group, schedule, now, said)
    if isinstance(rules, Tensor):
        return partial(chosen, rules, asked, now)
    return asked if rules else partial(_held, now)


def overriding(group: Group) -> dict[str, Any]:
    """The values of a group that somebody set over a schedule."""
    return {name: group[name] for name in of(group) if not _rules(group, name)}


def warn_of_schedulers(group: Group, place: int, found: dict[str, Any]) -> None:
    """Warn once where a scheduler of torch set the values ``found`` over schedules."""
    for name, now in found.items():
        replaced = left(initial(name))
        if initial(name) not in group or group.get(replaced, now) is None:
            continue
        group[replaced] = None
        checks.warn(
            f"{name} of parameter group {place} was set to {now} over its schedule, "
            f"{of(group)[name]!r}, while a scheduler of torch is attached: the scheduler rules "
            "from now on. To train by the schedule, attach a scheduler that leaves the rate alone, "
            "such as LambdaLR(optimizer, lambda _: 1.0), which a Trainer calls "
            'lr_scheduler_type="constant"; or give the schedule to torch: lr=1.0 and '
            "LambdaLR(optimizer, schedule)"
        )


def show(group: Group, count: Tensor, said: Said) -> None:
    """Leave the values at ``count`` in a group, of the schedules that rule."""
    for name, schedule in of(group).items():
        rules = _rules(group, name)
        if rules is False:
            continue
        now, before = _now(group, name), group[left(name)]
        found = group.get(initial(name))
        if found is not None and is_same(found, before) is not False:
            group[left(initial(name))] = shown(found)
        if isinstance(rules, Tensor):
            group[name] = chosen(rules, schedule, now, count)
            group[left(name)] = chosen(rules, schedule, before, count)
            continue
        new = _in_step(group, schedule, now, said)(count)
        group[name], group[left(name)] = shown(new), shown(new)


def _in_step(group: Group, schedule: Schedule, now: Any, said: Said) -> Schedule:
    """The schedule of a group, or what remembers what it said, where it is asked only once."""
    pure = is_pure(schedule) and not any(p.is_meta for p in group.get("params", ())[:1])
    return schedule if pure or torch.compiler.is_compiling() else said.by(schedule, now)


def takes_functions(factory: Factory, values: dict[str, Any]) -> bool:
    """Whether ``factory`` takes the schedules among ``values`` as they are."""
    try:
        factory(**values)
    except TypeError:
        return False
    return True


def _now(group: Group, name: str) -> Any:
    """What a group says; pairs may be set as lists."""
    now = group[name]
    return tuple(now) if isinstance(now, list) and isinstance(group[left(name)], tuple) else now


def _rules(group: Group, name: str) -> bool | Tensor:
    """Whether the schedule rules. A tensor where a compiler cannot ask."""
    now, before = _now(group, name), group[left(name)]
    rules, found = is_same(now, before), group.get(initial(name))
    if found is None:
        return rules
    copied = group.get(left(initial(name)), before)
    if copied is None:
        return False
    return rules | (is_same(found, copied) & is_same(now, found))


def _held(value: Any, count: Tensor) -> Any:
    """The schedule of one value."""
    del count
    return value


@dataclass(frozen=True, eq=False)
class _Together:
    """The schedule of several groups, as a tree of their values."""

    groups: Sequence[Group]
    name: str
    rows: Sequence[Any]

    def __call__(self, count: Tensor) -> Any:
        now = [row(count) if is_schedule(row) else row for row in self.rows]
        return joined(self.groups, self.name, now)


def together(groups: Sequence[Group], name: str, said: Said) -> Any:
    """A hyperparameter for the parameters of several groups: a tree of values if they differ."""
    rows = [value(group, name, said) for group in groups]
    if not any(map(is_schedule, rows)):
        return joined(groups, name, rows)
    comparing = len(rows) > 1 and not torch.compiler.is_compiling()  # which cannot
    if len(rows) == 1 or (comparing and all(same(row, rows[0]) for row in rows)):
        return rows[0]
    return _Together(groups, name, rows)
