"""What schedules say in a step, and leave in groups: as it is asked, shown, compared, chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._core import context, hyper, pytree
from .._core.transform import same
from .._schedules.scheduled import Schedule, ask


class Said(list["Asked"]):
    """What schedules say in one step: each is asked once for a count.

    Those that were asked in the step ``before`` are the same objects in this one.
    """

    before: tuple[Asked, ...] = ()

    def by(self, schedule: Schedule, now: Any) -> Schedule:
        """The schedule, which remembers what it said; ``now`` is what its group shows."""
        asked = next((x for x in self if same(x.schedule, schedule)), None)
        if asked is None:
            known = (x for x in self.before if x.schedule is schedule)
            asked = next(known, None) or Asked(schedule)
            asked.begin(now)
            self.append(asked)
        return asked


class Asked:
    """A schedule that is asked once in a step for each count."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def begin(self, now: Any) -> None:
        """Begin a step, where its group shows ``now``."""
        self.now = now
        self.said: dict[Any, Any] = {}  # by the count

    def __call__(self, count: Tensor) -> Any:
        if count.is_meta:  # nobody knows it, and the schedule may want to read it
            return self.now
        if context.traced():
            return ask(self.schedule, count)
        number = count.item()
        if number not in self.said:
            self.said[number] = ask(self.schedule, count)
        return self.said[number]


def shown(value: Any) -> Any:
    """A value as it is shown: a number, or under a compiler, which keeps none, a new tensor."""
    if torch.compiler.is_compiling():
        return pytree.map_tensors(_copy, value)
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    return pytree.map_tensors(torch.clone, _numbers(value))


def _numbers(value: Any) -> Any:
    """A value with numbers in place of the tensors of one element."""
    numbers = pytree.map_tensors(lambda x: x.item() if x.numel() == 1 else x, value)
    return hyper.plain(numbers)


torch.library.define("functional_adamax::copy", "(Tensor x) -> Tensor")
_copy = torch.ops.functional_adamax.copy.default
"""A copy that a compiler keeps: of clones of one tensor it makes one, and then a value written into
what the group shows would be written into what the schedule left."""
torch.library.impl("functional_adamax::copy", "CompositeExplicitAutograd", torch.clone)
torch.library.register_fake("functional_adamax::copy", torch.empty_like)


def is_same(now: Any, before: Any) -> bool | Tensor:
    """Whether two values are one. A tensor where a compiler cannot ask."""
    if type(now) is float and type(before) is float:
        return now == before or _are_nan(now, before)
    compiling = torch.compiler.is_compiling()
    values, spec = pytree.flatten(now if compiling else _numbers(now))
    others, other_spec = pytree.flatten(before if compiling else _numbers(before))
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


def chosen(rules: Tensor, schedule: Any, value: Any, count: Tensor) -> Any:
    """What the schedule says where it rules, else the value."""
    said, spec = pytree.flatten(schedule(count))
    pairs = zip(said, pytree.flatten(value)[0], strict=True)
    return pytree.unflatten(spec, [_where(rules, x, y) for x, y in pairs])


def _where(rules: Tensor, x: Any, y: Any) -> Any:
    if not (isinstance(x, Tensor) or isinstance(y, Tensor)):
        return y
    return torch.where(rules, *_tensors(x, y))
