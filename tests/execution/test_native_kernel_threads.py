"""The native kernel and threads: one leaf shared among them, a fork, and the threads of torch."""

from __future__ import annotations

import os
import subprocess
import sys

import executors
import pytest
import torch
from executors import (
    by_the_rule,
    copy,
    leaf,
    needs_kernel,
)


@needs_kernel
@pytest.mark.parametrize("decoupled", [False, True], ids=["coupled", "decoupled"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_large_leaf_is_shared_among_threads(threads: int, decoupled: bool) -> None:
    x = leaf((700, 901), torch.float32, 0.1, 0.1, False)
    leaves = [x, leaf((3,), torch.float64, 0.1, 0.1, False), leaf((), torch.float32, 0.1, 0, False)]
    wanted = [by_the_rule(copy(x), True, decoupled) for x in leaves]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pure = executors.compute(leaves, True, decoupled, add=True)
        executors.plan(leaves, True, decoupled)()
    finally:
        torch.set_num_threads(before)
    for x, row, want in zip(leaves, pure, wanted, strict=True):
        for got, expected in zip((x.p, x.m, x.u, x.t), want, strict=True):
            assert torch.equal(got, expected)
        for got, expected in zip((row[0], row[2], row[3], row[1]), want, strict=True):
            assert torch.equal(got, expected)


@needs_kernel
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_fork_after_threads_does_not_wait_for_them() -> None:
    code = """
import os, signal, torch
import functional_adamax as fa
torch.set_num_threads(4)
tx, p, g = fa.adamax(), *torch.ones(2, 1 << 20)
state = tx.init(p)
for _ in range(2):
    fa.step(tx, g, state, p, donate=True)
if (child := os.fork()) == 0:
    signal.alarm(20)
    _, (t, *_) = fa.step(tx, g, state, p, donate=True)
    os._exit(int(t != 3))
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


POOL = """
import os, torch, functional_adamax as fa
torch.set_num_threads(8)
tx, x = fa.adamax(0.1), torch.randn(1_000_000)
p = g = torch.randn(100_000)
state = tx.init(p)
threads = lambda: set(os.listdir("/proc/self/task"))
for _ in range(2):
    fa.step(tx, g, state, p), x + x
before = threads()
fa.step(tx, g, state, p), x + x
assert threads() == before
"""


@needs_kernel
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_the_threads_of_torch_live_on() -> None:
    subprocess.run([sys.executable, "-c", POOL], check=True)
