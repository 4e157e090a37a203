"""A record: the values that a rule computes, and of what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

HALVES = (torch.bfloat16, torch.float16)
FLOATING = (torch.float32, torch.float64, *HALVES)
DTYPES = (*FLOATING, torch.bool)
ROUND = {
    torch.float32: "ROUND_F32",
    torch.bfloat16: "ROUND_BF16",
    torch.float16: "ROUND_F16",
}
"""What rounds a number to a dtype."""


class Declined(Exception):  # noqa: N818  # it is an answer
    """A rule is not for the machine, with the reason in words."""


@dataclass(eq=False, slots=True)
class Node:
    """A value of a record."""

    op: str  # an instruction, "INPUT", "CONSTANT", "WIDEN" or "NARROW"
    operands: tuple[Node, ...]
    dtype: torch.dtype
    vector: bool
    single: bool  # whether it is computed in float32
    value: Any = None  # of a constant, or the name of an input


def fits(x: Node, dtype: torch.dtype) -> bool:
    """Whether all values that a node may have are numbers of a dtype."""
    return torch.promote_types(x.dtype, dtype) == dtype


class Maker:
    """Makes nodes: inputs and constants once each, an operation as often as it is called.

    For autograd hands a cotangent through each call, and adds afterwards.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[str, Node] = {}

    def _once(self, key: str, node: Node) -> Node:
        if key not in self._known:
            self._known[key] = self._made(node)
        return self._known[key]

    def _made(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def input(self, name: str, dtype: torch.dtype, vector: bool) -> Node:
        """What the rule is given."""
        return self._once(f"input {name}", Node("INPUT", (), dtype, vector, False, name))

    def constant(self, value: float) -> Node:
        """A number."""
        double = torch.float64
        return self._once(value.hex(), Node("CONSTANT", (), double, False, False, value))

    def again(self, x: Node, operands: tuple[Node, ...]) -> Node:
        """What another maker made, of these operands."""
        if x.op == "INPUT":
            return self.input(x.value, x.dtype, x.vector)
        if x.op == "CONSTANT":
            return self.constant(x.value)
        return self._of(x.op, operands, x.dtype, x.single, x.vector)

    def of(self, dtype: torch.dtype, common: torch.dtype) -> Make:
        """What makes nodes of a dtype, computed in another where they compare."""
        return Make(self, dtype, common)

    def _of(
        self, op: str, operands: tuple[Node, ...], dtype: torch.dtype, single: bool, vector: bool
    ) -> Node:
        return self._made(Node(op, operands, dtype, vector, single))


_TO_BOOL = (
    "MOVE", "IS_NAN", "NOT", "EQUAL", "UNEQUAL", "LESS", "LESS_EQUAL", "AND", "OR", "WHERE",
)  # fmt: skip


_OF_HALVES = (
    "WIDEN", "NARROW", "MOVE", "NEGATE", "ABS", "SIGN", "IS_NAN", "ADD", "SUBTRACT", "MULTIPLY",
    "DIVIDE", "MAXIMUM", "MINIMUM", "EQUAL", "UNEQUAL", "LESS", "LESS_EQUAL", "WHERE",
)  # fmt: skip
"""What torch computes of halves in float32, and rounds once, wherever the element stands."""
_OF_BFLOAT16 = ("AT_LEAST", "AT_MOST")  # which raise for bounds that are too large in float16


@dataclass(frozen=True, slots=True)
class Make:
    """Makes the nodes of one operation."""

    maker: Maker
    dtype: torch.dtype
    common: torch.dtype  # in which it is computed, but that halves are in float32

    @property
    def single(self) -> bool:
        """Whether it is computed in float32."""
        return self.common not in (torch.float64, torch.bool)

    def __call__(self, op: str, *operands: Node) -> Node:
        if self.dtype == torch.bool and op not in _TO_BOOL:
            raise Declined(f"it calls {op.lower()} of truth values")
        vector = any(x.vector for x in operands)
        if self.common in HALVES:
            operands = self._of_halves(op, operands, vector)
        return self.maker._of(op, operands, self.dtype, self.single, vector)

    def _of_halves(self, op: str, operands: tuple[Node, ...], vector: bool) -> tuple[Node, ...]:
        """The operands as torch takes them: numbers are rounded, but for a factor or divisor."""
        if op == "ADD_PRODUCT":
            raise Declined(f"it adds a product in {self.common}, as weight decay does")
        known = _OF_HALVES + (_OF_BFLOAT16 if self.common == torch.bfloat16 else ())
        if op not in known or not vector:
            raise Declined(f"it calls {op.lower()} in {self.common}")
        first, *others = operands
        if op not in ("MULTIPLY", "DIVIDE"):
            others = list(map(self.rounded, others))
        return self.rounded(first), *others

    def rounded(self, x: Node) -> Node:
        """A number in the dtype of a tensor."""
        if x.vector or x.dtype in (self.common, torch.bool):
            return x
        op = ROUND[self.common] if self.common in HALVES else "TO_FLOAT" if self.single else "MOVE"
        return self.maker._of(op, (x,), self.common, self.single, vector=False)

    def number(self, value: float) -> Node:
        return self.maker.constant(value)

    def like(self, x: Node) -> Make:
        """What makes nodes of the dtype of another."""
        return self.maker.of(x.dtype, x.dtype)

    def truth(self, op: str, *operands: Node) -> Node:
        """A comparison of what is in this dtype."""
        return self.maker.of(torch.bool, self.dtype)(op, *operands)


@dataclass
class Graph:
    """What a rule computes: its inputs, its outputs, and every operation, in order."""

    inputs: dict[str, Node]
    outputs: dict[str, Node]
    nodes: list[Node]
    reads: frozenset[str] = frozenset()  # what it asked about the leaf: "ndim", "shape", "stride"
    dims: int = 2  # of the leaves: 0 for none, 1 for some, 2 for any number
    is_followed: bool = False  # whether autograd would follow every operation

    def form(self) -> Any:
        """What is equal for equal graphs."""
        number = {node: i for i, node in enumerate(self.nodes)}
        rows = [
            (x.op, x.dtype, x.vector, x.single, repr(x.value), *(number[y] for y in x.operands))
            for x in self.nodes
        ]
        return rows, {name: number[x] for name, x in self.outputs.items()}


def inputs_of(nodes: Iterable[Node]) -> set[str]:
    """The names of the inputs that enter some values."""
    left, seen = list(nodes), set(nodes)
    while left:
        for x in left.pop().operands:
            if x not in seen:
                seen.add(x)
                left.append(x)
    return {x.value for x in seen if x.op == "INPUT"}
