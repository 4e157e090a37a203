"""Executor: programs under ``vmap``, in one call for all leaves and all members.

The tensors of all members are taken out, stacked, stepped by the machine, and put back. Each member
of a leaf is a row with numbers, and with norms, of its own: the bits are those of a loop over the
members.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..._core import context
from ..._core.members import Members
from ..._core.private import transforms
from ..work import Columns, Work
from . import executor, steps
from .programs import Runner
from .steps import Entry, Trees


def compute(work: Work, add: bool) -> Columns | None:
    """Step all leaves inside of ``vmap``s, checks included, or return None.

    None where the machine cannot take them all, another transform is running, autograd records, or
    a hyperparameter is neither a number nor one for each member.
    """
    sizes = context.only_vmaps()
    found = None if sizes is None else executor.runner_of(work, add)
    if sizes is None or found is None:
        return None
    return transforms.outside(partial(_of_method, work, *found, add, sizes))


def into_new(step: Trees, entry: Entry) -> tuple[list[Any], list[Any]] | None:
    """Do what ``steps.into_new`` does, inside of ``vmap``s."""
    sizes = context.only_vmaps()
    return None if sizes is None else transforms.outside(partial(_of_tree, step, entry, sizes))


def _of_method(
    work: Work, runner: Runner, rates: dict[str, Any], add: bool, sizes: dict[int, int]
) -> Columns | None:
    columns = [work.p, work.g, work.t, *work.moments.values()]
    *taken, numbers = map(_taken_out, (*columns, [rates[name] for name in runner.numbers]))
    members = _members(sizes, *taken, numbers)
    if members is None:
        return None
    stacked = p, g, t, *moments = [_stacked(members, column) for column in taken]
    kept = dict(zip(work.moments, moments, strict=True))
    whole = Work(work.method, work.tree, work.spec, p, g, t, kept, work.rates, work.given)
    given = [_number(x, len(g)) for x in _stacked(members, numbers, range(len(numbers)))]
    new = executor.stepped(whole, executor.job_of(whole, runner, None, given), add, members.count)
    if new is None:
        return None
    of = 0 if add else 1, 2, *range(3, len(columns))  # the columns that they replace
    _share(members, new[1], work.t, range(len(t)))
    return [_put_back(members, x, stacked[k], columns[k]) for k, x in zip(of, new, strict=True)]


def _of_tree(
    step: Trees, entry: Entry, sizes: dict[int, int]
) -> tuple[list[Any], list[Any]] | None:
    g, p, state, numbers = map(_taken_out, (step.g, step.p, step.state, step.form.numbers))
    members = _members(sizes, g, p, state, numbers)
    if members is None:
        return None
    whole = step._replace(
        g=_stacked(members, g),
        p=_stacked(members, p),
        state=_stacked(members, state, entry.sources),
        form=step.form._replace(numbers=tuple(_stacked(members, numbers, range(len(numbers))))),
        members=members.count,
    )
    found = steps.into_new(whole, entry)
    if found is None:
        return None
    first, new = found
    alone = [i + k for group in entry.groups for i in group.alone for k in range(len(g))]
    _share(members, new, step.state, alone)
    stacked, given = (whole.p, step.p) if entry.add else (whole.g, step.g)
    return (
        _put_back(members, first, stacked, given),
        _put_back(members, new, whole.state, step.state),
    )


def _taken_out(column: Sequence[Any]) -> list[Any]:
    return [transforms.taken_out(x) if isinstance(x, Tensor) else x for x in column]


def _members(sizes: dict[int, int], *columns: list[Any]) -> Members | None:
    """The members of columns that are taken out; None where autograd records, for one."""
    taken = [x for column in columns for x in column if type(x) is tuple]
    if torch.is_grad_enabled() and any(x.requires_grad for x, _ in taken):
        return None
    return Members.of(sizes, taken)


def _stacked(members: Members, column: list[Any], shared: Collection[int] = ()) -> list[Any]:
    """A column with the tensors of all members; in some places they may share one."""
    stack = members.stacked
    if not shared:
        return [stack(x) if type(x) is tuple else x for x in column]
    return [
        x if type(x) is not tuple else x[0] if i in shared and not x[1] else stack(x)
        for i, x in enumerate(column)
    ]


def _number(x: Any, leaves: int) -> float | list[float]:
    """A hyperparameter as the machine is given it."""
    return x.tolist() * leaves if isinstance(x, Tensor) and x.dim() else float(x)


def _share(members: Members, new: list[Any], given: list[Any], alone: Iterable[int]) -> None:
    """Let all members share results that depend on what they share alone."""
    for i in set(alone):
        if members.count and isinstance(new[i], Tensor) and not transforms.wraps(given[i]):
            new[i] = new[i][0].clone()


def _put_back(members: Members, new: list[Any], stacked: list[Any], given: list[Any]) -> list[Any]:
    """Results as tensors of the ``vmap``s; what stays is what was given."""
    put_back = members.put_back
    return [z if x is y else put_back(x) for x, y, z in zip(new, stacked, given, strict=True)]
