"""Whether the instructions of the machine have torch's bits on the machine it finds itself on.

An instruction is held against the operations of torch that it stands for when a program of a dtype
first has it: numbers of many magnitudes and special values, in lengths from 1 to 70 that begin
anywhere in a line of the cache, and in a tensor that several threads share. A program with an
instruction that differs in a bit is not run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..._core import numerics
from ..._core.private import transforms
from . import machine
from .graph import Declined
from .lower import Instruction, Program


def made(program: Program) -> Any:
    """Return what runs a program.

    Raises:
        Declined: it has an instruction that lacks torch's bits here, or is too long.
    """
    for x in program.vector:
        if not is_proven(x.op, program.dtype):
            raise Declined(f"{x.op} has not the bits of torch on this machine")
    for x in program.uniform:
        if not is_uniform_proven(x.op, x.single):
            raise Declined(f"{x.op} of single numbers has not the bits of torch on this machine")
    return machine.assembled(program)


def _root(x: Tensor) -> Tensor:
    return x.double().sqrt().to(x.dtype)


def _sign(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), x, x.sign())


_LIBRARY, _MANY = ("SQRT", "POWER", "EXACT_ROOT"), 400
TORCH: dict[str, Callable[..., Tensor]] = {
    "MOVE": torch.clone,
    "NEGATE": torch.neg,
    "ABS": torch.abs,
    "SQRT": _root,
    "SIGN": torch.sign,
    "IS_NAN": torch.isnan,
    "NOT": torch.logical_not,
    "ADD": torch.add,
    "SUBTRACT": torch.sub,
    "MULTIPLY": torch.mul,
    "DIVIDE": torch.div,
    "MAXIMUM": torch.maximum,
    "MINIMUM": torch.minimum,
    "AT_LEAST": lambda a, b: torch.where(b.isnan(), a, a.clamp_min(b)),
    "AT_MOST": lambda a, b: torch.where(b.isnan(), a, a.clamp_max(b)),
    "EQUAL": torch.eq,
    "UNEQUAL": torch.ne,
    "LESS": torch.lt,
    "LESS_EQUAL": torch.le,
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "WHERE": lambda a, b, c: torch.where(a != 0, b, c),
    "ADD_PRODUCT": torch.addcmul,
    "LERP": torch.lerp,
    "ROOT": lambda a: torch.where(a == 0, 0.0, _root(torch.where(a == 0, 1.0, a))),
    "SIGN_OR_NAN": _sign,
    "ABS_ADD": lambda a, b: a.abs() + b,
    "MULTIPLY_ADD": lambda a, b, c: a * b + c,
    "DIVIDE_ADD": lambda a, b, c: a / b + c,
    "MULTIPLY_DIVIDE": lambda a, b, c: a * b / c,
    "MULTIPLY_MAXIMUM": lambda a, b, c: torch.maximum(a * b, c),
    "MULTIPLY_DIVIDE_ADD": lambda a, b, c, e: a * b / c + e,
    "ADD_PRODUCT_ADD": lambda a, b, c, e: torch.addcmul(a, b, c) + e,
    "AVERAGE_SQUARE": lambda a, b, c, e: torch.addcmul(a * c, b * e, b),
    "SUM_OF_PRODUCTS": lambda a, b, c, e: a * b + c * e,
    "POWER": torch.pow,
    "EXACT_ROOT": numerics.exact_root,
    "TO_FLOAT": lambda a: a.float(),
}
"""What each instruction stands for, in operations of torch."""

ZEROS = ("MAXIMUM", "MINIMUM", "AT_LEAST", "AT_MOST", "MULTIPLY_MAXIMUM", "LERP")
"""What gives zeros whose sign depends, in torch, on the place of the element."""

_SPECIAL = (
    0.0,
    -0.0,
    1e-45,
    -1e-40,
    1e-30,
    0.3,
    0.5,
    -0.7,
    1.0,
    3e38,
    torch.inf,
    -torch.inf,
    torch.nan,
)
_SHORT, _LONG = 3000, 66_000  # elements; the latter are shared by several threads
_forked: list[int] = []  # where torch would wait for threads that are not there
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(_forked.append, 1))
_FOR_NAN = 0.7182818284


def _count(op: str) -> int:
    """The number of operands."""
    function = TORCH[op]
    for count in range(1, 5):
        try:
            function(*[torch.ones(1, device="cpu")] * count)
        except TypeError:
            continue
        return count
    raise AssertionError(op)


def _rows(count: int, dtype: torch.dtype) -> list[Tensor]:
    """Operands: numbers of many magnitudes, special values among them, all pairs of these, ties."""
    generator = torch.Generator("cpu").manual_seed(0)
    pairs = torch.tensor(list(product(_SPECIAL, repeat=2)), dtype=dtype, device="cpu")
    rows = []
    for i in range(count):
        x = torch.randn(_SHORT, generator=generator, dtype=dtype, device="cpu")
        x = x.ldexp(torch.randint(-20, 20, (_SHORT,), generator=generator, device="cpu"))
        some = torch.randint(0, 8 * len(pairs), (_SHORT,), generator=generator, device="cpu")
        x = torch.where(some < len(pairs), pairs[some % len(pairs), 0], x)
        rows.append(torch.cat([pairs[:, i % 2], x[len(pairs) :]]))
    rows[0][-100:] = rows[-1][-100:]
    return rows


@cache
def is_proven(op: str, dtype: torch.dtype) -> bool:
    """Whether an instruction over vectors has torch's bits on this machine."""
    return transforms.outside(partial(holds, op, op, dtype))


