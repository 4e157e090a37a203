"""The derivative of a record in reverse, as another record.

It goes through the operations backwards, as autograd does, and takes the formulas that torch has
for them, so that its results have the bits of autograd. What the record computes is computed again
from its inputs, and nothing but these has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache

import torch

from .graph import Declined, Graph, Make, Maker, Node, inputs_of
from .record import alone, context

Pull = Callable[[Make, Node, Node], Node]
"""The cotangent of one operand, of a node and its cotangent."""


def cotangent(name: str) -> str:
    """How the input is called that holds the cotangent of an output, or of an input the output."""
    return f"cotangent of {name}"


def derivative(graph: Graph, given: Collection[str], wanted: Collection[str]) -> Graph:
    """Return what makes cotangents of inputs from those of the ``given`` outputs.

    The cotangent of each ``wanted`` input that is a vector is an output. For a uniform there is one
    for each place where it, or what depends on it, enters a vector, as ``entering`` finds them, and
    they are still to be summed over the leaf. There is none of what no result depends on.

    Raises:
        Declined: an operation has no derivative here, or autograd would not follow all of them.
    """
    if not graph.is_followed:
        raise Declined("it keeps autograd from following it")
    maker = Maker()
    new: dict[Node, Node] = {}
    for x in graph.nodes:
        new[x] = maker.again(x, tuple(new[y] for y in x.operands))
    outputs = {name: new[x] for name, x in graph.outputs.items()}
    inputs = {name: new[x] for name, x in graph.inputs.items()}
    places = {(new[x], i): name for name, (x, i) in entering(graph, wanted).items()}
    pulls = _Pulls(maker, places)
    for name in given:
        ct = inputs[cotangent(name)] = maker.input(cotangent(name), outputs[name].dtype, True)
        pulls.add(outputs[name], ct)
    for x in reversed(list(new.values())):
        pulls.through(x)
    found = {name: pulls.found.get(inputs[name]) for name in wanted if inputs[name].vector}
    found |= pulls.entered
    by = {cotangent(name): x for name, x in found.items() if x is not None}
    return Graph(inputs, by, maker.nodes, graph.reads, graph.dims)


def entering(graph: Graph, wanted: Collection[str]) -> dict[str, tuple[Node, int]]:
    """Where uniforms that depend on a wanted one enter vectors: the node, and which operand it is.

    In the order in which autograd hands them their cotangents, the last first.
    """
    names = {name for name in wanted if not graph.inputs[name].vector}
    places = [
        (x, i)
        for x in reversed(graph.nodes)
        for i, y in enumerate(x.operands)
        if x.vector and not y.vector and not names.isdisjoint(inputs_of([y]))
    ]
    return {f"uniform {i}": place for i, place in enumerate(places)}


class _Pulls:
    """The cotangents of nodes, as far as they are found."""

    def __init__(self, maker: Maker, places: dict[tuple[Node, int], str]) -> None:
        self.found: dict[Node, Node] = {}
        self.entered: dict[str, Node | None] = {}  # those of uniforms, by the names of the places
        self._places = places
        self._maker = maker

    def add(self, x: Node, ct: Node) -> None:
        old = self.found.get(x)
        self.found[x] = ct if old is None else self._maker.of(x.dtype, x.dtype)("ADD", old, ct)

    def through(self, x: Node) -> None:
        """Hand the cotangent of a node to its operands."""
        ct = self.found.get(x)
        if ct is None or not x.vector or not x.operands or x.op in _FLAT:
            return
        if x.op not in _PULLS:
            raise Declined(f"it is not known here how to differentiate {x.op.lower()}")
        for i, (operand, pull) in enumerate(zip(x.operands, _PULLS[x.op], strict=True)):
            if pull is not None and operand.vector:
                self.add(operand, pull(self._maker.of(operand.dtype, operand.dtype), x, ct))
            elif pull is not None and (x, i) in self._places:
                name = self._places[x, i]
                self.entered[name] = pull(self._maker.of(x.dtype, x.dtype), x, ct)


_FLAT = ("SIGN", "IS_NAN", "NOT", "EQUAL", "UNEQUAL", "LESS", "LESS_EQUAL", "AND", "OR")
"""Operations whose derivative is zero."""


def _same(make: Make, x: Node, ct: Node) -> Node:
    del make, x
    return ct


def _opposite(make: Make, x: Node, ct: Node) -> Node:
    del x
    return make("NEGATE", ct)


def _times(i: int) -> Pull:
    """The cotangent times an operand."""
    return lambda make, x, ct: make("MULTIPLY", ct, x.operands[i])


def _by_divisor(make: Make, x: Node, ct: Node) -> Node:
    a, b = x.operands
    is_reciprocal = a.op == "CONSTANT"  # for which torch has a formula of its own
    square = make("MULTIPLY", x, x) if is_reciprocal else make("DIVIDE", x, b)
    return make("MULTIPLY", make("NEGATE", ct), square)


def _by_start(make: Make, x: Node, ct: Node) -> Node:
    weight = x.operands[2]
    rest = make.like(weight)("SUBTRACT", make.number(1.0), weight)
    return make("MULTIPLY", ct, rest)


def _by_weight(make: Make, x: Node, ct: Node) -> Node:
    start, end, _ = x.operands
    return make("MULTIPLY", ct, make("SUBTRACT", end, start))


def _by_root(make: Make, x: Node, ct: Node) -> Node:
    return make("DIVIDE", ct, make("MULTIPLY", x, make.number(2.0)))


def _chosen(where: bool) -> Pull:
    def pull(make: Make, x: Node, ct: Node) -> Node:
        zero = make.number(0.0)
        return make("WHERE", x.operands[0], *((ct, zero) if where else (zero, ct)))

    return pull


def _largest(mine: int, other: int, larger: bool) -> Pull:
    """Of the larger, or smaller, of two; a tie shares in halves, and a NaN hands it to both."""

    def pull(make: Make, x: Node, ct: Node) -> Node:
        a, b = x.operands[mine], x.operands[other]
        is_tie = make.truth("EQUAL", *x.operands)
        half = make("WHERE", is_tie, make("DIVIDE", ct, make.number(2.0)), ct)
        loses = make.truth("LESS", a, b) if larger else make.truth("LESS", b, a)
        return make("WHERE", loses, make.number(0.0), half)

    return pull


def _within(lower: bool) -> Pull:
    def pull(make: Make, x: Node, ct: Node) -> Node:
        a, bound = x.operands
        pair = (bound, a) if lower else (a, bound)
        return make("WHERE", make.truth(_within_bound(), *pair), ct, make.number(0.0))

    return pull


@cache
def _within_bound() -> str:
    """How torch compares with a bound of clamp: from 2.14 on what is at one has no cotangent."""

    def slope() -> float:
        x = torch.ones((), device="cpu", requires_grad=True)
        return torch.autograd.grad(x.clamp_min(1.0), x)[0].item()

    found = alone(slope, context()._replace(grad=True, inference=False))
    return "LESS_EQUAL" if found else "LESS"


def _beyond(lower: bool) -> Pull:
    def pull(make: Make, x: Node, ct: Node) -> Node:
        a, bound = x.operands
        pair = (a, bound) if lower else (bound, a)
        return make("WHERE", make.truth("LESS", *pair), ct, make.number(0.0))

    return pull


_PULLS: dict[str, tuple[Pull | None, ...]] = {
    "WIDEN": (lambda make, _, ct: make("NARROW", ct),),
    "NARROW": (lambda make, _, ct: make("WIDEN", ct),),
    "NEGATE": (_opposite,),
    "ABS": (lambda make, x, ct: make("MULTIPLY", ct, make("SIGN", x.operands[0])),),
    "SQRT": (_by_root,),
    "ADD": (_same, _same),
    "SUBTRACT": (_same, _opposite),
    "MULTIPLY": (_times(1), _times(0)),
    "DIVIDE": (lambda make, x, ct: make("DIVIDE", ct, x.operands[1]), _by_divisor),
    "ADD_PRODUCT": (_same, _times(2), _times(1)),
    "LERP": (_by_start, _times(2), _by_weight),
    "MAXIMUM": (_largest(0, 1, larger=True), _largest(1, 0, larger=True)),
    "MINIMUM": (_largest(0, 1, larger=False), _largest(1, 0, larger=False)),
    "AT_LEAST": (_within(lower=True), _beyond(lower=True)),
    "AT_MOST": (_within(lower=False), _beyond(lower=False)),
    "WHERE": (None, _chosen(True), _chosen(False)),
}
"""The cotangents of the operands of each operation; None of a condition."""
