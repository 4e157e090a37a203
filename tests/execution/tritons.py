"""Leaves for Triton's kernels, in its interpreter and on a device.

The interpreter is asked for before Triton is imported, so one test runs the interpreted ones in a
process of their own.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch
from executors import work_of

from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.triton import executor as triton
from functional_adamax._execution.triton import kernel
from functional_adamax._execution.triton.table import Leaf

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


def taken(leaves: list[AdamaxLeaf], maximize: bool = False, decoupled: bool = False) -> list[Leaf]:
    """Those of the leaves that the executor takes, as it takes them."""
    work = work_of(leaves, maximize, decoupled)
    return list(triton.part(work, list(range(len(leaves)))).values())


def on_cuda(**kinds: Any) -> list[AdamaxLeaf]:
    return [leaf(shape, device="cuda", **kinds) for shape in SHAPES]
