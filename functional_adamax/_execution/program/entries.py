"""The programs of whole transforms: an update is recorded, and each kind of leaves has a program.

They are held against the transform once more, as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from threading import local
from typing import NamedTuple

from torch import Tensor

from . import proof, samples, steps, trees
from .forms import Form, Hashed
from .graph import Declined, inputs_of
from .lower import Layout, Program, lower
from .record import Context, alone
from .steps import FIRST, GRADIENTS, PARAMS, Entry, Group, Trees
from .tree_recorder import Operation, Phase, name_of
from .trees import G, Given, P, Record, in_tree, of

_SHAPE, _OTHER = (7,), (2, 3, 2, 2)  # of the leaves that are recorded
_SAMPLES = {1: (67,), 2: (5, 3, 2, 2), 9: (67,)}
"""Seeds, and the shapes of leaves, by which a program is held against its transform."""


class _Thread(local):
    """What a thread does."""

    is_compiling = False  # a program: the transforms that it calls are not to make theirs


thread = _Thread()


def entry_of(given: Given, context: Context) -> Entry | str:
    """Record an update, and make the programs; or return the reason why not."""
    try:
        return alone(partial(_compiled, given), context)
    except Declined as problem:
        return str(problem)


def _compiled(given: Given) -> Entry:
    thread.is_compiling = True
    double = given.doubled()  # which tells a norm of all leaves from one of each
    record = trees.record(double, _SHAPE, 0)
    _check_numbers(record, double)
    graph, count = record.graph, len(given.kinds)
    if not _holds_without_dimensions(double, record):
        if trees.record(double, _OTHER, 1).form() != record.form():
            raise Declined("it does not do the same every time")
        graph.dims = 1
    parts = [_Part.of(given, record, k) for k in range(count)]
    sequence, entered = _needed(record, parts)
    counts = [x for x in sequence if isinstance(x, Phase) and x.kind == "count"]
    sequence = [x for x in sequence if x not in counts]  # which take no pass
    phases = [x for x in sequence if isinstance(x, Phase)]
    changed = [x for x in parts if x.is_changed(record, phases)]
    if not changed and not record.results:
        raise Declined("it does nothing")
    kept = [x.kind for x in parts if x not in changed]
    if given.add and any(given.kinds[k].has_gradient for k in kept):
        raise Declined("a leaf with a gradient is left as it is")
    numbers = [i for i, x in enumerate(given.numbers) if not isinstance(x, Tensor)]
    names = [*(f"number {i}" for i in numbers), *(name for name, _ in entered)]
    trees_of = [[in_tree(j, x.kind) for j in range(len(given.trees))] for x in changed]
    layouts = [
        x.layout._replace(numbers=names + own) for x, own in zip(changed, trees_of, strict=True)
    ]
    lowered = [lower(graph, layout) for layout in layouts]
    summands = {
        x.target: [
            _summand(record, layout, x.outputs[part.kind])
            for layout, part in zip(layouts, changed, strict=True)
        ]
        for x in phases
    }
    proof.prove([*lowered, *(y for row in summands.values() for y in row if y is not None)])
    groups = [
        Group((x.kind,), proof.made(program), x.columns, x.counters, x.written, x.alone)
        for x, program in zip(changed, lowered, strict=True)
    ]
    still = tuple(k for k in kept if not given.kinds[k].has_gradient)
    for i, group in enumerate(groups):
        if group.columns[0] == GRADIENTS:  # which looks at leaves without gradients, too
            groups[i] = group._replace(kinds=group.kinds + still)
            break
    sums = {
        target: [None if program is None else proof.made(program) for program in row]
        for target, row in summands.items()
    }
    entry = Entry(
        tuple(groups),
        count,
        given.add,
        tuple(record.sources),
        tuple(record.dtypes),
        record.places,
        tuple(sequence),
        sums,
        tuple((x.target, x.power) for x in counts),
        tuple(numbers),
        tuple(place for _, place in entered),
        tuple(record.results),
    )
    ops = {x.op for program in lowered for x in program.vector}
    signed = not ops & set(proof.ZEROS)
    if not all(_agrees(double, entry, shape, seed, signed) for seed, shape in _SAMPLES.items()):
        raise Declined("its program has not the bits of the transform")
    return entry.complete()


def _needed(
    record: Record, parts: list[_Part]
) -> tuple[list[Operation | Phase], list[tuple[str, int]]]:
    """What is done once for a step, and what enters programs, for the first leaf of each kind."""
    outputs, count = record.graph.outputs, len(parts)
    place_of = dict(record.entered)
    needed = {place for _, place in record.results}
    used: set[str] = set()

    def use(names: Iterable[str]) -> None:
        used.update(inputs_of(outputs[name] for name in names))
        needed.update(place_of[name] for name in used & place_of.keys())

    for part in parts:
        use(new for new, _ in part.layout.outputs)
        use(new for _, new in part.layout.counters)
    sequence: list[Operation | Phase] = []
    for x in reversed(record.sequence):
        if x.target not in needed:
            continue
        sequence.append(x)
        if isinstance(x, Phase):
            _check(x, count)
            use(name for name in x.outputs[:count] if name is not None)
        else:
            needed.update(x.reads())
    return sequence[::-1], [(name, place) for name, place in record.entered if name in used]


def _check(phase: Phase, count: int) -> None:
    """Check that a sum is over all leaves of each kind that it is over, or over one leaf."""
    first, second = (
        [x is not None for x in y] for y in (phase.outputs[:count], phase.outputs[count:])
    )
    if phase.leaf is None and first != second:
        raise Declined("it adds up the elements of one leaf, or of some")


def _check_numbers(record: Record, given: Given) -> None:
    """Check that numbers of a leaf, such as its norm, enter what becomes of that leaf alone."""
    outputs = record.graph.outputs
    phases = [x for x in record.sequence if isinstance(x, Phase)]
    leaf = {name_of(x.target): x.leaf for x in phases if x.leaf is not None}
    for k in range(len(given.kinds)):
        names = {of(trees.FIRST, k), *(c.new(k) for c in given.columns)}
        names |= {name for x in phases if (name := x.outputs[k]) is not None}
        used = inputs_of(outputs[name] for name in names & outputs.keys())
        if any(leaf[name] != k for name in used & leaf.keys()):
            raise Declined("what becomes of a leaf depends on another")


def _holds_without_dimensions(given: Given, record: Record) -> bool:
    """Whether leaves of one element have the same record, on other values.

    Then leaves of any shape have it, although types are promoted otherwise without dimensions.
    """
    try:
        return bool(trees.record(given, (), 1).form() == record.form())
    except Declined:
        return False


class _Part(NamedTuple):
    """The part of a record that is about leaves of one kind."""

    kind: int
    layout: Layout
    columns: tuple[int, ...]
    counters: tuple[int, ...]
    written: tuple[int, ...]
    alone: tuple[int, ...]

    @classmethod
    def of(cls, given: Given, record: Record, k: int) -> _Part:
        """Look at the leaves of the kind ``k``."""
        inputs, outputs = record.graph.inputs, record.graph.outputs
        kept = [c for c in given.columns if c.dtypes[k] is not None]
        vectors = [c for c in kept if c.vectors[k]]
        counters = [c for c in kept if not c.vectors[k]]
        columns = {GRADIENTS: of(G, k)} if given.kinds[k].has_gradient else {}
        columns |= {PARAMS: of(P, k)} if given.params else {}
        columns |= {c.start: c.old(k) for c in vectors}
        written = {c.start: (c.new(k), c.old(k)) for c in vectors}
        written[FIRST] = of(trees.FIRST, k), of(P if given.add else G, k)
        written = {
            start: (new, old)
            for start, (new, old) in written.items()
            if new in outputs and outputs[new] is not inputs[old]
        }
        counted = [(c.old(k), c.new(k)) for c in counters]
        layout = Layout(list(columns.values()), list(written.values()), counted, [])
        starts = tuple(c.start for c in counters)
        alone = [c.start for c in counters if inputs_of([outputs[c.new(k)]]) <= {c.old(k)}]
        return cls(k, layout, tuple(columns), starts, tuple(written), tuple(alone))

    def is_changed(self, record: Record, phases: list[Phase]) -> bool:
        """Whether something becomes of the leaves, or enters a sum."""
        inputs, outputs = record.graph.inputs, record.graph.outputs
        counts = any(outputs[new] is not inputs[old] for old, new in self.layout.counters)
        return bool(self.written) or counts or any(x.outputs[self.kind] for x in phases)


def _summand(record: Record, layout: Layout, output: str | None) -> Program | None:
    """The program of what is squared and added up, or None."""
    if output is None:
        return None
    layout = layout._replace(outputs=[(output, layout.columns[0])])
    return lower(record.graph, layout, stored=False)


def _agrees(given: Given, entry: Entry, shape: tuple[int, ...], seed: int, signed: bool) -> bool:
    """Whether programs have the results of the transform itself, over two leaves of each kind."""
    x = samples.sample(given, shape, seed)
    where = [[k, entry.kinds + k] for k in range(entry.kinds)]
    step = Trees(
        Form(Hashed(None), given.numbers, (), x.trees), x.g, x.p, x.state, None, None, where
    )
    found = steps.into_new(step, entry.at(x.at))
    if found is None:
        return False
    first, state = found
    pairs = [*zip(x.first, first, strict=True), *zip(x.new, state, strict=True)]
    return all(
        proof.same_bits(y, z, signed)
        if isinstance(y, Tensor) and isinstance(z, Tensor)
        else bool(y == z)
        for y, z in pairs
    )
