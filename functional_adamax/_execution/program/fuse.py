"""Several operations of a record as one instruction, where the machine has it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from .graph import Node

Pattern: TypeAlias = tuple[Any, ...] | str | float

_FUSIONS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("ROOT", "x", ("WHERE", ("EQUAL", "x", 0), 0, ("SQRT", ("WHERE", ("EQUAL", "x", 0), 1, "x")))),
    ("SIGN_OR_NAN", "x", ("WHERE", ("IS_NAN", "x"), "x", ("SIGN", "x"))),
    (
        "AVERAGE_SQUARE",
        "vgbc",
        ("ADD_PRODUCT", ("MULTIPLY", "v", "b"), ("MULTIPLY", "g", "c"), "g"),
    ),
    ("ADD_PRODUCT_ADD", "xpcq", ("ADD", "q", ("ADD_PRODUCT", "x", "p", "c"))),
    ("MULTIPLY_DIVIDE_ADD", "mcup", ("ADD", "p", ("DIVIDE", ("MULTIPLY", "m", "c"), "u"))),
    ("SUM_OF_PRODUCTS", "abcd", ("ADD", ("MULTIPLY", "a", "b"), ("MULTIPLY", "c", "d"))),
    ("MULTIPLY_MAXIMUM", "ubx", ("MAXIMUM", ("MULTIPLY", "u", "b"), "x")),
    ("MULTIPLY_DIVIDE", "mcu", ("DIVIDE", ("MULTIPLY", "m", "c"), "u")),
    ("DIVIDE_ADD", "rbc", ("ADD", ("DIVIDE", "r", "b"), "c")),
    ("ABS_ADD", "gc", ("ADD", ("ABS", "g"), "c")),
    ("MULTIPLY_ADD", "abc", ("ADD", ("MULTIPLY", "a", "b"), "c")),
]
"""Instructions, their operands, and what they compute, with the same roundings."""

_SYMMETRIC = ("ADD", "MULTIPLY")


def fused(nodes: list[Node], outputs: list[Node]) -> list[Node]:
    """Let one instruction do what several did, where nobody else reads what is between."""
    readers = _readers(nodes)
    for op, operands, pattern in _FUSIONS:
        ends = [x for x in reversed(nodes) if x.op == pattern[0] and x.vector]
        is_changed = False
        for x in ends:
            for bound, inside in _matches(pattern, x, {}, frozenset()):
                hidden = inside - {x}
                if all(readers[y] <= inside and y not in outputs for y in hidden):
                    x.op, x.operands = op, tuple(bound[name] for name in operands)
                    is_changed = True
                    break
        if is_changed:
            nodes = live(nodes, outputs)
            readers = _readers(nodes)
    return nodes


def _readers(nodes: list[Node]) -> dict[Node, set[Node]]:
    """The nodes that each node enters."""
    readers: dict[Node, set[Node]] = {}
    for x in nodes:
        for y in x.operands:
            readers.setdefault(y, set()).add(x)
    return readers


def _matches(
    pattern: Pattern, x: Node, bound: dict[str, Node], inside: frozenset[Node]
) -> list[tuple[dict[str, Node], frozenset[Node]]]:
    """The ways in which a node is of a pattern: what its letters stand for, and what is within."""
    if isinstance(pattern, str):
        if bound.get(pattern, x) is not x:
            return []
        return [({**bound, pattern: x}, inside)]
    if not isinstance(pattern, tuple):
        return [(bound, inside)] if x.op == "CONSTANT" and x.value == pattern else []
    if x.op != pattern[0] or not x.vector:
        return []
    orders = [x.operands, x.operands[::-1]] if x.op in _SYMMETRIC else [x.operands]
    found = []
    for operands in orders:
        ways = [(bound, inside | {x})]
        for part, operand in zip(pattern[1:], operands, strict=True):
            ways = [y for way in ways for y in _matches(part, operand, *way)]
        found += ways
    return found


def live(nodes: Iterable[Node], outputs: Iterable[Node]) -> list[Node]:
    """The nodes that enter the outputs."""
    needed = set(outputs)
    found = []
    for x in reversed(list(nodes)):
        if x in needed:
            needed.update(x.operands)
            found.append(x)
    return found[::-1]
