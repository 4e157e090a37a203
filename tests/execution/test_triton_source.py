"""Each instruction as Triton has it, in its interpreter: the bits of what it stands for."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from tritons import INTERPRETED, interpreted

from functional_adamax._execution.program import lower, operations, proof
from functional_adamax._execution.program.lower import Instruction, Program
from functional_adamax._execution.triton import kernel, source

UNIFORM = ("POWER", "EXACT_ROOT", "TO_FLOAT")
OF_DERIVATIVES = {"OVER_TWICE_ROOT"}
VECTOR = [x for x in source.INSTRUCTIONS if x not in UNIFORM]


def test_every_instruction_of_steps_is_there() -> None:
    assert set(source.INSTRUCTIONS) == set(operations.TORCH) - OF_DERIVATIVES


def run(program: Program, rows: list[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    """What a program makes of columns, in the place of one of its own column more."""
    columns = [*rows, out]
    n = len(out)
    table = torch.tensor([[*(x.data_ptr() for x in columns), n, 0]])
    blocks = torch.arange(-(-n // kernel.BLOCK))
    names = kernel._run(source.source(program, []))
    names["step"][(len(blocks),)](
        table, blocks, table, 1, counted=False, size=kernel.BLOCK, **kernel.OPTIONS
    )
    return out


def alone(op: str, dtype: torch.dtype) -> Program:
    """The program of an instruction as the machine is held to it, with a column for the result."""
    program = proof._alone(op, op, dtype)
    count = len(program.reads)

    def moved(k: int) -> int:
        return k if k < count else k + 1

    program.vector = [
        Instruction(x.op, moved(x.target), tuple(map(moved, x.operands))) for x in program.vector
    ]
    program.types.insert(count, program.types[-1])
    program.reads, program.of = [*program.reads, False], [count]
    return program


@interpreted
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", VECTOR)
def test_the_bits_of_an_instruction(op: str, dtype: torch.dtype) -> None:
    program = alone(op, dtype)
    rows = [x.to(y) for x, y in zip(proof._rows(dtype), program.types[:-2], strict=False)]
    wanted = (
        torch.from_numpy(np.sqrt(rows[0].numpy() + (0.0 if op == "ROOT" else -0.0)))
        if op in ("ROOT", "SQRT") and dtype == torch.float64  # which torch rounds otherwise
        else operations.TORCH[op](*rows).to(program.types[-1])
    )
    found = run(program, rows, torch.empty_like(wanted))
    assert proof.same_bits(found, wanted, signed=op not in proof.ZEROS)


@interpreted
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("op", VECTOR)
def test_a_wrong_instruction_is_noticed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "{a}.to({real}) * 0.75" if "{b}" not in source.INSTRUCTIONS[op] else "{b} * 0.75"
    monkeypatch.setitem(source.INSTRUCTIONS, op, f"({other})")
    with pytest.raises(AssertionError):
        test_the_bits_of_an_instruction(op, torch.float32)


@interpreted
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("op", "single"),
    [
        *(("POWER", False), ("EXACT_ROOT", False), ("TO_FLOAT", True)),
        *product(("ADD", "SUBTRACT", "MULTIPLY", "DIVIDE", "NEGATE"), (False, True)),
    ],
)
def test_the_bits_of_single_numbers(op: str, single: bool) -> None:
    count, n = proof._count(op), 100
    kind = torch.float32 if single and op != "TO_FLOAT" else torch.float64
    rows = [x[-n:].abs() % 2 for x in proof._rows(kind)[:count]]
    program = Program(torch.float64, 2, [True], [0], [count], 1, [count], [True], count - 1, [])
    program.uniform = [Instruction(op, count, tuple(range(count)), single)]
    program.vector = [Instruction("MOVE", 1, (0,))]
    counters, *numbers = (x.double() for x in rows)
    after = [x.clone() for x in counters.unbind()]
    lists = [[y.clone() for y in x.unbind()] for x in numbers]
    table = torch.tensor(
        [[0, *(x.data_ptr() for x in row), 1, 0] for row in zip(after, *lists, strict=True)]
    )
    scales = torch.empty(n, dtype=torch.float64)
    kinds: Any = [torch.float64] * (count - 1)
    names = kernel._run(source.source(program, kinds))
    names["count"][(1,)](table, scales, n, leaves=kernel.LEAVES, **kernel.OPTIONS)
    wanted = torch.stack([operations.TORCH[op](*x) for x in zip(*rows, strict=True)]).double()
    assert proof.same_bits(scales, wanted)
    assert proof.same_bits(torch.stack(after), wanted)


@pytest.mark.skipif(INTERPRETED, reason="needs no interpreter")
def test_numbers_that_have_no_literal() -> None:
    program = Program(torch.float32, 2, [], [], [], 0, [], [], 0, [torch.inf, -torch.inf, 0.1])
    text = source.source(program, [])
    for literal in ("float('inf')", "float('-inf')", "0.1"):
        assert f"tl.full((leaves,), {literal}, tl.float64)" in text


def test_a_row_has_room_for_what_is_looked_up() -> None:
    program = Program(torch.float32, 2, [True] * 3, [1], [], 0, [0], [True], 2, [])
    assert source.width(program, [None, torch.float32]) == 3 + 1 + 1 + 2
    assert lower.suffix(torch.bfloat16) == "BF16"
