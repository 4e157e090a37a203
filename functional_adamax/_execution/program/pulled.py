"""The programs of derivatives: cotangents of what a step read, from those of its results.

They are made of the record of the step when they are first wanted, one for each choice of results
and inputs, and held against autograd of the rule. What is computed of uniforms alone is a few
numbers, which autograd follows in torch.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..native import kernel
from . import machine, proof
from .derivative import cotangent, derivative, entering
from .fuse import live
from .graph import Declined, Graph, Node, inputs_of
from .lower import Layout, lower
from .record import Context, Input, Rule, alone, sample

_SAMPLE = 67  # elements by which a program is held against autograd
_ZEROS = 3  # of those, how many are zero in all vectors

Values: TypeAlias = Mapping[str, list[Any]]
"""The inputs of steps, and the cotangents of their results, by their names: one for each leaf."""


@dataclass(frozen=True, eq=False)
class Source:
    """A step that was recorded, and the programs of its derivatives."""

    rule: Rule
    graph: Graph
    inputs: dict[str, Input]
    context: Context
    known: dict[Any, Pulled | str] = field(default_factory=dict)

    @cached_property
    def vectors(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The results that are vectors, and the inputs."""
        given = tuple(name for name, x in self.graph.outputs.items() if x.vector)
        return given, tuple(name for name, x in self.inputs.items() if x.vector)

    def whole(self, learned: tuple[str, ...] = ()) -> Pulled | str:
        """The program for the cotangents of all vectors, and of what is ``learned`` beside.

        Or the reason why there is none.
        """
        given, wanted = self.vectors
        return found_for(self, given, wanted + learned)

    def reads(self, name: str, learned: tuple[str, ...]) -> bool:
        """Whether a cotangent may depend on the value of an input."""
        found = self.whole(learned)
        return isinstance(found, str) or name in found.columns


class Pulled(NamedTuple):
    """A program, and what it is given and makes."""

    program: Any  # None where there is nothing to make
    columns: tuple[str, ...]  # cotangents of results, and inputs
    numbers: tuple[str, ...]
    outputs: tuple[str, ...]  # the inputs of which it makes cotangents
    uniforms: Uniforms | None  # what follows for uniforms

    def run(self, values: Values) -> dict[str, list[Tensor]] | None:
        """The cotangents of the inputs of some leaves; None where the machine cannot make them."""
        if self.program is None:
            return {}
        columns = tuple(values[name] for name in self.columns)
        numbers: machine.Numbers = [list(map(float, values[name])) for name in self.numbers]
        names = self.outputs if self.uniforms is None else (*self.outputs, *self.uniforms.places)
        out = [list(columns[0]) for _ in names]
        if not machine.into_new(machine.Part(self.program, columns, ()), numbers, out):
            like = values["g"]
            columns = tuple(list(map(kernel.laid_out, column, like)) for column in columns)
            if not machine.into_new(machine.Part(self.program, columns, ()), numbers, out):
                return None
        found = dict(zip(names, out, strict=True))
        return found if self.uniforms is None else self.uniforms.pulled(values, found)


