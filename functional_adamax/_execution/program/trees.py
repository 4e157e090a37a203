"""The update of a transform over a tree, recorded over a tree of one leaf.

What is computed of tensors that belong to the tree, a count or a flag, is kept apart: it is done
once for a step, in torch. What is computed of a leaf, and of numbers that are one for it, is a
graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._core import apply, pytree, sums
from ..._core.private import dispatch
from ..._core.pytree import Tree
from ..._core.transform import Transform
from .forms import FLOATING, PLAIN, with_numbers
from .graph import Declined, Graph, Node
from .recorder import Questions, Recorder

G, P, FIRST = "g", "p", "first"
_LEAF = "leaf"  # the key of the one leaf
_OF_DTYPES = ("aten::result_type", "aten::promote_types")


class Column(NamedTuple):
    """A part of a state that is a tree like the parameters."""

    start: int  # of its leaves in the flat state
    vector: bool  # whether it holds a tensor like the leaf, or one of one number
    dtype: torch.dtype

    @property
    def old(self) -> str:
        """The input of a record that it is."""
        return f"column {self.start}"

    @property
    def new(self) -> str:
        """The output of a record that it becomes."""
        return f"new column {self.start}"


class Place(NamedTuple):
    """Where the tensor lies that is an argument of an operation."""

    at: int


class Hyper(NamedTuple):
    """Which hyperparameter a number is that is an argument of an operation."""

    at: int


class Operation(NamedTuple):
    """What is done once for a step."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Phase(NamedTuple):
    """A sum of squares over all leaves, for which they are passed over once."""

    output: str  # what is squared


class Walker:
    """Walks a state in the order of its flat leaves, and replaces its parts."""

    def __init__(
        self, spec: Any, column: Callable[[int], Any], lone: Callable[[int, Any], Any]
    ) -> None:
        self._spec, self._column, self._lone = spec, column, lone
        self._position = 0

    def walk(self, node: Tree) -> Tree:
        """Return ``node`` with other columns, and other leaves that are in none."""
        start = self._position
        leaves, spec = pytree.flatten(node)
        is_tree = spec == self._spec and any(isinstance(x, Tensor) for x in leaves)
        if is_tree and not spec.is_leaf():  # not a tuple of empty states, for params that are one
            self._position += self._spec.num_leaves
            return self._column(start)
        if not pytree.is_node(node):
            self._position += 1
            return self._lone(start, node)
        children, _, build = pytree.open_node(node)
        return build([self.walk(child) for child in children])


