"""Schedules among the hyperparameters of the parameter groups.

A group keeps its schedules under ``"schedules"``; a checkpoint has only the names there. Beside a
hyperparameter that is one, such as ``lr``, it keeps under ``"scheduled_lr"`` what the schedule left
there: any other value was set by somebody, and rules instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _tree
from .._inject import Injected, at_start, schedules_in
from .._schedule import is_schedule
from .._transform import GradientTransformation, same
from ._factory import Factory
from ._values import joined

Group = dict[str, Any]
KEY = "schedules"


def of(group: Group) -> dict[str, Any]:
    """The schedules of a group, by the name of the hyperparameter."""
    found = group.get(KEY)
    return found if isinstance(found, dict) else {}


def left(name: str) -> str:
    """The key for what the schedule of a hyperparameter left."""
    return f"scheduled_{name}"


def take(group: Group, factory: Factory, values: dict[str, Any]) -> None:
    """Check the ``values`` of a new group, and keep the schedules among them."""
    schedules = schedules_in(values)
    first = at_start(schedules)
    factory(**values | first)  # it checks the numbers
    _forget(group, values)  # what the group of another optimizer kept
    if schedules:
        group[KEY] = schedules
    for name, value in first.items():
        group[name], group[left(name)] = _shown(value), _shown(value)


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


def without_functions(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """State dict hook: names in place of the functions."""
    del optimizer
    for group in state_dict["param_groups"]:
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


def value(group: Group, name: str) -> Any:
    """The hyperparameter of a group: the schedule if it rules, else what the group says."""
    schedule = of(group).get(name)
    if schedule is None:
        return group[name]
    if is_schedule(group[name]):  # a new one
        group[KEY] = of(group) | {name: group[name]}
        group[name] = group[left(name)]
        return value(group, name)
    now, before = _now(group, name)
    rules = _rules(now, before)
    if isinstance(rules, Tensor):
        return partial(_chosen, rules, schedule, now)
    return schedule if rules else partial(_held, now)


def check(group: Group, factory: Factory, values: dict[str, Any]) -> None:
    """Check the ``values`` that somebody set over a schedule, which ``factory`` takes for one."""
    if not all(_rules(*_now(group, name)) for name in of(group)):
        factory(**values)


def show(group: Group, count: Tensor) -> None:
    """Leave the values at ``count`` in a group, of the schedules that rule."""
    for name, schedule in of(group).items():
        now, before = _now(group, name)
        rules = _rules(now, before)
        if isinstance(rules, Tensor):
            group[name] = _chosen(rules, schedule, now, count)
            group[left(name)] = _chosen(rules, schedule, before, count)
        elif rules:
            said = schedule(count)
            group[name], group[left(name)] = _shown(said), _shown(said)


def takes_functions(factory: Factory, values: dict[str, Any]) -> bool:
    """Whether ``factory`` takes the schedules among ``values`` as they are."""
    try:
        factory(**values)
    except TypeError:
        return False
    return True


def _shown(value: Any) -> Any:
    """A value as it is shown: a number, or under a compiler, which keeps none, a new tensor."""
    if torch.compiler.is_compiling():
        return _tree.tree_map(lambda x: _copy(x) if isinstance(x, Tensor) else x, value)
    return _tree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, _numbers(value))


def _numbers(value: Any) -> Any:
    return _tree.tree_map(
        lambda x: x.item() if isinstance(x, Tensor) and x.numel() == 1 else x, value
    )


torch.library.define("functional_adamax::copy", "(Tensor x) -> Tensor")
_copy = torch.ops.functional_adamax.copy.default
"""A copy that a compiler keeps: of clones of one tensor it makes one, and then a value written into
what the group shows would be written into what the schedule left."""
torch.library.impl("functional_adamax::copy", "CompositeExplicitAutograd", torch.clone)
torch.library.register_fake("functional_adamax::copy", torch.empty_like)


def _now(group: Group, name: str) -> tuple[Any, Any]:
    """What a group says, and what the schedule left; pairs may be set as lists."""
    now, before = group[name], group[left(name)]
    return tuple(now) if isinstance(now, list) and isinstance(before, tuple) else now, before


def _rules(now: Any, before: Any) -> bool | Tensor:
    """Whether the schedule rules: what it left is there. A tensor where a compiler cannot ask."""
    compiling = torch.compiler.is_compiling()
    values, spec = _tree.flatten(now if compiling else _numbers(now))
    others, other_spec = _tree.flatten(before if compiling else _numbers(before))
    if spec != other_spec:
        return False
    pairs = list(zip(values, others, strict=True))
    if not compiling:
        return all(same(x, y) or _are_nan(x, y) for x, y in pairs)
    asked = [isinstance(x, Tensor) or isinstance(y, Tensor) for x, y in pairs]
    if not all(t or same(x, y) or _are_nan(x, y) for t, (x, y) in zip(asked, pairs, strict=True)):
        return False
    equal = [_equal(*_tensors(x, y)) for t, (x, y) in zip(asked, pairs, strict=True) if t]
    return torch.stack(equal).all() if equal else True


def _are_nan(x: Any, y: Any) -> bool:
    return isinstance(x, float) and isinstance(y, float) and x != x and y != y


def _equal(x: Tensor, y: Tensor) -> Tensor:
    return ((x == y) | (x.isnan() & y.isnan())).all()


def _tensors(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Two values, one of them a tensor at least, as tensors."""
    like = x if isinstance(x, Tensor) else y
    x, y = (z if isinstance(z, Tensor) else torch.full_like(like, z) for z in (x, y))
    return x, y


def _chosen(rules: Tensor, schedule: Any, value: Any, count: Tensor) -> Any:
    """What the schedule says where it rules, else the value."""
    said, spec = _tree.flatten(schedule(count))
    pairs = zip(said, _tree.flatten(value)[0], strict=True)
    return _tree.unflatten(spec, [_where(rules, x, y) for x, y in pairs])


def _where(rules: Tensor, x: Any, y: Any) -> Any:
    if not (isinstance(x, Tensor) or isinstance(y, Tensor)):
        return y
    return torch.where(rules, *_tensors(x, y))


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


def together(groups: Sequence[Group], name: str) -> Any:
    """A hyperparameter for the parameters of several groups: a tree of values if they differ."""
    rows = [value(group, name) for group in groups]
    if not any(map(is_schedule, rows)):
        return joined(groups, name, rows)
    comparing = len(rows) > 1 and not torch.compiler.is_compiling()  # which cannot
    if len(rows) == 1 or (comparing and all(same(row, rows[0]) for row in rows)):
        return rows[0]
    return _Together(groups, name, rows)