class Uniforms(NamedTuple):
    """Uniforms that enter vectors, and depend on what is wanted."""

    places: dict[str, Node]  # what enters, by the names of the places
    order: tuple[Node | str, ...]  # what is computed, and where it enters if it has other readers
    wanted: tuple[str, ...]

    def pulled(self, values: Values, made: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """What was made, with the wanted inputs in the place of the uniforms."""
        sums = [[x.sum() for x in made.pop(name)] for name in self.places]
        found: list[tuple[Tensor, ...]] = []
        for i, cotangents in enumerate(zip(*sums, strict=True)):
            found.append(self._pulled({name: x[i] for name, x in values.items()}, cotangents))
        by = map(list, zip(*found, strict=True))
        return made | dict(zip(self.wanted, by, strict=True))

    def _pulled(self, given: dict[str, Any], cotangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            inputs = {name: given[name].detach().requires_grad_() for name in self.wanted}
            found: dict[Node, Any] = {}
            entered: dict[str, Tensor] = {}
            for x in self.order:
                if isinstance(x, str):  # a node of its own, which is taken in its turn
                    entered[x] = found[self.places[x]].view_as(found[self.places[x]])
                elif x.op == "INPUT":
                    found[x] = inputs.get(x.value, given[x.value])
                else:
                    found[x] = _computed(x, [found[y] for y in x.operands])
            results = [entered.get(name, found[x]) for name, x in self.places.items()]
            pairs = zip(cotangents, results, strict=True)
            return torch.autograd.grad(
                results, list(inputs.values()), [ct.to(x.dtype) for ct, x in pairs]
            )


_COMPUTED: dict[str, Callable[..., Any]] = {
    "ADD": operator.add,
    "SUBTRACT": operator.sub,
    "MULTIPLY": operator.mul,
    "DIVIDE": operator.truediv,
    "NEGATE": operator.neg,
    "POWER": operator.pow,
}


def _computed(x: Node, operands: list[Any]) -> Any:
    """The value of a uniform, in an operation of torch."""
    if x.op == "CONSTANT":
        return x.value
    if x.op in _COMPUTED:
        return _COMPUTED[x.op](*operands)
    (value,) = operands  # a cast, or a tensor of one number
    return torch.as_tensor(value, device="cpu").to(x.dtype)


def found_for(source: Source, given: tuple[str, ...], wanted: tuple[str, ...]) -> Pulled | str:
    """The program for cotangents of ``wanted`` inputs from those of ``given`` results.

    Or the reason why there is none; it is made when it is first asked for.
    """
    key = given, wanted
    found = source.known.get(key)
    if found is None:
        try:
            found = _made(source, given, wanted)
        except Declined as problem:
            found = str(problem)
        source.known[key] = found
    return found


def _made(source: Source, given: tuple[str, ...], wanted: tuple[str, ...]) -> Pulled:
    graph = derivative(source.graph, given, wanted)
    by = [*graph.outputs]
    outputs = tuple(name for name in wanted if cotangent(name) in by)
    uniforms = _uniforms(source.graph, wanted, by)
    made = [cotangent(name) for name in (*outputs, *(uniforms.places if uniforms else ()))]
    if not made:
        return Pulled(None, (), (), (), None)
    read = inputs_of([graph.outputs[name] for name in made])
    vectors = [name for name, x in source.inputs.items() if x.vector and name in read]
    numbers = tuple(name for name, x in source.inputs.items() if not x.vector)
    columns = *map(cotangent, given), *vectors
    layout = Layout(columns, [(name, columns[0]) for name in made], [], numbers)
    found = Pulled(proof.made(lower(graph, layout)), columns, numbers, outputs, uniforms)
    if not alone(partial(_agrees, source, found, given), source.context):
        raise Declined("the program of its derivative has not the bits of autograd")
    return found


def _uniforms(graph: Graph, wanted: tuple[str, ...], made: Sequence[str]) -> Uniforms | None:
    found = entering(graph, wanted)
    places = {name: x.operands[i] for name, (x, i) in found.items() if cotangent(name) in made}
    if not places:
        return None
    inside = live(graph.nodes, places.values())
    for x in inside:
        if x.op not in ("INPUT", "CONSTANT", "MOVE", "TO_FLOAT", *_COMPUTED):
            raise Declined(f"it is not known here how to differentiate {x.op.lower()} of a number")
    readers = Counter([*places.values(), *(y for x in inside for y in x.operands)])
    names = {found[name]: name for name, x in places.items() if readers[x] > 1}
    order: list[Node | str] = []
    for x in graph.nodes:
        order += [x] if x in inside else []
        order += [names[x, i] for i in reversed(range(len(x.operands))) if (x, i) in names]
    some = inputs_of(places.values())
    rates = tuple(x for x in wanted if x in some and not graph.inputs[x].vector)
    return Uniforms(places, tuple(order), rates)


def _bounds(graph: Graph, row: dict[str, Any]) -> list[float]:
    """The numbers of which the bounds of a clamp are made, at which its derivative jumps."""
    bounds = [x.operands[1] for x in graph.nodes if x.op in ("AT_LEAST", "AT_MOST")]
    inside = live(graph.nodes, bounds)
    found = [
        float(x.value if x.op == "CONSTANT" else row[x.value]) for x in inside if not x.operands
    ]
    return [y for x in found for y in (x, -x)]


def _agrees(source: Source, found: Pulled, given: tuple[str, ...]) -> bool:
    """Hold a program against autograd."""
    generator = torch.Generator("cpu").manual_seed(3)
    shape = (_SAMPLE,) if source.graph.dims else ()
    for t in (0.0, 1.0, 9.0):
        row: dict[str, Any] = {}
        for name, kind in source.inputs.items():
            row[name] = sample(kind, shape, None, generator)
            if kind.vector:
                row[name] = 4 * row[name] - 2
            elif kind.dtype is None:
                row[name] = row[name].item()
        special = torch.tensor([0.0] * _ZEROS + _bounds(source.graph, row))[:_SAMPLE]
        for name, kind in source.inputs.items():
            if kind.vector and shape:
                row[name][: len(special)] = special
        row["t"] = torch.full_like(row["t"], t)
        wanted = found.outputs + (found.uniforms.wanted if found.uniforms else ())
        inputs = [row[name].requires_grad_() for name in wanted]
        stepped = source.rule(row)
        results = [stepped[name] for name in given]
        cotangents = [torch.rand(shape, dtype=x.dtype, generator=generator) for x in results]
        expected = torch.autograd.grad(results, inputs, cotangents)
        row |= zip(map(cotangent, given), cotangents, strict=True)
        made = found.run(
            {name: [x.detach() if isinstance(x, Tensor) else x] for name, x in row.items()}
        )
        pairs = zip(wanted, expected, strict=True)
        if made is None or not all(proof.same_bits(made[name][0], x) for name, x in pairs):
            return False
    return True
