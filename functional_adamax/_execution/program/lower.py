"""A record as a program: instructions over registers, as ``native/program.h`` has them.

Operations that only uniforms enter become a program that runs once for a leaf; the others one that
runs over its elements. What nothing reads is dropped, a square root in float64 of a float32 becomes
one in float32, and operations that the machine has in one become one.

All arithmetic is in float32, or in float64 where a vector is. What is narrower is loaded, rounded
after each operation that torch does in its dtype, and stored. The file is longer than others: the
passes hand on copies of one list of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from .fuse import fused, live
from .graph import FLOATING, HALVES, ROUND, Declined, Graph, Node, fits


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

    dtype: torch.dtype  # of the arithmetic
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
    types: list[torch.dtype] = field(default_factory=list)
    """Those of columns and outputs in memory; empty where all are the one of the arithmetic."""
    of_halves: list[tuple[str, torch.dtype]] = field(default_factory=list)
    """What it computes in which half."""


def lower(graph: Graph, layout: Layout, stored: bool = True) -> Program:
    """Make the program of a record, with outputs as they are ``stored`` or as they are computed.

    Raises:
        Declined: the machine cannot run it, with the reason.
    """
    names = [*(name for name, _ in layout.outputs), *(name for _, name in layout.counters)]
    wanted = [*(graph.outputs[name] for name in names), *graph.inputs.values()]
    nodes, same = _merged(live(graph.nodes, wanted))
    nodes, narrow = _narrowed(nodes)
    new = {x: narrow[y] for x, y in same.items()}
    inputs = {name: new[x] for name, x in graph.inputs.items()}
    outputs = [new[graph.outputs[name]] for name, _ in layout.outputs]
    becomes = [new[graph.outputs[name]] for _, name in layout.counters]
    if any(x.vector for x in becomes):
        raise Declined("a number of the leaf becomes a vector")
    nodes = live(nodes, [*outputs, *becomes])
    if any(x.op == "INPUT" and x.vector and x.value not in layout.columns for x in nodes):
        raise Declined("what becomes of a leaf depends on another")
    dtype = _dtype(nodes, outputs)
    types = [x.dtype for x in outputs] if stored else [dtype] * len(outputs)
    of_halves = _of_halves(nodes)
    nodes, new = _typed(nodes, dtype)
    outputs, becomes = [new[x] for x in outputs], [new[x] for x in becomes]
    nodes = fused(live(nodes, [*outputs, *becomes]), [*outputs, *becomes])
    outputs = _stored(nodes, outputs, types, dtype)
    nodes = live(dict.fromkeys([*nodes, *outputs]), [*outputs, *becomes])
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
        types=[*(inputs[name].dtype for name in layout.columns), *types],
        of_halves=of_halves,
    )
    columns = [inputs[name] for name in layout.columns]
    _Vectors(columns, program, [x for x in nodes if x.vector], outputs, uniforms.place)
    return program


def _dtype(nodes: list[Node], outputs: list[Node]) -> torch.dtype:
    """The dtype of the arithmetic: float64 if a vector is in it."""
    for x in outputs:
        if x.dtype not in FLOATING:
            raise Declined(f"it has a result in {x.dtype}")
    double = torch.float64
    is_double = any(x.vector and x.dtype == double for x in nodes)
    return double if is_double or any(x.dtype == double for x in outputs) else torch.float32


def _of_halves(nodes: list[Node]) -> list[tuple[str, torch.dtype]]:
    """The operations in halves, and in which."""
    found: dict[tuple[str, torch.dtype], None] = {}
    for x in nodes:
        if x.vector and x.operands and x.op not in ("WIDEN", "NARROW"):
            dtypes = (
                [y.dtype for y in x.operands if y.vector] if x.dtype == torch.bool else [x.dtype]
            )
            found |= {(x.op, dtype): None for dtype in dtypes if dtype in HALVES}
    return list(found)


def _merged(nodes: list[Node]) -> tuple[list[Node], dict[Node, Node]]:
    """Compute once what is computed several times.

    Return copies of the nodes, and which is whose.
    """
    known: dict[Any, Node] = {}
    new: dict[Node, Node] = {}
    for x in nodes:
        operands = tuple(new[y] for y in x.operands)
        key = x.op, operands, x.dtype, x.single, repr(x.value)
        new[x] = known.setdefault(key, replace(x, operands=operands))
    return list(known.values()), new


_OF_NUMBERS = ("MOVE", "TO_FLOAT", *ROUND.values())
_ROUNDS_ALIKE = ("SQRT", "ADD", "SUBTRACT", "MULTIPLY", "DIVIDE")
"""What gives the same float in float32 as in float64 with a rounding after it."""


def _narrowed(nodes: list[Node]) -> tuple[list[Node], dict[Node, Node]]:
    """Compute in float32 what is computed of floats in float64, and rounded.

    Return copies of the nodes, and which is whose.
    """
    found: list[Node] = []
    new: dict[Node, Node] = {}
    for x in nodes:
        operands = tuple(new[y] for y in x.operands)
        inner = operands[0] if x.op == "NARROW" else x
        if x.op in _OF_NUMBERS and operands[0].op == "CONSTANT":
            number = torch.tensor(operands[0].value, dtype=torch.float64, device="cpu")
            new[x] = replace(operands[0], value=number.to(x.dtype).item(), dtype=x.dtype)
        elif x.op == "NARROW" and inner.op == "WIDEN" and inner.operands[0].dtype == x.dtype:
            new[x] = inner.operands[0]
        elif x.op == "NARROW" and inner.op in _ROUNDS_ALIKE and _are_widened(inner):
            taken = tuple(y.operands[0] for y in inner.operands)
            new[x] = Node(inner.op, taken, torch.float32, vector=True, single=True)
            if x.dtype != torch.float32:
                found.append(new[x])
                new[x] = replace(x, operands=(new[x],))
        elif x.op == "NARROW" and _is_over_twice_root(x.dtype, inner):
            ct, product = inner.operands
            taken = ct.operands[0], product.operands[0].operands[0].operands[0]
            new[x] = Node("OVER_TWICE_ROOT", taken, x.dtype, vector=True, single=True)
        else:
            new[x] = replace(x, operands=operands)
        found.append(new[x])
    return list(dict.fromkeys(found)), new


def _are_widened(x: Node) -> bool:
    """Whether an operation in float64 is one of narrower numbers."""
    return x.dtype == torch.float64 and all(y.op == "WIDEN" for y in x.operands)


def _is_over_twice_root(dtype: torch.dtype, x: Node) -> bool:
    """Whether a float is divided by 2 sqrt(y), of a float y: the derivative of a root."""
    if x.op != "DIVIDE" or x.operands[0].op != "WIDEN" or x.operands[1].op != "MULTIPLY":
        return False
    ct, product = x.operands
    found, two = product.operands
    if found.op != "SQRT" or found.operands[0].op != "WIDEN" or two.value != 2:
        return False
    widened = ct, found.operands[0]
    return dtype == torch.float32 and all(y.operands[0].dtype == dtype for y in widened)


_EXACT = ("MOVE", "NEGATE", "ABS", "SIGN", "MAXIMUM", "MINIMUM", "AT_LEAST", "AT_MOST", "WHERE")
"""What has no result that needs more digits than the operands."""


def _typed(nodes: list[Node], dtype: torch.dtype) -> tuple[list[Node], dict[Node, Node]]:
    """Load what is narrower than the arithmetic, and round after operations that are.

    Return copies of the nodes, each in the narrowest dtype that its values are known to fit, and
    which is whose.
    """
    found: list[Node] = []
    new: dict[Node, Node] = {}

    def add(op: str, operands: tuple[Node, ...], kind: torch.dtype, vector: bool = True) -> Node:
        found.append(Node(op, operands, kind, vector, single=True))
        return found[-1]

    def rounded(x: Node, kind: torch.dtype) -> Node:
        return x if fits(x, kind) else add(ROUND[kind], (x,), kind)

    for x in nodes:
        operands = tuple(new[y] for y in x.operands)
        if not operands or not x.vector:
            new[x] = replace(x, operands=operands) if operands else x
            found.append(new[x])
            if x.vector and x.dtype != dtype:
                new[x] = add(f"LOAD_{suffix(x.dtype)}", (x,), x.dtype)
        elif x.op in ("WIDEN", "NARROW"):
            new[x] = rounded(operands[0], x.dtype)
        elif x.op in ("MAXIMUM", "MINIMUM") and all(y.op == ROUND.get(x.dtype) for y in operands):
            operands = tuple(y.operands[0] for y in operands)  # to round keeps the order
            new[x] = rounded(add(x.op, operands, dtype), x.dtype)
        else:
            if x.single and dtype == torch.float64:
                if x.dtype not in (torch.bool, *HALVES) and x.op not in _EXACT + _ROUNDS_ALIKE:
                    raise Declined("it computes in float32, and in float64")
                operands = tuple(
                    y
                    if y.vector or fits(y, torch.float32)
                    else add("TO_FLOAT", (y,), torch.float32, False)
                    for y in operands
                )
            is_exact = x.op in _EXACT and all(fits(y, x.dtype) for y in operands)
            kind = x.dtype if is_exact or x.dtype == torch.bool else dtype
            new[x] = rounded(add(x.op, operands, kind), x.dtype)
    return found, new


def suffix(dtype: torch.dtype) -> str:
    """How instructions are called that are about a dtype."""
    return ROUND[dtype].removeprefix("ROUND_")


def _stored(
    nodes: list[Node], outputs: list[Node], types: list[torch.dtype], dtype: torch.dtype
) -> list[Node]:
    """The outputs in the dtypes that they have in memory; to store rounds, but for bfloat16."""
    read = {y for x in nodes for y in x.operands}
    found = []
    for x, kind in zip(outputs, types, strict=True):
        if kind != dtype:
            is_rounded = x.op == ROUND[kind] and x not in read and kind != torch.bfloat16
            inner = x.operands[0] if is_rounded else x
            x = Node(f"STORE_{suffix(kind)}", (inner,), kind, vector=True, single=True)
        found.append(x)
    return found


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
