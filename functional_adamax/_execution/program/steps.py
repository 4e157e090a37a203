"""A step of a whole transform by its programs: one for each kind of leaves, and what is done once.

The machine looks at all leaves first. Then comes what is computed for the tree: in torch, but for
sums over leaves, which are passes of the machine. Then the machine steps the leaves. The file is
longer than others: steps in place, planned ones and pure ones share what they make of an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import isnan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._core import sums
from . import machine, once
from .forms import PLAIN, Form
from .tree_recorder import Hyper, Operation, Phase, Place

GRADIENTS, PARAMS, FIRST = -1, -2, -3
"""Of what is no part of the state: what is given, and the updates or parameters that result."""


class Trees(NamedTuple):
    """The trees of one step, flat."""

    form: Form
    g: list[Any]
    p: list[Any]  # empty where no params are given
    state: list[Any]
    spec: Any
    state_spec: Any
    where: Sequence[Sequence[int]]  # the leaves of each kind
    members: int = 0
    """Of a ``vmap``, whose tensors are stacked; what belongs to the tree all of them may share."""


class Group(NamedTuple):
    """The leaves of one kind, and the program that steps them."""

    kinds: tuple[int, ...]  # its own, and those that are left as they are
    program: Any
    columns: tuple[int, ...]  # the starts of what it reads, or GRADIENTS or PARAMS
    counters: tuple[int, ...]
    written: tuple[int, ...]  # the starts of what it writes, or FIRST
    alone: tuple[int, ...]  # the counters that depend on themselves alone


class Entry(NamedTuple):
    """What steps trees of one form."""

    groups: tuple[Group, ...]
    kinds: int
    add: bool  # whether the results are parameters, not updates
    sources: tuple[int, ...]  # of the first places: positions of the state, or -1 - a number
    dtypes: tuple[torch.dtype, ...]  # of those
    places: int  # of what belongs to the tree
    sequence: tuple[Operation | Phase, ...]
    sums: dict[int, list[Any]]  # by the place of a sum, the program of each group, or None
    counts: tuple[tuple[int, float], ...]  # places of the sizes of leaves, and to which power
    numbers: tuple[int, ...]  # those that programs are given
    entered: tuple[int, ...]  # the places that they are given
    results: tuple[tuple[int, int], ...]  # positions of the state, and places of what comes there
    at_once: list[tuple[int, list[Any], int]] | None = None
    """The sums, as the machine takes them in one call, where nothing is made of them before."""

    def complete(self) -> Entry:
        """The same with ``at_once``."""
        sums = [x for x in self.sequence if isinstance(x, Phase)]
        read = {place for _, place in self.results}
        read.update(y for x in self.sequence if isinstance(x, Operation) for y in x.reads())
        if any(x.kind == "finite" or x.target in read for x in sums):
            return self
        first = len(self.numbers)
        return self._replace(
            at_once=[
                (first + self.entered.index(x.target), self.sums[x.target], _mode(x)) for x in sums
            ]
        )

    def at(self, new: dict[int, int]) -> Entry:
        """The same for a state whose parts start elsewhere."""

        def moved(starts: Iterable[int]) -> tuple[int, ...]:
            return tuple(new[x] if x >= 0 else x for x in starts)

        groups = tuple(
            x._replace(
                columns=moved(x.columns),
                counters=moved(x.counters),
                written=moved(x.written),
                alone=moved(x.alone),
            )
            for x in self.groups
        )
        results = tuple((new[position], place) for position, place in self.results)
        return self._replace(groups=groups, sources=moved(self.sources), results=results)


def into_new(step: Trees, entry: Entry) -> tuple[list[Any], list[Any]] | None:
    """Return the updates, or the parameters, and the state; None where a leaf cannot be taken."""
    columns = _columns(step, entry)
    planned = machine.plan(_parts(step, entry, columns), False, step.members)
    found = None if planned is None else _once(step, entry, planned)
    if found is None:
        return None
    first = list(step.p if entry.add else step.g)
    new = {start: column.copy() for start, column in columns.items()}
    lists = [
        (
            *(first if start == FIRST else new[start] for start in group.written),
            *(new[start] for start in group.counters),
        )
        for group in entry.groups
    ]
    if not machine.stepped(planned, _numbers(step, entry, found), lists):
        return None
    state = step.state.copy()
    for start, column in new.items():
        state[start : start + len(column)] = column
    for position, place in entry.results:
        state[position] = once.tensor(found[place])
    return first, state


def overwrite(steps: Iterable[tuple[Trees, Entry]]) -> bool:
    """Take steps over trees in one call that checks all; False if nothing was written."""
    found, results = [], []
    for step, entry in steps:
        begun = None if entry.at_once is None else _begun(step, entry)
        if entry.at_once is None or begun is None:
            return False
        if entry.results and not may_write([step.state[i] for i, _ in entry.results]):
            return False
        for x in entry.sequence:
            if isinstance(x, Operation):
                begun[x.target] = _done(x, begun, step.form.numbers)
        parts, numbers = _parts(step, entry, _columns(step, entry)), _numbers(step, entry, begun)
        found.append(machine.Step(parts, entry.at_once, numbers))
        results += _results(step, entry, begun)
    return _with_results(results, machine.overwrite(found))


def planned(step: Trees, entry: Entry) -> Callable[[], bool] | None:
    """Return what steps over the trees, or None where a leaf cannot be taken.

    It writes nothing and returns False where leaves are not as they were.
    """
    if not may_write([step.state[i] for i, _ in entry.results]):
        return None
    plan = machine.plan(_parts(step, entry, _columns(step, entry)), in_place=True)
    found = None if plan is None else _once(step, entry, plan)
    if found is None:
        return None
    return partial(_commit, plan, _numbers(step, entry, found), _results(step, entry, found))


def _commit(plan: Any, numbers: machine.Numbers, results: list[tuple[Tensor, Tensor]]) -> bool:
    return _with_results(results, machine.write(plan, numbers))


def _results(step: Trees, entry: Entry, found: list[Any]) -> list[tuple[Tensor, Tensor]]:
    """What belongs to the tree, and what is to be written there."""
    return [(step.state[position], once.tensor(found[place])) for position, place in entry.results]


def _with_results(results: list[tuple[Tensor, Tensor]], is_written: bool) -> bool:
    """Write what belongs to the tree, if the leaves are written."""
    for old, new in results if is_written else ():
        old.copy_(new)
    return is_written


def may_write(of_tree: list[Tensor]) -> bool:
    """Whether each tensor that belongs to the tree has memory of its own, and can be written."""
    own = all(x.untyped_storage().nbytes() == x.element_size() for x in of_tree)
    apart = len({x.data_ptr() for x in of_tree}) == len(of_tree)
    frozen = not torch.is_inference_mode_enabled() and any(x.is_inference() for x in of_tree)
    return own and apart and not frozen


def _columns(step: Trees, entry: Entry) -> dict[int, list[Any]]:
    """The columns of the state that groups read, by their starts."""
    n, found = len(step.g), {}
    for group in entry.groups:
        for start in (*group.columns, *group.counters):
            if start >= 0 and start not in found:
                found[start] = step.state[start : start + n]
    return found


def _parts(step: Trees, entry: Entry, columns: dict[int, list[Any]]) -> list[machine.Part]:
    given = {GRADIENTS: step.g, PARAMS: step.p, **columns}
    parts = []
    for group in entry.groups:
        where = None
        if len(group.kinds) < entry.kinds:
            where = [i for kind in group.kinds for i in step.where[kind]]
        read = tuple(given[start] for start in group.columns)
        counters = tuple(given[start] for start in group.counters)
        parts.append(machine.Part(group.program, read, counters, where))
    return parts


def _numbers(step: Trees, entry: Entry, found: list[Any]) -> machine.Numbers:
    """What programs are given; places that are not filled yet are read by nobody yet."""
    given: list[Any] = [float(step.form.numbers[i]) for i in entry.numbers]
    given += [_entered(step, found[place]) for place in entry.entered]
    return given + [_for_members(step, x) for x in step.form.trees]


def _entered(step: Trees, x: Any) -> float | list[float]:
    """What belongs to the tree, as programs are given it."""
    if x is None:
        return 0.0
    if isinstance(x, list):
        return x
    if isinstance(x, tuple):
        return list(map(float, x)) * len(step.g)
    return x.tolist() * len(step.g) if isinstance(x, Tensor) and x.dim() else float(x)


def _for_members(step: Trees, numbers: list[float]) -> list[float]:
    """Numbers of leaves, one for each member."""
    return [x for x in numbers for _ in range(step.members)] if step.members else numbers


def _mode(phase: Phase) -> int:
    """How the machine finds it out."""
    mode = machine.LARGEST if phase.kind == "largest" else machine.SUM
    return mode if phase.leaf is None else mode | machine.EACH


def _are_odd(entry: Entry, found: list[Any]) -> bool:
    """Whether a hyperparameter is NaN, which torch's bounds hand on, and the machine's do not."""
    return any(
        i < 0 and (bool(x.isnan().any()) if x.dim() else isnan(x))
        for i, x in zip(entry.sources, found, strict=False)
    )


def _begun(step: Trees, entry: Entry) -> list[Any] | None:
    """What belongs to the tree at the start of a step; None where it is not for the machine."""
    numbers, state = step.form.numbers, step.state
    found: list[Any] = [state[i] if i >= 0 else numbers[-1 - i] for i in entry.sources]
    if any(x.requires_grad for x in found) or _are_odd(entry, found):
        return None
    if any(x.dtype != dtype for x, dtype in zip(found, entry.dtypes, strict=True)):
        return None
    found += [None] * (entry.places - len(found))
    for place, power in entry.counts:
        like = [x[0] if step.members and type(x) in PLAIN else x for x in step.g]
        sizes = [sums.count(x, power) if type(x) in PLAIN else 0.0 for x in like]
        found[place] = _for_members(step, sizes)
    return found


def _once(step: Trees, entry: Entry, plan: Any) -> list[Any] | None:
    """What belongs to the tree, and what is made of it; None where a sum cannot be made."""
    found, numbers = _begun(step, entry), step.form.numbers
    if found is None:
        return None
    if not entry.sequence:
        return found
    with torch.no_grad():
        for x in entry.sequence:
            if isinstance(x, Phase):
                given = entry.sums[x.target], _numbers(step, entry, found)
                total = machine.summed(plan, *given, _mode(x))
                if total is None:
                    return None
                of_members = tuple(total) if isinstance(total, list) and x.leaf is None else total
                found[x.target] = once.are_zero(of_members) if x.kind == "finite" else of_members
            else:
                found[x.target] = _done(x, found, numbers)
    return found


def _done(x: Operation, found: list[Any], numbers: Sequence[Any]) -> Any:
    """The result of an operation."""
    args: list[Any] = []
    for y in x.args:
        if type(y) is Place:
            found[y.at] = once.single(found[y.at])
            y = found[y.at]
        args.append(numbers[y.at] if type(y) is Hyper else y)
    return once.done(x.function, args, x.kwargs)