class TreeRecorder(Recorder):
    """Keeps apart what is computed of tensors that belong to the tree."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.sequence: list[Operation | Phase] = []
        self.entered: list[tuple[str, int]] = []  # inputs of the graph, and where they lie
        self.squared: dict[str, Node] = {}
        self._of_tree: list[Tensor] = []
        self._place: dict[int, int] = {}
        self._sums = [torch.full((), 2.5 + k, dtype=torch.float64, device="cpu") for k in range(8)]

    def take_of_tree(self, x: Tensor) -> None:
        """Give a place to a tensor that belongs to the tree."""
        self._place[id(x)] = len(self._of_tree)
        self._of_tree.append(x)

    def place(self, x: Any) -> int | None:
        """The place of a tensor that belongs to the tree, or None."""
        return self._place.get(id(x))

    def read(self, x: Tensor) -> Node:
        place = self._place.get(id(x))
        if place is not None and id(x) not in self._node:
            self._enter(x, place)
        return super().read(x)

    def _enter(self, x: Tensor, place: int) -> None:
        name = f"of the tree {place}"
        self.take(name, x, vector=False)
        self.entered.append((name, place))

    def sum_of_squares(self, tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Take note of a sum over all leaves, and return what stands for it."""
        nodes = [self.read(x) for x in tensors]
        if len(nodes) != 1 or dtype != torch.float64 or nodes[0].dtype != torch.float32:
            raise self.decline("it adds up other squares than those of leaves in float32")
        if not self._sums or not nodes[0].vector:
            raise self.decline("it adds up too much")
        output = f"squared {len(self.squared)}"
        self.squared[output] = nodes[0]
        self.sequence.append(Phase(output))
        found = self._sums.pop()
        self._of_tree.append(found)
        self._enter(found, len(self._of_tree) - 1)
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = pytree.tensors((args, kwargs))
        name = dispatch.name_of(func)
        if name in _OF_DTYPES:
            return func(*args, **kwargs)
        if all(id(x) in self._place for x in given) and self._is_plain((args, kwargs)):
            return self._once(func, args, kwargs)
        if name == "aten::view" and list(args[0].shape) == list(args[1]):
            out = func(*args)
            self._name(out, self.read(args[0]))
            return out
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _once(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        name = dispatch.name_of(func)
        if name in dispatch.READS:
            raise self.decline("it reads the value of a tensor")
        if dispatch.writes(func) or torch.Tag.nondeterministic_seeded in func.tags:
            raise self.decline(f"it calls {name} of what belongs to the tree")
        out = func(*args, **kwargs)
        if not name.startswith("aten::") or not isinstance(out, Tensor):
            raise self.decline(f"it calls {name} of what belongs to the tree")
        args, kwargs = pytree.tree_map(self._placed, (args, kwargs))
        self.sequence.append(Operation(func, args, kwargs))
        self.take_of_tree(out)
        return out

    def _is_plain(self, given: Any) -> bool:
        """Whether no number among the arguments is computed of hyperparameters."""
        numbers = (self._maker.known(x) for x in pytree.flatten(given)[0] if type(x) is float)
        return all(node is None or node.op == "INPUT" for node in numbers)

    def _placed(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return Place(self._place[id(x)])
        node = self._maker.known(x) if type(x) is float else None
        return x if node is None else Hyper(int(node.value.split()[1]))


_CHECKS = (
    *(
        f"{pytree.__package__}.{name}"
        for name in ("apply", "checks", "hyper", "norms", "private.dispatch")
    ),
    *(f"{__package__}.{name}" for name in ("recorder", "trees")),
)
"""What asks about leaves, and does not do otherwise for the answers, but for what raises."""


class TreeQuestions(Questions):
    """Notes what a rule asks about a leaf; checks may ask."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = args and self._recorder.place(args[0]) is not None
        if known or sys._getframe(1).f_globals["__name__"] in _CHECKS:
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


class Record(NamedTuple):
    """What was recorded of an update."""

    graph: Graph
    sequence: list[Operation | Phase]
    entered: list[tuple[str, int]]
    results: list[tuple[int, int]]  # positions of the flat state, and what comes there

    def form(self) -> Any:
        """What is equal for equal records."""
        return self.graph.form(), self.sequence, self.entered, self.results


class Given(NamedTuple):
    """What is recorded: a transform, and what its trees are like."""

    transform: Transform
    numbers: tuple[float | Tensor, ...]
    spec: Any
    state: Tree
    columns: tuple[Column, ...]
    dtype: torch.dtype
    has_params: bool
    add: bool  # whether the results are parameters, not updates


def record(given: Given, shape: tuple[int, ...], seed: int, missing: bool = False) -> Record:
    """Run an update over one leaf of a shape, whose gradient may be missing.

    Raises:
        Declined: it cannot be recorded, with the reason.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    recorder = TreeRecorder(shape)
    known = {c.start: c for c in given.columns}

    def made(name: str, dtype: torch.dtype, vector: bool = True) -> Tensor:
        if dtype not in FLOATING:
            raise Declined(f"it has a tensor in {dtype}")
        size = shape if vector else ()
        x = torch.rand(size, dtype=dtype, generator=generator, device="cpu")
        recorder.take(name, x, vector)
        return x

    def column(start: int) -> Tree:
        c = known.get(start)
        return {_LEAF: pytree.EmptyState() if c is None else made(c.old, c.dtype, c.vector)}

    def lone(start: int, x: Any) -> Any:
        if start in known:
            return column(start)
        if not isinstance(x, Tensor):
            return x
        if x.dim() or not x.is_cpu or type(x) not in PLAIN or x.requires_grad:
            raise Declined("its state has a tensor that belongs to no leaf, and is no number")
        value = seed % 2 if x.dtype == torch.bool else 2.5 + 3 * seed
        new = torch.as_tensor(value, device="cpu").to(x.dtype)
        recorder.take_of_tree(new)
        return new

    values = torch.rand(len(given.numbers), dtype=torch.float64, generator=generator, device="cpu")
    numbers = [
        made(f"number {i}", x.dtype, False)
        if isinstance(x, Tensor)
        else recorder.number(f"number {i}", value)
        for i, (x, value) in enumerate(zip(given.numbers, values.tolist(), strict=True))
    ]
    transform = with_numbers(given.transform, list(numbers))
    old = Walker(given.spec, column, lone).walk(given.state)
    g = {_LEAF: None if missing else made(G, given.dtype)}
    p = {_LEAF: made(P, given.dtype)} if given.has_params else None
    sums.watching.recorder = recorder.sum_of_squares
    try:
        with recorder, TreeQuestions(recorder):
            updates, new = transform.update(g, old, p)
            first = apply.updated(p, updates) if given.add else updates
    finally:
        sums.watching.recorder = None
    return _recorded(recorder, given, known, first[_LEAF], old, new)


class Sample(NamedTuple):
    """A step of one leaf with numbers as they come, and what a transform makes of it."""

    g: Tensor
    p: Tensor | None
    state: list[Any]  # flat, at the positions of the recorded state; the others are None
    first: Any
    new: dict[int, Any]  # by position


def sample(given: Given, size: int, seed: int) -> Sample:
    """Run an update over one leaf, by the rule."""
    generator = torch.Generator("cpu").manual_seed(seed)
    known = {c.start: c for c in given.columns}
    state: list[Any] = [None] * len(pytree.flatten(given.state)[0])
    starts: list[int] = []

    def made(dtype: torch.dtype) -> Tensor:
        return torch.randn(size, dtype=dtype, generator=generator, device="cpu")

    def column(start: int) -> Tree:
        starts.append(start)
        c = known.get(start)
        if c is None:
            state[start] = pytree.EmptyState()
            return {_LEAF: state[start]}
        x = made(c.dtype).abs() if c.vector else torch.tensor(seed, dtype=c.dtype, device="cpu")
        state[start] = x
        return {_LEAF: x}

    def lone(start: int, x: Any) -> Any:
        if start in known:
            return column(start)
        starts.append(start)
        state[start] = torch.as_tensor(seed, dtype=x.dtype) if isinstance(x, Tensor) else x
        return state[start]

    g, p = made(given.dtype), made(given.dtype) if given.has_params else None
    old = Walker(given.spec, column, lone).walk(given.state)
    params = None if p is None else {_LEAF: p}
    updates, new = given.transform.update({_LEAF: g}, old, params)
    first = apply.updated(params, updates) if given.add else updates
    return Sample(g, p, state, first[_LEAF], dict(zip(starts, pytree.flatten(new)[0], strict=True)))


def _recorded(
    recorder: TreeRecorder, given: Given, known: dict[int, Column], first: Any, old: Tree, new: Tree
) -> Record:
    """What a recorder saw, by the names of the results."""
    olds, old_spec = pytree.flatten(old)
    news, new_spec = pytree.flatten(new)
    if old_spec != new_spec:
        raise Declined("its state changes its form")
    starts: list[int] = []
    Walker(given.spec, starts.append, lambda start, _: starts.append(start)).walk(given.state)
    outputs = {} if first is None else {FIRST: first}
    results: list[tuple[int, int]] = []
    for start, x, y in zip(starts, olds, news, strict=True):
        if start in known:
            outputs[known[start].new] = y
        elif isinstance(x, Tensor) and y is not x:
            place = recorder.place(y)
            if place is None:
                raise Declined("a tensor that belongs to the tree depends on a leaf")
            if any(y is z for z in olds):
                raise Declined("a tensor that belongs to the tree comes to another place")
            results.append((start, place))
    if recorder.reads:
        raise Declined(f"it asks for the {' and '.join(sorted(recorder.reads))} of a leaf")
    graph = recorder.graph(outputs)
    graph.outputs |= recorder.squared
    return Record(graph, recorder.sequence, recorder.entered, results)


def columns_of(
    spec: Any, state: Tree, flat: list[Any], like: Tensor, at: int
) -> tuple[Column, ...]:
    """The parts of a state that are trees like the parameters; ``like`` is the leaf ``at``.

    Raises:
        Declined: it is not told whether a part holds tensors like the leaf, or numbers.
    """
    found: list[Column] = []

    def column(start: int) -> None:
        x = flat[start + at]
        if isinstance(x, Tensor):
            found.append(Column(start, x.dim() > 0, x.dtype))

    def lone(start: int, x: Any) -> None:
        if isinstance(x, Tensor) and spec.is_leaf() and x.dim():
            found.append(Column(start, True, x.dtype))

    if like.dim() == 0:
        raise Declined("its first leaf has no dimension")
    Walker(spec, column, lone).walk(state)
    return tuple(found)
