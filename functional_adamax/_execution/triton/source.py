"""A program as the source of two Triton kernels.

``count`` computes what is one number for a leaf, where that is on the device, and counts steps;
``step`` takes one block of one tensor. What decides the last bit is spelled out: fused
multiply-adds where torch fuses, IEEE division and roots, and no contraction elsewhere
(``kernel.OPTIONS``).

A row of the table has the addresses of a leaf's columns, counters, and numbers that are tensors;
then its number of elements, and how many of them lie in whole blocks whose addresses are multiples
of 16 bytes. Those are read in vectors; the others one by one, under a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..program.lower import Instruction, Program

Kinds = Sequence[torch.dtype | None]
"""Of each number of a program: the dtype in memory, or None of one that is handed over."""


def width(program: Program, kinds: Kinds) -> int:
    """The number of entries in a row."""
    return len(program.reads) + len(program.wide) + sum(x is not None for x in kinds) + 2


def source(program: Program, kinds: Kinds) -> str:
    """The kernels of a program."""
    parts = (_count(program, kinds), _step(program, kinds), _block(program, kinds))
    return "\n\n".join("\n".join(lines) for lines in parts)


_SINGLE = {
    "MOVE": "{a}",
    "NEGATE": "{a} * -1.0",  # in some versions -a is 0 - a, of another sign where a is 0
    "ABS": "tl.abs({a})",
    "SQRT": "_root({a})",
    "SIGN": "_sign({a})",
    "IS_NAN": "({a} != {a}).to({real})",
    "NOT": "({a} == 0).to({real})",
    "ADD": "{a} + {b}",
    "SUBTRACT": "{a} - {b}",
    "MULTIPLY": "{a} * {b}",
    "DIVIDE": "_over({a}, {b})",
    "MAXIMUM": "_larger({a}, {b})",
    "MINIMUM": "tl.where(({a} < {b}) | ({a} != {a}), {a}, {b})",
    "AT_LEAST": "tl.where({a} < {b}, {b}, {a})",
    "AT_MOST": "tl.where({a} > {b}, {b}, {a})",
    "EQUAL": "({a} == {b}).to({real})",
    "UNEQUAL": "({a} != {b}).to({real})",
    "LESS": "({a} < {b}).to({real})",
    "LESS_EQUAL": "({a} <= {b}).to({real})",
    "AND": "(({a} != 0) & ({b} != 0)).to({real})",
    "OR": "(({a} != 0) | ({b} != 0)).to({real})",
    "WHERE": "tl.where({a} != 0, {b}, {c})",
    "ADD_PRODUCT": "tl.fma({b}, {c}, {a})",
    "LERP": (
        "tl.fma(tl.where(tl.abs({c}) < 0.5, {c}, {c} - 1), {b} - {a}, "
        "tl.where(tl.abs({c}) < 0.5, {a}, {b}))"
    ),
    "ROUND_F32": "{a}.to(tl.float32).to({real})",
    "ROUND_BF16": "{a}.to(tl.float32).to(tl.bfloat16).to({real})",
    "ROUND_F16": "{a}.to(tl.float32).to(tl.float16).to({real})",
    "POWER": "libdevice.pow({a}, {b})",
    "EXACT_ROOT": "_root({a})",
    "TO_FLOAT": "{a}.to(tl.float32).to({real})",
}
_SEVERAL = {
    "ROOT": "tl.where({a} == 0, 0.0, _root({a}))",
    "SIGN_OR_NAN": "tl.where({a} != {a}, {a}, _sign({a}))",
    "ABS_ADD": "tl.abs({a}) + {b}",
    "MULTIPLY_ADD": "{a} * {b} + {c}",
    "DIVIDE_ADD": "_over({a}, {b}) + {c}",
    "MULTIPLY_DIVIDE": "_over({a} * {b}, {c})",
    "MULTIPLY_MAXIMUM": "_larger({a} * {b}, {c})",
    "MULTIPLY_DIVIDE_ADD": "_over({a} * {b}, {c}) + {e}",
    "ADD_PRODUCT_ADD": "tl.fma({b}, {c}, {a}) + {e}",
    "AVERAGE_SQUARE": "tl.fma({b} * {e}, {b}, {a} * {c})",
    "SUM_OF_PRODUCTS": "{a} * {b} + {c} * {e}",
}
_MEMORY = {
    f"{op}_{kind}": f"{{a}}.to({to})"
    for kind, dtype in (("F32", "float32"), ("BF16", "bfloat16"), ("F16", "float16"))
    for op, to in (("LOAD", "{real}"), ("STORE", f"tl.float32).to(tl.{dtype}"))
}
INSTRUCTIONS = {**_SINGLE, **_SEVERAL, **_MEMORY}
"""The value of every instruction that steps have, as in ``native/instructions.h``."""


def _named(dtype: torch.dtype) -> str:
    """Triton's type."""
    return f"tl.{str(dtype).removeprefix('torch.')}"


