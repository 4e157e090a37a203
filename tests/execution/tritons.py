"""Leaves for Triton's kernels, in its interpreter and on a device.

The interpreter is asked for before Triton is imported, so one test runs the interpreted ones in a
process of their own. There two functions stand in for what a device has: torch's fused
multiply-add, since the interpreter of some versions rounds twice, and Python's power.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch
from executors import by_the_rule

from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.triton import kernel

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter")
cuda = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")

DTYPES = {
    "float32": (torch.float32,) * 3,
    "float64": (torch.float64,) * 3,
    "bfloat16": (torch.bfloat16, torch.bfloat16, torch.float32),
    "float16": (torch.float16, torch.float32, torch.float32),
}
SIZE = kernel.BLOCK
SHAPES = [(), (1,), (3,), (0, 4), (257, 3), (SIZE,), (SIZE + 1,), (5, SIZE - 1), (2, 4, 5, 6)]
SPECIAL = [0.0, -0.0, 1e-45, -1e-40, 1e-30, 1e30, torch.inf, -torch.inf, torch.nan, 1.0, -1.0]
RATES = [0.01, 3, torch.tensor(0.01), torch.tensor(0.01, dtype=torch.float64)]


def leaf(
    shape: Any,
    dtypes: tuple[torch.dtype, ...] = DTYPES["float32"],
    lr: Any = 0.01,
    weight_decay: float = 0.0,
    t_type: torch.dtype = torch.float64,
    *,
    b1: float = 0.9,
    eps: float = 1e-8,
    device: str = "cpu",
) -> AdamaxLeaf:
    p, g, m, u = torch.randn(4, *shape, dtype=torch.float64)
    if g.numel() >= len(SPECIAL) ** 2:
        pairs = torch.tensor(list(itertools.product(SPECIAL, SPECIAL)), dtype=torch.float64)
        for x, column in ((g, 0), (m, 1), (u, 0), (p, 1)):
            start = len(pairs) if x is u or x is p else 0
            part = x.view(-1)[start : start + len(pairs)]
            part.copy_(pairs[: len(part), column])
    types = (*dtypes, dtypes[2])
    tensors = [x.to(y).to(device) for x, y in zip((p, g, m, u.abs()), types, strict=True)]
    if len(shape) == 4:
        tensors = [x.contiguous(memory_format=torch.channels_last) for x in tensors]
    t = torch.tensor(float(torch.randint(0, 3000, ())), dtype=t_type, device=device)
    lr = lr.to(device) if isinstance(lr, torch.Tensor) else lr
    return AdamaxLeaf(*tensors, t, lr, b1, 0.999, eps, weight_decay)


def results(x: AdamaxLeaf) -> tuple[torch.Tensor, ...]:
    return x.p, x.m, x.u, x.t


def interpreted_rule(x: AdamaxLeaf, maximize: bool, decoupled: bool = False) -> list[torch.Tensor]:
    """The rule, but the interpreter cuts float32 off to bfloat16 where a device rounds."""
    want = by_the_rule(x, maximize, decoupled)
    if x.p.dtype == torch.bfloat16:
        p = by_the_rule(x._replace(p=x.p.float()), maximize, decoupled)[0]
        want[0] = (p.contiguous().view(torch.int32) >> 16 << 16).view(torch.float32).bfloat16()
        want[0] = want[0].view(p.shape)
    return want


def on_cuda(**kinds: Any) -> list[AdamaxLeaf]:
    return [leaf(shape, device="cuda", **kinds) for shape in SHAPES]


def assert_near(leaves: list[AdamaxLeaf], wanted: list[Any]) -> None:
    """m and u to 1 ulp of the larger of their terms, p to 2; half parameters to 1 of their own."""
    for x, want in zip(leaves, wanted, strict=True):
        assert torch.equal(x.t, want[3])
        old = [y.abs().double().nan_to_num(0, 0, 0) for y in (x.g, x.p, *want[:3])]
        size = torch.stack([*old, torch.ones_like(old[0])]).amax(0)
        for got, expected, ulp in zip(results(x), want[:3], (2, 1, 1), strict=False):
            error = (got.double() - expected.double()).abs()
            fine = error <= ulp * torch.finfo(got.dtype).eps * size
            fine |= (got == expected) | (got.isnan() & expected.isnan())
            assert fine.all(), error[~fine]
