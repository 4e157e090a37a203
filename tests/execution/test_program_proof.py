"""The instructions of the machine have the bits of torch, and a wrong one is noticed."""

from __future__ import annotations

import pytest
import torch

from functional_adamax._execution.program import machine, proof
from functional_adamax._execution.program.proof import TORCH

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")


UNIFORM = ("POWER", "TO_FLOAT", "EXACT_ROOT")


VECTOR = [op for op in TORCH if op not in UNIFORM]


ROOTS = ("SQRT", "ROOT")
SAME = {"SQRT", "ROOT", "EXACT_ROOT"}  # one function, whatever torch's is


DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", VECTOR)
def test_an_instruction_has_torchs_bits(op: str, dtype: torch.dtype) -> None:
    exact = torch.randn(1001, dtype=dtype).exp()
    exact = torch.equal(exact.sqrt().square(), exact) or dtype == torch.float32
    assert proof.is_proven(op, dtype) or (op in ROOTS and not exact)


@pytest.mark.parametrize("op", TORCH)
def test_an_instruction_of_uniforms_has_torchs_bits(op: str) -> None:
    assert proof.is_uniform_proven(op, single=False) or op in ROOTS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", VECTOR)
def test_a_wrong_instruction_is_noticed(op: str, dtype: torch.dtype) -> None:
    for other in VECTOR:
        if other != op and proof._count(other) == proof._count(op):
            assert not proof.holds(other, op, dtype), other


@pytest.mark.parametrize("op", TORCH)
def test_a_wrong_instruction_of_uniforms_is_noticed(op: str) -> None:
    for other in TORCH:
        same = "EXACT_ROOT" in (other, op) and {other, op} <= SAME
        if other != op and not same and proof._count(other) == proof._count(op):
            assert not proof.uniform_holds(other, op, single=False), other
