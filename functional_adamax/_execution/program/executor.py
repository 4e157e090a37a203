"""Executor: the rule of any method, recorded once and run by the machine.

It takes plain tensors on the CPU, of one dtype in each leaf, whose elements lie side by side in the
same order, with numbers or tensors of one element as hyperparameters. ``programs.py`` makes the
programs; what has none is left to the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..._core import hyper
from ..adamax_rule import adamax
from ..native import kernel
from ..work import Columns, Row, Work
from . import machine
from .machine import Numbers
from .programs import Runner, found_for


class Job(NamedTuple):
    """What the machine is given for one step of some leaves."""

    program: Any
    columns: Columns
    counters: Columns
    numbers: Numbers


def compute(work: Work, add: bool) -> Columns | None:
    """Step all leaves into new tensors, checks included, or return None."""
    job = _job(work, add)
    columns = None if job is None else machine.stepped(*job)
    return None if columns is None else _ordered(columns)


def part(work: Work, where: list[int], add: bool) -> dict[int, Row]:
    """Step those of the leaves that the machine takes."""
    rows: dict[int, Row] = {}
    for places, columns in _taken(work, where, add, machine.stepped):
        rows |= dict(zip(places, zip(*_ordered(columns), strict=True), strict=True))
    return rows


def overwrite(work: Work) -> bool:
    """Step all leaves in place, checks included; False with nothing written."""
    if any(isinstance(x, Tensor) for x in work.rates.values()):
        return False  # which may be recorded, or lie where the step would write
    job = _job(work, add=True)
    return job is not None and machine.overwrite(*job)


def plan(work: Work) -> Callable[[], bool] | None:
    """Return what steps all leaves over their tensors, if the machine takes them, or None."""
    job = _job(work, add=True)
    return None if job is None else machine.plan(*job)


def written(work: Work, where: list[int]) -> list[tuple[list[int], Callable[[], bool]]]:
    """Return what steps some of the leaves, which it names, over their tensors."""
    return _taken(work, where, True, machine.plan)


def why_not(work: Work, i: int, add: bool = True) -> str | None:
    """The reason why the machine does not take a leaf, or None if it does."""
    if not machine.is_there():
        return "the machine is not built, or switched off"
    found = found_for(work, i, _rates_of(work, i), add, checked=True)[1]
    return found if isinstance(found, str) else None


def _ordered(columns: Columns) -> Columns:
    """The columns in the order of a row: the update or the parameter, t, and the moments."""
    first, *moments, t = columns
    return [first, t, *moments]


def _job(work: Work, add: bool) -> Job | None:
    """All leaves as one job, which the machine checks; None where it may not be one."""
    i = next((i for i, g in enumerate(work.g) if g is not None), None)
    if i is None or not machine.is_there():
        return None
    if work.method.rule is adamax and kernel.is_there():
        return None  # which comes first, and is proven leaf by leaf
    rates = {
        name: x if isinstance(x, (int, float)) else _single(name, x)
        for name, x in work.rates.items()
    }
    family, found = found_for(work, i, rates, add, checked=False)
    if isinstance(found, str) or family.reads:
        return None
    numbers = tuple(float(rates[name]) for name in found.numbers)
    return _given(work, found, range(len(work.g)), numbers)


def _taken(
    work: Work, where: Sequence[int], add: bool, do: Callable[..., Any]
) -> list[tuple[list[int], Any]]:
    """What ``do`` returns for leaves that it takes: all of one program, or else one by one."""
    if not machine.is_there():
        return []
    groups: dict[int, tuple[Runner, list[int]]] = {}
    for i in where:
        found = found_for(work, i, _rates_of(work, i), add, checked=True)[1]
        if isinstance(found, Runner):
            groups.setdefault(id(found.program), (found, []))[1].append(i)
    taken = []
    for runner, places in groups.values():
        done = do(*_job_of(work, runner, places))
        if done is not None:
            taken.append((places, done))
            continue
        singles = (([i], do(*_job_of(work, runner, [i]))) for i in places)
        taken += [(place, done) for place, done in singles if done is not None]
    return taken


def _job_of(work: Work, runner: Runner, places: list[int]) -> Job:
    assert work.hyper is not None
    columns = [work.hyper[name] for name in runner.numbers]
    return _given(work, runner, places, tuple([float(x[i]) for i in places] for x in columns))


def _given(work: Work, runner: Runner, where: Sequence[int], numbers: Numbers) -> Job:
    columns = [work.g, *([work.p] if runner.with_p else []), *work.moments.values()]
    counters = [work.t]
    if len(where) < len(work.g):
        columns = [[column[i] for i in where] for column in columns]
        counters = [[work.t[i] for i in where]]
    return Job(runner.program, tuple(columns), tuple(counters), numbers)


def _single(name: str, value: Any) -> Any:
    """A hyperparameter that is one number for all leaves, as ``Work.check`` has it."""
    if value is None or name == "derivative_floor":
        return value
    one = hyper.single(value)
    return value if one is None else one


def _rates_of(work: Work, i: int) -> dict[str, Any]:
    """The hyperparameters of one leaf."""
    assert work.hyper is not None
    return {name: column[i] for name, column in work.hyper.items()}
