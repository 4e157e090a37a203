"""Executor: whole transforms as programs; a chain, whatever links it has, in one pass over memory.

It takes transforms of which each leaf is treated alike, and alone, beside what is computed once for
the tree: those that say so by ``is_local``. A norm of all leaves is a pass of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import local
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._core import context as surroundings
from ..._core import donation, plans, pytree
from ..._core.plans import OverTrees, Plan
from ..._core.pytree import Tree
from ..._core.transform import Transform
from . import machine, proof, trees
from .forms import PLAIN, Form, form_of
from .graph import Declined, Graph
from .lower import Layout, lower
from .record import Context, alone, context
from .trees import FIRST, Column, Given, Hyper, Operation, P, Phase, Place, Record

_SHAPES = ((7,), (11,), (3, 2), (2, 3, 2, 2))
_SAMPLE = 67  # elements by which a program is held against its transform
_MOST = 256  # forms that are remembered


class Key(NamedTuple):
    """What a program depends on."""

    form: Any
    spec: Any
    state_spec: Any
    dtype: torch.dtype
    has_params: bool
    has_missing: bool
    add: bool
    context: Context


@dataclass(frozen=True)
class Entry:
    """What runs a transform over trees of one form."""

    program: Any
    phases: dict[str, Any]  # the programs of what is squared and added up
    vectors: tuple[Column, ...]
    counters: tuple[Column, ...]
    of_tree: tuple[int, ...]  # positions of the tensors that belong to the tree
    sequence: tuple[Operation | Phase, ...]
    entered: tuple[int, ...]  # what of those, and of what is made of them, the programs read
    written: tuple[int, ...]  # starts of the columns that change
    passes: bool  # whether the updates are those that are given
    results: tuple[tuple[int, int], ...]  # positions of the state, and what comes there


class Flat(NamedTuple):
    """The trees of one step."""

    form: Form
    g: list[Any]
    p: list[Any]
    state: list[Any]
    spec: Any
    state_spec: Any


class _Thread(local):
    """What a thread does."""

    is_compiling = False  # a program: the transforms that it calls are not to make theirs


_thread = _Thread()
_entries: dict[Key, Entry | str] = {}


def update(transform: Transform, updates: Tree, state: Any, params: Tree) -> Any:
    """Return the updates and the state, or None."""
    return _pure(transform, updates, state, params, add=False)


def plan(transform: Transform, grads: Tree, state: Any, params: Tree, donate: bool) -> Plan | None:
    """Return a step before it is taken, or None."""
    found = _found(transform, grads, state, params, add=True)
    return None if found is None else Whole(transform, found, (grads, state, params), donate)


def why_not(
    transform: Transform, grads: Tree, state: Any, params: Tree, add: bool = True
) -> str | None:
    """The reason why a transform is not run as a program, or None if it is."""
    found = _asked(transform, grads, state, params, add)
    return found if isinstance(found, str) else None


def _pure(transform: Transform, updates: Tree, state: Any, params: Tree, add: bool) -> Any:
    found = _found(transform, updates, state, params, add)
    return None if found is None else _stepped(*found)


class Whole(OverTrees):
    """A step of a transform as a program."""

    def __init__(
        self,
        transform: Transform,
        found: tuple[Flat, Entry],
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
            self._write = _planned(*self._found, self._otherwise)
        else:
            self.new = _stepped(*self._found)
        if self._write is None and self.new is None:
            self._other = other = self._by_rule()
            other.check()
            self.problem, self.new = other.problem, other.new

    def __call__(self) -> tuple[Tree, Any]:
        self.check()
        if self._other is None:
            return super().__call__()
        result = self._other()
        self.in_place = self._other.in_place
        return result

    def _otherwise(self) -> None:
        other = self._by_rule()
        new = other()
        if not other.in_place:
            _, state, params = self._trees
            donation.write_over((params, state), new)()


def _found(
    transform: Transform, grads: Tree, state: Any, params: Tree, add: bool
) -> tuple[Flat, Entry] | None:
    if not machine.is_there() or _thread.is_compiling or surroundings.traced():
        return None
    found = _asked(transform, grads, state, params, add)
    return None if isinstance(found, str) else found


def _asked(
    transform: Transform, grads: Tree, state: Any, params: Tree, add: bool
) -> tuple[Flat, Entry] | str:
    try:
        form = form_of(transform)
    except Declined as problem:
        return str(problem)
    g, spec = pytree.flatten(grads)
    p, p_spec = ([], spec) if params is None else pytree.flatten(params)
    at = next((i for i, x in enumerate(g) if x is not None), None)
    if at is None or spec != p_spec:
        return "it has no gradients, or the structures of its trees differ"
    like = g[at]
    first = [like, *p[at : at + 1]]
    if not all(type(x) in PLAIN and x.is_cpu for x in first):
        return "its leaves are no plain tensors on the CPU"
    if any(x != x for x in form.numbers):  # which torch's bounds hand on, and the machine's do not
        return "a hyperparameter of it is NaN"
    if torch.is_grad_enabled() and any(x.requires_grad for x in first):
        return "autograd records it"
    flat, state_spec = pytree.flatten(state)
    step = Flat(form, g, p, flat, spec, state_spec)
    how = bool(p), any(x is None for x in g), add  # ``in`` would compare tensors
    key = Key(form.key, spec, state_spec, like.dtype, *how, context())
    entry = _entries.get(key)
    if entry is None:
        entry = _entries[key] = _made(transform, step, state, at, key)
        while len(_entries) > _MOST:
            _entries.pop(next(iter(_entries)), None)
    return entry if isinstance(entry, str) else (step, entry)


def _made(transform: Transform, step: Flat, state: Any, at: int, key: Key) -> Entry | str:
    """Record an update, and make the programs; or the reason why not."""
    try:
        columns = trees.columns_of(step.spec, state, step.state, step.g[at], at)
        given = Given(
            transform,
            step.form.numbers,
            step.spec,
            state,
            columns,
            key.dtype,
            key.has_params,
            key.add,
        )
        return alone(partial(_compiled, given, key.has_missing), key.context)
    except Declined as problem:
        return str(problem)
    except Exception as error:
        return f"it raises {type(error).__name__} on other values: {error}"


def _compiled(given: Given, has_missing: bool) -> Entry:
    _thread.is_compiling = True
    found, *others = (trees.record(given, shape, seed) for seed, shape in enumerate(_SHAPES))
    if any(x.form() != found.form() for x in others):
        raise Declined("it does not do the same every time")
    graph = found.graph
    if has_missing:
        _check_missing(given)
    graph.dims = 2 if _holds_without_dimensions(given, found) else 1
    vectors = tuple(c for c in given.columns if c.vector)
    counters = tuple(c for c in given.columns if not c.vector)
    names = [trees.G, *([P] if given.has_params else []), *(c.old for c in vectors)]
    written = [c for c in vectors if graph.outputs[c.new] is not graph.inputs[c.old]]
    passes = not given.add and graph.outputs[FIRST] is graph.inputs[trees.G]
    if passes and not given.columns and not found.results:
        raise Declined("it does nothing")
    first = [] if passes else [(FIRST, P if given.add else trees.G)]
    numbers = [f"number {i}" for i in range(len(given.numbers))]
    layout = Layout(
        names,
        [*first, *((c.new, c.old) for c in written)],
        [(c.old, c.new) for c in counters],
        [*numbers, *(name for name, _ in found.entered)],
    )
    lowered = lower(graph, layout)
    squared = [x.output for x in found.sequence if isinstance(x, Phase)]
    starts = {c.start for c in given.columns}
    entry = Entry(
        proof.made(lowered),
        {name: _phase(graph, layout, name) for name in squared},
        vectors,
        counters,
        _of_tree(given, starts),
        tuple(found.sequence),
        tuple(place for _, place in found.entered),
        tuple(c.start for c in written),
        passes,
        tuple(found.results),
    )
    signed = not any(x.op in proof.ZEROS for x in lowered.vector)
    if not all(_agrees(given, entry, seed, signed) for seed in (1, 2, 9)):
        raise Declined("its program has not the bits of the transform")
    return entry


def _agrees(given: Given, entry: Entry, seed: int, signed: bool) -> bool:
    """Whether a program has the results of the transform itself."""
    x = trees.sample(given, _SAMPLE, seed)
    p = [] if x.p is None else [x.p]
    found = _columns(Flat(Form(None, given.numbers), [x.g], p, x.state, None, None), entry)
    if found is None:
        return False
    (first,), state = found
    pairs = [(x.first, first), *((y, state[position]) for position, y in x.new.items())]
    return all(
        proof.same_bits(y, z, signed) if isinstance(y, Tensor) else bool(y == z) for y, z in pairs
    )


def _phase(graph: Graph, layout: Layout, output: str) -> Any:
    return proof.made(lower(graph, layout._replace(outputs=[(output, trees.G)])))


def _of_tree(given: Given, starts: set[int]) -> tuple[int, ...]:
    found: list[int] = []

    def lone(start: int, x: Any) -> None:
        if isinstance(x, Tensor) and start not in starts:
            found.append(start)

    trees.Walker(given.spec, lambda _: None, lone).walk(given.state)
    return tuple(found)


def _check_missing(given: Given) -> None:
    """Check that a leaf without a gradient is left as it is.

    Raises:
        Declined: it is not.
    """
    found = trees.record(given, (7,), 0, missing=True)
    inputs, outputs = found.graph.inputs, found.graph.outputs
    kept = all(outputs[c.new] is inputs[c.old] for c in given.columns)
    first = outputs.get(FIRST)
    if not kept or (first is not None and first is not inputs[P]):
        raise Declined("it changes leaves without a gradient")


def _holds_without_dimensions(given: Given, found: Record) -> bool:
    try:
        return bool(trees.record(given, (), 0).form() == found.form())
    except Declined:
        return False


def _job(step: Flat, entry: Entry, of_tree: list[Any]) -> tuple[Any, ...]:
    """The columns, the counters and the numbers that programs are given."""
    n = len(step.g)
    columns = [step.state[c.start : c.start + n] for c in entry.vectors]
    counters = [step.state[c.start : c.start + n] for c in entry.counters]
    entered = (float(of_tree[i]) if i < len(of_tree) else 0.0 for i in entry.entered)
    numbers = (*map(float, step.form.numbers), *entered)
    return (step.g, *([step.p] if step.p else []), *columns), tuple(counters), numbers


def _once(step: Flat, entry: Entry) -> list[Any] | None:
    """What belongs to the tree, and what is made of it; None where a sum cannot be made."""
    found: list[Any] = [step.state[i] for i in entry.of_tree]
    numbers = step.form.numbers
    if any(x.requires_grad for x in found):
        return None
    with torch.no_grad():
        for x in entry.sequence:
            if isinstance(x, Phase):
                if not all(g is None or g.is_contiguous() for g in step.g):
                    return None  # whose elements are not added up in the order of memory
                total = machine.summed(entry.phases[x.output], *_job(step, entry, found))
                if total is None:
                    return None
                found.append(total)
            else:
                args = [
                    found[y.at] if type(y) is Place else numbers[y.at] if type(y) is Hyper else y
                    for y in x.args
                ]
                found.append(x.function(*args, **x.kwargs))
    return found


def _stepped(step: Flat, entry: Entry) -> Any:
    """The updates, or the parameters, and the state; or None where a leaf cannot be taken."""
    found = _columns(step, entry)
    if found is None:
        return None
    first, state = found
    return pytree.unflatten(step.spec, first), pytree.unflatten(step.state_spec, state)


def _columns(step: Flat, entry: Entry) -> tuple[list[Any], list[Any]] | None:
    """The same, flat."""
    of_tree = _once(step, entry)
    if of_tree is None:
        return None
    columns = machine.stepped(entry.program, *_job(step, entry, of_tree))
    if columns is None:
        return None
    n, state = len(step.g), step.state.copy()
    first, *rest = (step.g, *columns) if entry.passes else columns
    starts = [*entry.written, *(c.start for c in entry.counters)]
    for start, column in zip(starts, rest, strict=True):
        state[start : start + n] = column
    for position, place in entry.results:
        state[position] = of_tree[place]
    return first, state


def _planned(step: Flat, entry: Entry, otherwise: Callable[[], None]) -> Callable[[], None] | None:
    """Return what steps over the trees, or None where a leaf cannot be taken."""
    of_tree = _once(step, entry)
    if of_tree is None or not _may_write([step.state[i] for i, _ in entry.results]):
        return None
    write = machine.plan(entry.program, *_job(step, entry, of_tree))
    if write is None:
        return None
    pairs = [(step.state[position], of_tree[place]) for position, place in entry.results]
    return partial(_commit, write, pairs, otherwise)


def _may_write(of_tree: list[Tensor]) -> bool:
    """Whether each tensor that belongs to the tree has memory of its own, and can be written."""
    own = all(x.untyped_storage().nbytes() == x.element_size() for x in of_tree)
    apart = len({x.data_ptr() for x in of_tree}) == len(of_tree)
    frozen = not torch.is_inference_mode_enabled() and any(x.is_inference() for x in of_tree)
    return own and apart and not frozen


def _commit(
    write: Callable[[], bool], pairs: list[tuple[Tensor, Tensor]], otherwise: Callable[[], None]
) -> None:
    if not write():  # memory was moved, or counted on, meanwhile
        otherwise()
        return
    for old, new in pairs:
        old.copy_(new)


plans.executors.append(sys.modules[__name__])