def _computed(x: Instruction, letter: str, real: str, single: bool = False) -> str:
    """An instruction as an assignment; of uniforms that are ``single``, in float32."""
    names = [f"{letter}{y}" for y in x.operands]
    if single:
        names = [f"{name}.to(tl.float32)" for name in names]
    kind = "tl.float32" if single else real
    value = INSTRUCTIONS[x.op].format(**dict(zip("abce", names, strict=False)), real=kind)
    return f"{letter}{x.target} = {f'({value}).to(tl.float64)' if single else value}"


def _count(program: Program, kinds: Kinds) -> Iterator[str]:
    at = len(program.reads)
    given = [f"n{i}: float64" for i, kind in enumerate(kinds) if kind is None]
    yield f"def count({', '.join(['table', 'scales', 'n', *given, 'leaves: constexpr'])}):"
    body = ["i = tl.program_id(0) * leaves + tl.arange(0, leaves)", "inside = i < n"]
    body.append(f"row = table + i * {width(program, kinds)}")
    body += [f"u{k} = {_filled(repr(float(x)))}" for k, x in enumerate(program.constants)]
    first = len(program.constants)
    for k, wide in enumerate(program.wide):
        kind = "tl.float64" if wide else "tl.float32"
        body.append(f"t{k} = tl.load(row + {at + k}, inside, 0).to(tl.pointer_type({kind}))")
        body.append(f"u{first + k} = tl.load(t{k}, inside, 0).to(tl.float64)")
    first, at = first + len(program.wide), at + len(program.wide)
    for k, dtype in enumerate(kinds):
        if dtype is None:
            body.append(f"u{first + k} = {_filled(f'n{k}')}")
            continue
        place = f"tl.load(row + {at}, inside, 0).to(tl.pointer_type({_named(dtype)}))"
        body.append(f"u{first + k} = tl.load({place}, inside, 0).to(tl.float64)")
        at += 1
    body += [_computed(x, "u", "tl.float64", x.single) for x in program.uniform]
    for k, (register, wide) in enumerate(zip(program.counts, program.wide, strict=True)):
        value = f"u{register}" if wide else f"u{register}.to(tl.float32)"
        body.append(f"tl.store(t{k}, {value}, inside)")
    for k, register in enumerate(program.sources):
        body.append(f"tl.store(scales + {k} * n + i, u{register}, inside)")
    yield from (f"    {line}" for line in body)


def _filled(value: str) -> str:
    """A number for each leaf; the infinities and NaN have no literals."""
    return f"tl.full((leaves,), {_literal(value)}, tl.float64)"


def _literal(value: str) -> str:
    return f"float('{value}')" if value.lstrip("-") in ("inf", "nan") else value


def _spread(program: Program) -> list[str]:
    return [f"s{k}" for k in range(len(program.sources))]


def _step(program: Program, kinds: Kinds) -> Iterator[str]:
    spread = _spread(program)
    given = ["table", "blocks", "scales", "n", *(f"{x}: float64" for x in spread)]
    yield f"def step({', '.join([*given, 'counted: constexpr', 'size: constexpr'])}):"
    body = ["block = tl.load(blocks + tl.program_id(0))", "leaf = block >> 32"]
    body.append("start = (block & 0xFFFFFFFF) * size")
    body.append(f"row = table + leaf * {width(program, kinds)}")
    body += [f"{x}_ = tl.full((), {x}, tl.float64)" for x in spread]
    if spread:
        body.append("if counted:")
        body += [f"    {x}_ = tl.load(scales + {k} * n + leaf)" for k, x in enumerate(spread)]
    body.append(f"if start < tl.load(row + {width(program, kinds) - 1}):")
    arguments = ", ".join(["row", "start", *(f"{x}_" for x in spread)])
    body.append(f"    block_of({arguments}, True, size)")
    body += ["else:", f"    block_of({arguments}, False, size)"]
    yield from (f"    {line}" for line in body)


def _block(program: Program, kinds: Kinds) -> Iterator[str]:
    real, columns, spread = _named(program.dtype), len(program.reads), _spread(program)
    types = program.types or [program.dtype] * (columns + len(program.of))
    given = ["row", "start", *spread, "whole: constexpr", "size: constexpr"]
    yield f"def block_of({', '.join(given)}):"
    touched = sorted({k for k, read in enumerate(program.reads) if read} | set(program.of))
    body = ["i = start + tl.arange(0, size)", "inside = None"]
    body += [f"at{k} = tl.load(row + {k}).to(tl.pointer_type({_named(types[k])}))" for k in touched]
    body.append("if whole:")
    body += [f"    at{k} = tl.multiple_of(at{k}, 16)" for k in touched]
    body += ["else:", f"    inside = i < tl.load(row + {width(program, kinds) - 2})"]
    body += [f"r{k} = tl.load(at{k} + i, inside)" for k, x in enumerate(program.reads) if x]
    first = columns + len(program.of)
    for k, x in enumerate(spread):
        body.append(f"r{first + k} = tl.broadcast_to({x}.to({real}), (size,))")
    body += [_computed(x, "r", real) for x in program.vector]
    for k, column in enumerate(program.of):
        body.append(f"tl.store(at{column} + i, r{columns + k}, inside)")
    yield from (f"    {line}" for line in body)
