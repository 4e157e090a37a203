"""Whether the instructions of the machine have torch's bits on the machine it finds itself on.

An instruction is held against the operations of torch that it stands for when a program of a dtype
first has it: numbers of many magnitudes and special values, in lengths from 1 to 70 that begin
anywhere in a line of the cache, and in a tensor that several threads share. A program with an
instruction that differs in a bit is not run. The file is longer than others: what instructions are
held against, and on which numbers, is read together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..._core.private import transforms
from . import machine
from .graph import HALVES, ROUND, Declined
from .lower import Instruction, Program, suffix
from .operations import TORCH as TORCH


def made(program: Program) -> Any:
    """Return what runs a program.

    Raises:
        Declined: it has an instruction that lacks torch's bits here, or is too long.
    """
    prove([program])
    for op, dtype in _instructions(program):
        if not is_proven(op, dtype):
            raise Declined(f"{op} has not the bits of torch on this machine")
    for x in program.uniform:
        if not is_uniform_proven(x.op, x.single):
            raise Declined(f"{x.op} of single numbers has not the bits of torch on this machine")
    return machine.assembled(program)


_LIBRARY, _MANY = ("SQRT", "POWER", "EXACT_ROOT"), 400
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
_PART = 30_000  # elements at most that one thread works off
_OPERANDS = 4  # of an instruction, at most
_forked: list[int] = []  # where torch would wait for threads that are not there
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(_forked.append, 1))
_FOR_NAN = 0.7182818284
_NARROW = {f"{op}_{suffix(dtype)}": dtype for op in ("LOAD", "STORE") for dtype in ROUND}
"""The memory of what loads and stores."""


@cache
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


@cache
def _rows(dtype: torch.dtype) -> list[Tensor]:
    """Operands: numbers of many magnitudes, special values among them, all pairs of these, ties.

    Among them are numbers in the middle between two halves.
    """
    if dtype in HALVES:
        return [x.to(dtype) for x in _rows(torch.float32)]
    generator = torch.Generator("cpu").manual_seed(0)
    pairs = torch.tensor(list(product(_SPECIAL, repeat=2)), dtype=dtype, device="cpu")
    rows = []
    for i in range(_OPERANDS):
        x = torch.randn(_SHORT, generator=generator, dtype=dtype, device="cpu")
        x = x.ldexp(torch.randint(-20, 20, (_SHORT,), generator=generator, device="cpu"))
        some = torch.randint(0, 8 * len(pairs), (_SHORT,), generator=generator, device="cpu")
        x = torch.where(some < len(pairs), pairs[some % len(pairs), 0], x)
        rows.append(torch.cat([pairs[:, i % 2], x[len(pairs) :]]))
    for i, x in enumerate(rows[1:], start=1):
        ties = slice(_SHORT - 100 * (i + 1), _SHORT - 100 * i)
        x[ties] = rows[0][ties]
    for x, (start, dropped) in product(rows, ((1000, 16), (1200, 13))):
        some = x[start : start + 200]
        bits = some.float().view(torch.int32) >> dropped << dropped | 1 << dropped - 1
        some[:] = bits.view(torch.float32)
    return rows


def _leaves(dtype: torch.dtype) -> list[list[Tensor]]:
    """Operands for each leaf: a long one, and short ones that begin anywhere in a cache line."""
    rows = _rows(dtype)
    leaves = [list(map(_tiled, rows))]
    for length in range(1, 71):
        leaves += [[x[i : i + length] for x in rows] for i in (length % 8, 20 * length + 71)]
    return leaves


def _tiled(x: Tensor) -> Tensor:
    """Many copies of ``x`` in one tensor, made in parts so that no threads are woken for it."""
    times = 1 if _forked else _LONG // _SHORT
    tiled = x.new_empty(times, _SHORT)
    for part in torch.split(tiled, _PART // _SHORT):
        part[:] = x
    return tiled.view(-1)


_known: dict[tuple[str, torch.dtype], bool] = {}


def is_proven(op: str, dtype: torch.dtype) -> bool:
    """Whether an instruction over vectors has torch's bits on this machine."""
    _prove([op], dtype)
    return _known[op, dtype]


def prove(programs: Iterable[Program]) -> None:
    """Prove the instructions over vectors of some programs together; ``made`` tells which hold."""
    ops: dict[torch.dtype, list[str]] = {}
    for x in programs:
        for op, dtype in _instructions(x):
            ops.setdefault(dtype, []).append(op)
    for dtype, some in ops.items():
        _prove(some, dtype)


def _instructions(program: Program) -> list[tuple[str, torch.dtype]]:
    """The instructions over vectors, each with the dtype that it is to have the bits of."""
    return [*((x.op, program.dtype) for x in program.vector), *program.of_halves]


