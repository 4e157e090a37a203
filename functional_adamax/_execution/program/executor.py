"""Executor: the rule of any method, recorded once and run by the machine.

It takes plain tensors on the CPU, of one dtype in each leaf, whose elements lie side by side in the
same order, with numbers or tensors of one element as hyperparameters. ``programs.py`` makes the
programs; what has none is left to the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from ..._core import hyper, pytree
from ..adamax_rule import adamax
from ..native import kernel
from ..work import Columns, Row, Work
from . import machine
from .machine import Numbers, Part
from .programs import Runner, found_for, rates_of, shared_out


class Job(NamedTuple):
    """One step of some leaves by one program."""

    part: Part
    numbers: Numbers


def compute(work: Work, add: bool) -> Columns | None:
    """Step all leaves into new tensors, checks included, or return None."""
    job = _job(work, add)
    return None if job is None else stepped(work, job, add)


def part(work: Work, where: list[int], add: bool) -> dict[int, Row]:
    """Step those of the leaves that the machine takes."""
    rows: dict[int, Row] = {}
    for places, columns in _taken(work, where, add, partial(stepped, work, add=add)):
        rows |= {i: [column[i] for column in columns] for i in places}
    return rows


def overwrite(work: Work) -> bool:
    """Step all leaves in place, checks included; False with nothing written."""
    if torch.is_grad_enabled() and _are_learned(work.rates):
        return False
    job = _job(work, add=True)
    return job is not None and machine.overwrite([machine.Step([job.part], [], job.numbers)])


def plan(work: Work) -> Callable[[], bool] | None:
    """Return what steps all leaves over their tensors, if the machine takes them, or None."""
    job = _job(work, add=True)
    return None if job is None else _planned(job)


def written(work: Work, where: list[int]) -> list[tuple[list[int], Callable[[], bool]]]:
    """Return what steps some of the leaves, which it names, over their tensors."""
    return _taken(work, where, True, _planned)


def _are_learned(rates: dict[str, Any]) -> bool:
    values = (x for x in rates.values() if not isinstance(x, (int, float)))
    return any(x.requires_grad for x in pytree.tensors(list(values)))


def _planned(job: Job) -> Callable[[], bool] | None:
    planned = machine.plan([job.part], in_place=True)
    return None if planned is None else partial(machine.write, planned, job.numbers)


def stepped(work: Work, job: Job, add: bool, members: int = 0) -> Columns | None:
    """The results of all leaves, where they are stepped, in the order of a row."""
    first, t = list(work.p if add else work.g), list(work.t)
    moments = list(map(list, work.moments.values()))
    done = machine.into_new(job.part, job.numbers, [first, *moments, t], members)
    return [first, t, *moments] if done else None


def why_not(work: Work, i: int, add: bool = True) -> str | None:
    """The reason why the machine does not take a leaf, or None if it does."""
    if not machine.is_there():
        return "the machine is not built, or switched off"
    found = found_for(work, i, rates_of(work, i), add, checked=True)[1]
    return found if isinstance(found, str) else None


def _job(work: Work, add: bool) -> Job | None:
    """All leaves as one job, which the machine checks; None where it may not be one."""
    if work.method.rule is adamax and kernel.is_there():
        return None  # which comes first, and is proven leaf by leaf
    found = runner_of(work, add)
    if found is None:
        return None
    runner, rates = found
    return job_of(work, runner, None, [float(rates[name]) for name in runner.numbers])


def runner_of(work: Work, add: bool) -> tuple[Runner, dict[str, Any]] | None:
    """The program of all leaves, and their hyperparameters, numbers or tensors of shape ()."""
    i = next((i for i, g in enumerate(work.g) if g is not None), None)
    if i is None or not machine.is_there():
        return None
    rates = {
        name: x if isinstance(x, (int, float)) else _single(name, x)
        for name, x in work.rates.items()
    }
    family, found = found_for(work, i, rates, add, checked=False)
    return None if isinstance(found, str) or family.reads else (found, rates)


def _taken(
    work: Work, where: Sequence[int], add: bool, do: Callable[..., Any]
) -> list[tuple[list[int], Any]]:
    """What ``do`` returns for leaves that it takes: all of one program, or else one by one."""
    if not machine.is_there():
        return []

    def find(i: int) -> Any:
        return found_for(work, i, rates_of(work, i), add, checked=True)

    taken = []
    for runner, places in shared_out(work, where, find):
        done = do(_part_of(work, runner, places))
        if done is not None:
            taken.append((places, done))
            continue
        singles = (([i], do(_part_of(work, runner, [i]))) for i in places)
        taken += [(place, done) for place, done in singles if done is not None]
    return taken


def _part_of(work: Work, runner: Runner, places: list[int]) -> Job:
    assert work.hyper is not None
    numbers: list[Any] = []
    for name in runner.numbers:
        numbers.append([0.0] * len(work.g))
        for i in places:
            numbers[-1][i] = float(work.hyper[name][i])
    return job_of(work, runner, places, numbers)


def job_of(work: Work, runner: Runner, where: list[int] | None, numbers: Numbers) -> Job:
    """Leaves, or None for all, with a program and its numbers."""
    columns = [work.g, *([work.p] if runner.with_p else []), *work.moments.values()]
    return Job(Part(runner.program, tuple(columns), (work.t,), where), numbers)


def _single(name: str, value: Any) -> Any:
    """A hyperparameter that is one number for all leaves, as ``Work.check`` has it."""
    if value is None or name == "derivative_floor":
        return value
    one = hyper.single(value)
    return value if one is None else one
