"""The instructions of the machine have the bits of torch, and a wrong one is noticed."""

from __future__ import annotations

import pytest
import torch

from functional_adamax._execution.program import machine, proof
from functional_adamax._execution.program.proof import TORCH

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")


UNIFORM = ("POWER", "TO_FLOAT", "EXACT_ROOT")
MEMORY = [op for op in TORCH if op.startswith(("LOAD", "STORE"))]


VECTOR = [op for op in TORCH if op not in (*UNIFORM, *MEMORY)]
SINGLE = [*VECTOR, *UNIFORM]


ROOTS = ("SQRT", "ROOT", "OVER_TWICE_ROOT")
SAME = [
    {"SQRT", "ROOT", "EXACT_ROOT"},  # one function, whatever torch's is
    {"TO_FLOAT", "ROUND_F32"},
    {"MOVE", "ROUND_F32"},  # of numbers in float32
]


DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", VECTOR)
def test_an_instruction_has_torchs_bits(op: str, dtype: torch.dtype) -> None:
    exact = torch.randn(1001, dtype=dtype).exp()
    exact = torch.equal(exact.sqrt().square(), exact) or dtype == torch.float32
    assert proof.is_proven(op, dtype) or (op in ROOTS and not exact)


@pytest.mark.parametrize("op", SINGLE)
def test_an_instruction_of_uniforms_has_torchs_bits(op: str) -> None:
    assert proof.is_uniform_proven(op, single=False) or op in ROOTS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", VECTOR)
def test_a_wrong_instruction_is_noticed(op: str, dtype: torch.dtype) -> None:
    for other in VECTOR:
        same = dtype == torch.float32 and {other, op} in SAME
        if other != op and not same and proof._count(other) == proof._count(op):
            assert not proof.holds(other, op, dtype), other


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", MEMORY)
def test_what_loads_and_stores_converts_as_torch_does(op: str, dtype: torch.dtype) -> None:
    assert proof.is_proven(op, dtype)
    if not op.endswith("F32"):
        other = op.replace("_BF16", "_X").replace("_F16", "_BF16").replace("_X", "_F16")
        assert not proof.holds(other, op, dtype)


OF_HALVES = ("MOVE", "ABS", "ADD", "SUBTRACT", "MULTIPLY", "DIVIDE", "MAXIMUM", "LESS", "WHERE")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", OF_HALVES)
def test_an_instruction_has_torchs_bits_in_halves(op: str, dtype: torch.dtype) -> None:
    assert proof.is_proven(op, dtype)
    for other in OF_HALVES:
        if other != op and proof._count(other) == proof._count(op):
            assert not proof.holds(other, op, dtype), other


@pytest.mark.parametrize("op", SINGLE)
def test_a_wrong_instruction_of_uniforms_is_noticed(op: str) -> None:
    for other in SINGLE:
        same = any({other, op} <= x for x in SAME[:2]) and {other, op} != {"SQRT", "ROOT"}
        if other != op and not same and proof._count(other) == proof._count(op):
            assert not proof.uniform_holds(other, op, single=False), other