def _prove(ops: Iterable[str], dtype: torch.dtype) -> None:
    """Prove what is not known yet of some instructions over vectors, together."""
    new = [op for op in dict.fromkeys(ops) if (op, dtype) not in _known]
    if new:
        found = transforms.outside(partial(_hold, list(zip(new, new, strict=True)), dtype))
        _known.update({(op, dtype): x for op, x in zip(new, found, strict=True)})


@cache
def is_uniform_proven(op: str, single: bool) -> bool:
    """Whether an instruction of uniforms has torch's bits, for single numbers, on this machine."""
    return transforms.outside(partial(uniform_holds, op, op, single))


def holds(code: str, op: str, dtype: torch.dtype) -> bool:
    """Whether the instruction ``code`` has the bits of what ``op`` stands for."""
    return _hold([(code, op)], dtype)[0]


def _hold(pairs: list[tuple[str, str]], dtype: torch.dtype) -> list[bool]:
    """The same of several, each a program of its own, which are run at once."""
    with torch.inference_mode(False), torch.no_grad():
        programs = [_alone(code, op, dtype) for code, op in pairs]
        known = {x.types[0] for x in programs}
        leaves = {kind: _leaves(kind) for kind in known}
        columns = {kind: tuple(map(list, zip(*leaves[kind], strict=True))) for kind in known}
        parts = [
            machine.Part(machine.assembled(x), columns[x.types[0]][: len(x.reads)], ())
            for x in programs
        ]
        found = [list(part.columns[0]) for part in parts]
        planned = machine.plan(parts, in_place=False)
        if planned is None or not machine.stepped(planned, [], [(x,) for x in found]):
            return [False] * len(pairs)
        return [
            _are_right(x, op, [leaf[: len(program.reads)] for leaf in leaves[program.types[0]]])
            for x, (_, op), program in zip(found, pairs, programs, strict=True)
        ]


def _alone(code: str, op: str, dtype: torch.dtype) -> Program:
    """The program of an instruction over vectors, over the memory of what it stands for."""
    columns, narrow = tuple(range(_count(op))), _NARROW.get(op, dtype)
    memory = [narrow if op.startswith("LOAD") else dtype for _ in columns]
    types = [*memory, narrow if op.startswith("STORE") else dtype]
    real, count = torch.float32 if dtype in HALVES else dtype, len(columns)
    program = Program(real, 2, [True] * count, [0], [], count, [], [], 0, [], types=types)
    loaded = tuple(count + 1 + k for k in columns)
    if dtype in HALVES:
        load, rounded, store = (f"{x}_{suffix(dtype)}" for x in ("LOAD", "ROUND", "STORE"))
        program.vector = [Instruction(load, x, (k,)) for k, x in zip(columns, loaded, strict=True)]
        program.vector.append(Instruction(code, loaded[0], loaded))
        program.vector.append(Instruction(rounded, loaded[0], loaded[:1]))
        program.vector.append(Instruction(store, count, loaded[:1]))
    elif op.startswith("STORE"):
        program.vector.append(Instruction(ROUND[narrow], loaded[0], columns))
        program.vector.append(Instruction(code, count, loaded))
    else:
        program.vector.append(Instruction(code, count, columns))
    return program


def _are_right(found: list[Tensor], op: str, leaves: list[list[Tensor]]) -> bool:
    """Whether the results for leaves have the bits of torch."""
    dtype, signed = found[0].dtype, op not in ZEROS
    wanted = [TORCH[op](*leaf).to(dtype) for leaf in leaves]
    parts = ((torch.cat(x[1:]), *torch.split(x[0], _PART)) for x in (found, wanted))
    return all(same_bits(x, y, signed) for x, y in zip(*parts, strict=True))


def uniform_holds(code: str, op: str, single: bool) -> bool:
    """Whether the instruction ``code`` of uniforms has the bits of what ``op`` stands for."""
    double = torch.float64
    with torch.inference_mode(False), torch.no_grad():
        count = _count(op)
        kind = torch.float32 if single and op != "TO_FLOAT" else double
        some = _MANY if op in _LIBRARY else 20  # of those any one may be missed by one
        pairs = slice(0, len(_SPECIAL) ** 2, len(_SPECIAL) if count == 1 else 1)
        rows = [torch.cat([x[pairs], x[-some:]]) for x in _rows(kind)[:count]]
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
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize]
    if torch.equal(x.view(bits), y.view(bits)):
        return True
    x, y = (z.nan_to_num(_FOR_NAN, torch.inf, -torch.inf) for z in (x, y))
    if not signed:
        x, y = x + 0.0, y + 0.0
    return torch.equal(x.view(bits), y.view(bits))
