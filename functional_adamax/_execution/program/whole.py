"""Executor: whole transforms as programs; a chain, whatever links it has, in one pass over memory.

It takes transforms that treat each leaf alone, beside what is computed once for the tree: those
that say so by ``is_local``. A norm of all leaves is a pass of its own. The file is longer than
others: what pure steps, steps in place and those of optimizers ask of a transform has to agree.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from threading import local
from typing import Any, NamedTuple

import torch

from ..._core import context as surroundings
from ..._core import donation, members, plans, pytree
from ..._core.plans import OverTrees, Plan
from ..._core.pytree import Tree
from ..._core.transform import Transform, asks
from . import batched, entries, machine, steps
from .columns import columns_of, example_of
from .forms import PLAIN, form_of
from .graph import Declined
from .kinds import Kind, kinds_of
from .record import Context, context
from .steps import Entry, Trees
from .trees import Given

_MOST = 256  # forms that are remembered
_MOST_KINDS = 16  # of leaves in one tree


class Key(NamedTuple):
    """What programs depend on."""

    form: Any
    spec: Any
    state_spec: Any
    kinds: tuple[Kind, ...]
    dtype: torch.dtype
    params: torch.dtype | None
    add: bool
    context: Context


class _Known(local):
    """The entry that was found last in this thread, with its key."""

    entry: tuple[Key, Entry | str] | None = None


_known = _Known()
_entries: dict[Key, Entry | str] = {}


def forget() -> None:
    """Forget all programs, so that they are made anew."""
    _entries.clear()
    _known.entry = None


def update(transform: Transform, updates: Tree, state: Any, params: Tree) -> Any:
    """Return the updates and the state, or None."""
    found = _found(transform, updates, state, params, add=False)
    return None if found is None else _stepped(*found)


def plan(transform: Transform, grads: Tree, state: Any, params: Tree, donate: bool) -> Plan | None:
    """Return a step before it is taken, or None."""
    found = _found(transform, grads, state, params, add=True)
    donate = donate and not surroundings.traced()
    return None if found is None else Whole(transform, found, (grads, state, params), donate)


def over(
    transform: Transform, g: list[Any], p: list[Any], state: list[Any], spec: Any, state_spec: Any
) -> tuple[Trees, Entry] | None:
    """Return what steps trees of which the leaves are given, as ``steps`` takes it, or None."""
    if (
        not _may_be_asked()
        or surroundings.traced()
        or not transform.is_local
        or set(map(type, g)) <= {type(None)}
    ):
        return None
    now = transform
    if asks(transform):
        given = (state_spec, state), (spec, g), (spec, p)
        now = transform.settled(*(x.unflatten(leaves) for x, leaves in given))
    try:
        found = _sought(now, Trees(form_of(now, spec), g, p, state, spec, state_spec, ()), add=True)
    except Declined:
        return None
    return None if isinstance(found, str) else found


def why_not(
    transform: Transform, grads: Tree, state: Any, params: Tree, add: bool = True
) -> str | None:
    """The reason why a settled transform is not run as programs, or None if it is."""
    found = _asked(transform, grads, state, params, add)
    return found if isinstance(found, str) else None


class Whole(OverTrees):
    """A step of a transform by its programs."""

    def __init__(
        self,
        transform: Transform,
        found: tuple[Trees, Entry],
        trees: tuple[Tree, Any, Tree],
        donate: bool,
    ) -> None:
        super().__init__(trees, donate)
        self._found = found
        self._by_rule = partial(plans.by_update, transform.update, *trees, donate, {})
        self._other: Plan | None = None

    def check(self) -> None:
        if self._write is not None or self.new is not None:
            return
        if self._donate:
            write = steps.planned(*self._found)
            self._write = None if write is None else partial(self._written, write)
        else:
            self.new = _stepped(*self._found)
        if self._write is None and self.new is None:
            self._other = other = self._by_rule()
            other.check()
            self.problem, self.new = other.problem, other.new

    def __call__(self) -> tuple[Tree, Any]:
        fresh = self._write is None and self.new is None and self._other is None
        if self._donate and fresh and steps.overwrite([self._found]):
            self.in_place = True
            _, state, params = self._trees
            return params, state
        self.check()
        if self._other is None:
            return super().__call__()
        result = self._other()
        self.in_place = self._other.in_place
        return result

    def _written(self, write: Callable[[], bool]) -> None:
        if write():
            return
        other = self._by_rule()
        new = other()
        if not other.in_place:
            _, state, params = self._trees
            donation.write_over((params, state), new)()


def _stepped(step: Trees, entry: Entry) -> Any:
    """The updates, or the parameters, and the state; or None where a leaf cannot be taken."""
    found = (batched if surroundings.traced() else steps).into_new(step, entry)
    if found is None:
        return None
    first, state = found
    return pytree.unflatten(step.spec, first), pytree.unflatten(step.state_spec, state)


def _found(
    transform: Transform, grads: Tree, state: Any, params: Tree, add: bool
) -> tuple[Trees, Entry] | None:
    if not _may_be_asked() or (surroundings.traced() and not surroundings.only_vmaps()):
        return None
    found = _asked(transform, grads, state, params, add)
    return None if isinstance(found, str) else found


def _may_be_asked() -> bool:
    return machine.is_there() and not entries.thread.is_compiling


def _asked(
    transform: Transform, grads: Tree, state: Any, params: Tree, add: bool
) -> tuple[Trees, Entry] | str:
    g, spec = pytree.flatten(grads)
    p, p_spec = ([], spec) if params is None else pytree.flatten(params)
    if spec != p_spec:
        return "the structures of its trees differ"
    flat, state_spec = pytree.flatten(state)
    try:
        return _sought(
            transform, Trees(form_of(transform, spec), g, p, flat, spec, state_spec, ()), add
        )
    except Declined as problem:
        return str(problem)


def _sought(transform: Transform, step: Trees, add: bool) -> tuple[Trees, Entry] | str:
    form, g, p = step.form, step.g, step.p
    at = next((i for i, x in enumerate(g) if x is not None), None)
    if at is None:
        return "it has no gradients"
    first = [g[at], *p[at : at + 1]]
    if not all(type(x) in PLAIN and x.is_cpu for x in first):
        return "its leaves are no plain tensors on the CPU"
    if torch.is_grad_enabled() and any(x.requires_grad for x in first):
        return "autograd records it"
    kinds, where = kinds_of(form, g, p)
    if len(kinds) > _MOST_KINDS:
        return "it treats its leaves in too many ways"
    step = step._replace(where=where)
    dtypes = g[at].dtype, first[1].dtype if p else None
    key = Key(form.key, step.spec, step.state_spec, kinds, *dtypes, add, context())
    known = _known.entry
    if known is None or known[0] != key:  # which is compared sooner than it is hashed
        _known.entry = known = key, _entry(transform, step, key)
    entry = known[1]
    return entry if isinstance(entry, str) else (step, entry)


def _entry(transform: Transform, step: Trees, key: Key) -> Entry | str:
    entry = _entries.get(key)
    if entry is None:
        entry = _entries[key] = _made(transform, step, key)
        while len(_entries) > _MOST:
            _entries.pop(next(iter(_entries)), None)
    return entry


def _made(transform: Transform, step: Trees, key: Key) -> Entry | str:
    """Make the programs; or return the reason why not."""
    like, trees = [example_of(kind, step.g, step.p) for kind in step.where], len(step.form.trees)
    try:
        state = pytree.unflatten(step.state_spec, step.state)
        found = columns_of(step.spec, state, step.state, like)
    except Declined as problem:
        return str(problem)
    given = Given(
        transform,
        tuple(members.first(x) if isinstance(x, torch.Tensor) else x for x in step.form.numbers),
        tuple(zip(*(x.choices[-trees:] for x in key.kinds), strict=True)) if trees else (),
        step.spec,
        state,
        key.kinds,
        found,
        key.dtype,
        key.params,
        key.add,
    )
    return entries.entry_of(given, key.context)


plans.executors.append(sys.modules[__name__])
