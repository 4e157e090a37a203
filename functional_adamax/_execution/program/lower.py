"""A record as a program: instructions over registers, as ``native/program.h`` has them.

Operations that only uniforms enter become a program that runs once for a leaf; the others one that
runs over its elements. What nothing reads is dropped, a square root in float64 of a float32 becomes
one in float32, and operations that the machine has in one become one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from .fuse import fused, live
from .graph import Declined, Graph, Node


class Layout(NamedTuple):
    """Where the inputs and the outputs of a record are found in a step."""

    columns: Sequence[str]  # the inputs that are vectors; the first is the gradient
    outputs: Sequence[tuple[str, str]]  # those that are vectors, and the column that each replaces
    counters: Sequence[tuple[str, str]]  # uniforms in memory, and the output that each becomes
    numbers: Sequence[str]  # the other inputs


class Instruction(NamedTuple):
    """One operation; registers are numbers."""

    op: str
    target: int
    operands: tuple[int, ...]
    single: bool = False  # of uniforms: whether it is computed in float32


@dataclass
class Program:
    """What the machine is given."""

    dtype: torch.dtype
    dims: int
    reads: list[bool]  # of each column
    of: list[int]  # the column that each output replaces
    sources: list[int]  # the uniform in each of the first registers in scratch
    registers: int  # in scratch
    counts: list[int]  # the uniform that each counter becomes
    wide: list[bool]  # whether each counter is in float64
    numbers: int
    constants: list[float]
    uniform: list[Instruction] = field(default_factory=list)
    vector: list[Instruction] = field(default_factory=list)


def lower(graph: Graph, layout: Layout) -> Program:
    """Make the program of a record.

    Raises:
        Declined: the machine cannot run it, with the reason.
    """
    dtype = _dtype(graph, layout)
    names = [*(name for name, _ in layout.outputs), *(name for _, name in layout.counters)]
    wanted = [*(graph.outputs[name] for name in names), *graph.inputs.values()]
    nodes, new = _narrowed(live(graph.nodes, wanted))
    inputs = {name: new[x] for name, x in graph.inputs.items()}
    outputs = [new[graph.outputs[name]] for name, _ in layout.outputs]
    becomes = [new[graph.outputs[name]] for _, name in layout.counters]
    if any(x.vector for x in becomes):
        raise Declined("a number of the leaf becomes a vector")
    nodes = live(nodes, [*outputs, *becomes])
    _check_dtypes(nodes, dtype)
    if any(x.op == "INPUT" and x.vector and x.value not in layout.columns for x in nodes):
        raise Declined("what becomes of a leaf depends on another")
    nodes = fused(nodes, [*outputs, *becomes])
    uniforms = _Uniforms(inputs, layout, nodes)
    program = Program(
        dtype,
        graph.dims,
        reads=[False] * len(layout.columns),
        of=[layout.columns.index(column) for _, column in layout.outputs],
        sources=[],
        registers=0,
        counts=[uniforms.place[x] for x in becomes],
        wide=[inputs[name].dtype == torch.float64 for name, _ in layout.counters],
        numbers=len(layout.numbers),
        constants=uniforms.constants,
        uniform=uniforms.code,
    )
    columns = [inputs[name] for name in layout.columns]
    _Vectors(columns, program, [x for x in nodes if x.vector], outputs, uniforms.place)
    return program


def _dtype(graph: Graph, layout: Layout) -> torch.dtype:
    """The one dtype of all columns and outputs."""
    nodes = [graph.inputs[name] for name in layout.columns]
    nodes += [graph.outputs[name] for name, _ in layout.outputs]
    dtypes = {x.dtype for x in nodes}
    if len(dtypes) > 1:
        raise Declined(f"its tensors are of several dtypes: {sorted(map(str, dtypes))}")
    return dtypes.pop()


_ROUNDS_ALIKE = ("SQRT", "ADD", "SUBTRACT", "MULTIPLY", "DIVIDE")
"""What gives the same float in float32 as in float64 with a rounding after it."""


def _narrowed(nodes: list[Node]) -> tuple[list[Node], dict[Node, Node]]:
    """Compute in float32 what is computed of floats in float64, and rounded.

    Return copies of the nodes, and which is whose.
    """
    new: dict[Node, Node] = {}
    for x in nodes:
        operands = tuple(new[y] for y in x.operands)
        inner = operands[0] if x.op == "NARROW" else x
        if x.op in ("TO_FLOAT", "MOVE") and operands[0].op == "CONSTANT":
            value = torch.tensor(operands[0].value, dtype=x.dtype, device="cpu").item()
            new[x] = replace(operands[0], value=value)
        elif x.op == "NARROW" and inner.op == "WIDEN":
            new[x] = inner.operands[0]
        elif inner.op in _ROUNDS_ALIKE and x.op == "NARROW" and _are_widened(inner.operands):
            taken = tuple(y.operands[0] for y in inner.operands)
            new[x] = Node(inner.op, taken, x.dtype, vector=True, single=True)
        elif x.op == "NARROW" and inner.op == "DIVIDE" and _is_twice_root(inner.operands):
            ct, product = inner.operands
            taken = ct.operands[0], product.operands[0].operands[0].operands[0]
            new[x] = Node("OVER_TWICE_ROOT", taken, x.dtype, vector=True, single=True)
        else:
            new[x] = replace(x, operands=operands)
    return list(dict.fromkeys(new.values())), new


def _are_widened(nodes: Iterable[Node]) -> bool:
    return all(x.op == "WIDEN" for x in nodes)


def _is_twice_root(operands: tuple[Node, ...]) -> bool:
    """Whether a float is divided by 2 sqrt(x), of a float x: the derivative of a root."""
    ct, product = operands
    if ct.op != "WIDEN" or product.op != "MULTIPLY":
        return False
    found, two = product.operands
    return found.op == "SQRT" and found.operands[0].op == "WIDEN" and two.value == 2


def _check_dtypes(nodes: list[Node], dtype: torch.dtype) -> None:
    """Check that vectors are computed in the one dtype that the program has."""
    single = dtype == torch.float32
    for x in nodes:
        computed = x.vector and x.operands and x.op not in ("NOT", "AND", "OR")
        if computed and (x.op in ("WIDEN", "NARROW") or x.single != single):
            raise Declined("it computes in another dtype than that of the leaf")


class _Uniforms:
    """The registers of uniforms: constants, counters, numbers, and what is computed of them."""

    def __init__(self, inputs: dict[str, Node], layout: Layout, nodes: list[Node]) -> None:
        constants = [x for x in nodes if x.op == "CONSTANT"]
        given = [inputs[name] for name, _ in layout.counters]
        given += [inputs[name] for name in layout.numbers]
        computed = [x for x in nodes if not x.vector and x.operands]
        self.constants = [x.value for x in constants]
        self.place = {x: i for i, x in enumerate((*constants, *given, *computed))}
        self.code = [
            Instruction(x.op, self.place[x], tuple(self.place[y] for y in x.operands), x.single)
            for x in computed
        ]


class _Vectors:
    """The registers of vectors, and the instructions over them.

    A result is written where it belongs as soon as nobody reads any more what is there in a step in
    place; else it waits in scratch for the end.
    """

    def __init__(
        self,
        columns: list[Node],
        program: Program,
        nodes: list[Node],
        outputs: list[Node],
        uniforms: dict[Node, int],
    ) -> None:
        steps = [x for x in nodes if x.operands]
        last = {y: i for i, x in enumerate(steps) for y in x.operands}
        spread = {y: None for x in steps for y in x.operands if not y.vector}
        spread |= {x: None for x in outputs if not x.vector}
        streams = len(columns) + len(outputs)
        self._place = {x: i for i, x in enumerate(columns)}
        self._place |= {x: streams + i for i, x in enumerate(spread)}
        self._free: list[int] = []
        self._next = streams + len(spread)
        program.sources = [uniforms[x] for x in spread]
        program.reads = [x in last or x in outputs for x in columns]

        targets: dict[Node, int] = {}
        copies: list[tuple[int, Node]] = []
        for i, (x, column) in enumerate(zip(outputs, program.of, strict=True)):
            written = steps.index(x) if x in steps else -1
            if written >= last.get(columns[column], -1) and x in steps and x not in targets:
                targets[x] = len(columns) + i
            else:
                copies.append((len(columns) + i, x))
        kept = {x for _, x in copies}
        code = []
        for place, x in copies:
            own = x in columns and columns.index(x) == program.of[place - len(columns)]
            if x in columns and not own and self._place[x] < streams:
                source, self._place[x] = self._place[x], self._scratch()
                code.append(Instruction("MOVE", self._place[x], (source,)))  # before it is written
        fixed = set(self._place.values())
        for i, x in enumerate(steps):
            operands = tuple(self._place[y] for y in x.operands)
            for y in set(x.operands):
                if self._place[y] not in fixed and last[y] == i and y not in kept | set(targets):
                    self._free.append(self._place[y])  # an operation may write over what it reads
            self._place[x] = targets[x] if x in targets else self._scratch()
            code.append(Instruction(x.op, self._place[x], operands))
        code += [Instruction("MOVE", place, (self._place[x],)) for place, x in copies]
        program.vector = code
        program.registers = self._next - streams

    def _scratch(self) -> int:
        if self._free:
            return self._free.pop()
        self._next += 1
        return self._next - 1
