"""The update of a transform over a tree, recorded over a tree with a leaf of each kind.

Leaves are of one kind if masks and labels say the same of them, and all or none have gradients.
What is computed of a leaf, and of numbers that are one for it, is a graph; see
``tree_recorder.py`` for the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._core import apply, pytree, sums
from ..._core.pytree import Tree
from ..._core.transform import Transform
from ..native import kernel
from .columns import Column, Walker
from .forms import FLOATING, PLAIN, Others, value_of
from .graph import Declined, Graph
from .kinds import Kind
from .recorder import NOTED, Questions
from .tree_recorder import Operation, Phase, TreeRecorder

G, P, FIRST = "g", "p", "first"


def of(name: str, kind: int) -> str:
    """The name of an input or an output of a kind of leaves."""
    return f"{name} of {kind}"


def in_tree(tree: int, kind: int) -> str:
    """The name of the number that a tree of hyperparameters has for leaves of a kind."""
    return f"tree {tree} of {kind}"


class Given(NamedTuple):
    """What is recorded: a transform, and what its trees are like."""

    transform: Transform
    numbers: tuple[float | Tensor, ...]
    trees: tuple[tuple[Any, ...], ...]  # of each, what stays for each kind; None for a number
    spec: Any
    state: Tree
    kinds: tuple[Kind, ...]
    columns: tuple[Column, ...]
    dtype: torch.dtype  # of the gradients
    params: torch.dtype | None  # that of the parameters, or None where there are none
    add: bool  # whether the results are parameters, not updates

    def doubled(self) -> Given:
        """The same with two leaves of each kind."""
        columns = (c._replace(dtypes=2 * c.dtypes, vectors=2 * c.vectors) for c in self.columns)
        trees = tuple(2 * x for x in self.trees)
        return self._replace(kinds=2 * self.kinds, columns=tuple(columns), trees=trees)

    def small(self, numbers: list[Any], of_leaf: Callable[[str], float]) -> Transform:
        """The transform with other numbers, for a tree with a leaf of each kind."""
        choices = list(zip(*(x.choices for x in self.kinds), strict=True))
        trees: list[dict[int, Any]] = []
        for j, row in enumerate(self.trees):
            given = [of_leaf(in_tree(j, k)) for k in range(len(row))]
            pairs = zip(given, row, strict=True)
            trees.append({k: x if y is None else value_of(y) for k, (x, y) in enumerate(pairs)})
        found: Transform = Others(numbers, choices, trees).put_into(self.transform)
        return found


class Record(NamedTuple):
    """What was recorded of an update."""

    graph: Graph
    sequence: list[Operation | Phase]
    entered: list[tuple[str, int]]  # inputs of the graph that belong to the tree, and their places
    results: list[tuple[int, int]]  # positions of the flat state, and what comes there
    sources: list[int]  # of the first places: positions of the state, or numbers, from -1 down
    dtypes: list[torch.dtype]  # of those
    places: int

    def form(self) -> Any:
        """What is equal for equal records."""
        return self.graph.form(), *self[1:]


def record(given: Given, shape: tuple[int, ...], seed: int) -> Record:
    """Run an update over a leaf of each kind, all of one shape.

    Raises:
        Declined: it cannot be recorded, with the reason.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    kinds, known = range(len(given.kinds)), {c.start: c for c in given.columns}
    kind_of = {of(name, k): k for name in (G, P) for k in kinds}
    kind_of |= {c.old(k): k for c in given.columns for k in kinds}
    recorder = TreeRecorder(shape, kind_of)
    sources: list[int] = []
    dtypes: list[torch.dtype] = []

    def made(name: str, dtype: torch.dtype, vector: bool = True) -> Tensor:
        if dtype not in FLOATING:
            raise Declined(f"it has a tensor in {dtype}")
        size = shape if vector else ()
        x = torch.rand(size, dtype=dtype, generator=generator, device="cpu")
        recorder.take(name, x, vector)
        return x

    def column(start: int) -> Tree:
        c = known.get(start)
        dtypes = [None] * len(kinds) if c is None else c.dtypes
        return {
            k: pytree.EmptyState()
            if c is None or dtype is None
            else made(c.old(k), dtype, c.vectors[k])
            for k, dtype in enumerate(dtypes)
        }

    def of_tree(source: int, x: Tensor) -> Tensor:
        value = seed % 2 if x.dtype == torch.bool else 2.5 + 3 * seed + len(sources)
        new = torch.as_tensor(value, device="cpu").to(x.dtype)
        recorder.take_of_tree(new)
        sources.append(source)
        dtypes.append(x.dtype)
        return new

    def lone(start: int, x: Any) -> Any:
        if start in known:
            return column(start)
        if not isinstance(x, Tensor):
            return x
        if x.dim() or not x.is_cpu or type(x) not in PLAIN or x.requires_grad:
            raise Declined("its state has a tensor that belongs to no leaf, and is no number")
        return of_tree(start, x)

    values = torch.rand(len(given.numbers), dtype=torch.float64, generator=generator, device="cpu")
    numbers = [
        of_tree(-1 - i, x) if isinstance(x, Tensor) else recorder.number(f"number {i}", value)
        for i, (x, value) in enumerate(zip(given.numbers, values.tolist(), strict=True))
    ]
    old = Walker(given.spec, column, lone).walk(given.state)
    g = {
        k: made(of(G, k), given.dtype) if x.has_gradient else None
        for k, x in enumerate(given.kinds)
    }
    p = {k: made(of(P, k), given.params) for k in kinds} if given.params else None

    def of_leaf(name: str) -> float:
        value = torch.rand((), dtype=torch.float64, generator=generator, device="cpu").item()
        return recorder.number(name, value)

    transform = given.small(numbers, of_leaf)
    sums.watching.recorder = recorder
    try:
        with recorder, TreeQuestions(recorder):
            updates, new = transform.update(g, old, p)
            first = apply.updated(p, updates) if given.add else updates
    finally:
        sums.watching.recorder = None
    outputs, results = _named(recorder, given, first, old, new)
    if recorder.reads:
        raise Declined(f"it asks for the {' and '.join(sorted(recorder.reads))} of a leaf")
    graph = recorder.graph(outputs)
    graph.outputs |= recorder.squared
    entered, places = recorder.entered, recorder.places
    return Record(graph, recorder.sequence, entered, results, sources, dtypes, places)


