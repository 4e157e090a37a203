"""Executor: the rule itself, leaf by leaf, which takes everything."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .._core.numerics import add
from .._core.private import foreach
from . import rule
from .work import Row, Work


def part(work: Work, where: list[int], add_update: bool) -> dict[int, Row]:
    """Step the leaves, out of place."""
    rows: dict[int, Row] = {}
    for i in where:
        leaf = work.leaf(i)
        update, t, moments = rule.step(work.method.rule, leaf)
        first = add(leaf.p, update) if add_update else update
        rows[i] = [first, t, *(moments[name] for name in work.moments)]
    return rows


def written(work: Work, where: list[int]) -> dict[int, Callable[[], None]]:
    """Step the leaves out of place; return what writes the results of each over it."""
    return {i: partial(_copy, work, i, row) for i, row in part(work, where, True).items()}


def _copy(work: Work, i: int, row: Row) -> None:
    p, t, *moments = row
    work.p[i].copy_(p)
    foreach.copy_([work.t[i]], [t])  # Dynamo may drop a copy_ into a float64 scalar
    for column, x in zip(work.moments.values(), moments, strict=True):
        column[i].copy_(x)