@cache
def is_uniform_proven(op: str, single: bool) -> bool:
    """Whether an instruction of uniforms has torch's bits, for single numbers, on this machine."""
    return transforms.outside(partial(uniform_holds, op, op, single))


def holds(code: str, op: str, dtype: torch.dtype) -> bool:
    """Whether the instruction ``code`` has the bits of what ``op`` stands for."""
    with torch.inference_mode(False), torch.no_grad():
        count = _count(op)
        program = Program(dtype, 2, [True] * count, [0], [], 0, [], [], 0, [])
        program.vector = [Instruction(code, count, tuple(range(count)))]
        rows = _rows(count, dtype)
        tiled = [x.repeat(1 if _forked else _LONG // _SHORT) for x in rows]
        leaves = [tiled]
        for length in range(1, 71):
            leaves += [[x[i : i + length] for x in rows] for i in (length % 8, 20 * length + 71)]
        columns = tuple(map(list, zip(*leaves, strict=True)))
        found = list(columns[0])
        part = machine.Part(machine.assembled(program), columns, ())
        if not machine.into_new(part, [], [found]):
            return False
        wanted = [TORCH[op](*leaf) for leaf in leaves]
        return same_bits(torch.cat(found), torch.cat(wanted).to(dtype), op not in ZEROS)


def uniform_holds(code: str, op: str, single: bool) -> bool:
    """Whether the instruction ``code`` of uniforms has the bits of what ``op`` stands for."""
    double = torch.float64
    with torch.inference_mode(False), torch.no_grad():
        count = _count(op)
        kind = torch.float32 if single and op != "TO_FLOAT" else double
        some = _MANY if op in _LIBRARY else 20  # of those any one may be missed by one
        rows = [torch.cat([x[: len(_SPECIAL) ** 2], x[-some:]]) for x in _rows(count, kind)]
        if op == "EXACT_ROOT":
            rows = [x.abs() for x in rows]  # among them zero and infinity
            rows = [
                torch.where(x.isfinite() & (x > 0), x.clamp(2.0**-900, 2.0**900), x) for x in rows
            ]
        if op == "POWER":
            rows = [rows[0].abs() % 2, torch.arange(len(rows[0]), dtype=kind, device="cpu")]
        program = Program(double, 2, [False], [0], [count], 1, [], [], count, [])
        program.uniform = [Instruction(code, count, tuple(range(count)), single)]
        program.vector = [Instruction("MOVE", 1, (2,))]
        leaves = [torch.zeros((), dtype=double, device="cpu")] * len(rows[0])
        numbers: machine.Numbers = [x.tolist() for x in rows]
        found = leaves.copy()
        part = machine.Part(machine.assembled(program), (leaves,), ())
        if not machine.into_new(part, numbers, [found]):
            return False
        wanted = [TORCH[op](*x) for x in zip(*rows, strict=True)]
        return same_bits(torch.stack(found), torch.stack(wanted).to(double), op not in ZEROS)


def same_bits(x: Tensor, y: Tensor, signed: bool = True) -> bool:
    """Equality that takes every NaN for the same; ``signed`` zeros are told apart."""
    if x.dtype != y.dtype:
        return False
    if not x.is_floating_point():
        return torch.equal(x, y)
    x, y = (z.nan_to_num(_FOR_NAN, torch.inf, -torch.inf) for z in (x, y))
    if not signed:
        x, y = x + 0.0, y + 0.0
    bits = torch.int32 if x.dtype == torch.float32 else torch.int64
    return torch.equal(x.view(bits), y.view(bits))