def _named(
    recorder: TreeRecorder, given: Given, first: Tree, old: Tree, new: Tree
) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    """The results of leaves by their names, and those that belong to the tree."""
    olds, old_spec = pytree.flatten(old)
    news, new_spec = pytree.flatten(new)
    if old_spec != new_spec or not isinstance(first, dict):
        raise Declined("its state, or its updates, change their form")
    known = {c.start: c for c in given.columns}
    outputs = {of(FIRST, k): x for k, x in first.items() if x is not None}
    results: list[tuple[int, int]] = []
    for (start, k), x, y in zip(positions(given), olds, news, strict=True):
        if start in known and known[start].dtypes[k] is not None:
            outputs[known[start].new(k)] = y
        elif isinstance(x, Tensor) and y is not x and start not in known:
            place = recorder.place(y)
            if place is None:
                raise Declined("a tensor that belongs to the tree depends on a leaf")
            if any(y is z for z in olds):
                raise Declined("a tensor that belongs to the tree comes to another place")
            results.append((start, place))
        elif isinstance(y, Tensor) and y is not x:
            raise Declined("a leaf comes to have state")
    return outputs, results


def positions(given: Given) -> list[tuple[int, int]]:
    """Of each leaf of a state for small trees: where it lies in the flat one, and its kind."""
    found: list[tuple[int, int]] = []
    columns = {c.start for c in given.columns}

    def column(start: int) -> None:
        found.extend((start, k) for k in range(len(given.kinds)))

    def lone(start: int, _: Any) -> None:
        if start in columns:
            column(start)
        else:
            found.append((start, 0))

    Walker(given.spec, column, lone).walk(given.state)
    return found


_CHECKS = (
    *(
        f"{pytree.__package__}.{name}"
        for name in ("apply", "checks", "hyper", "memory", "norms", "private.dispatch")
    ),
    *(f"{__package__}.{name}" for name in ("recorder", "trees", "tree_recorder")),
    kernel.__name__,
)
"""What asks about leaves, and has the same results whatever the answers, but for what raises."""


class TreeQuestions(Questions):
    """Notes what a rule asks about a leaf; checks may ask."""

    _recorder: TreeRecorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in NOTED:
            return func(*args, **(kwargs or {}))
        is_of_tree = args and self._recorder.place(args[0]) is not None
        if is_of_tree or sys._getframe(1).f_globals["__name__"] in _CHECKS:
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)
