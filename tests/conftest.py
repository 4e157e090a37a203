"""Every test starts from the same seed; ``--executor`` has an executor take all that it can."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

EXECUTORS = ("native", "torch", "foreach", "triton")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--executor",
        choices=EXECUTORS,
        default="native",
        help="native: as installed; torch: the rule and torch's operations, without the native "
        "kernel; foreach: torch's foreach kernels for steps in place; triton: Triton's "
        "interpreter for steps in place",
    )


def pytest_configure(config: pytest.Config) -> None:
    executor = config.getoption("executor")
    if executor != "native":
        os.environ["FUNCTIONAL_ADAMAX_NATIVE"] = "0"  # before the package is imported
    if executor == "triton":
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let Triton's interpreter take tensors on the CPU.

    It rounds fused multiply-adds twice in some versions, cuts numbers off to bfloat16, and has no
    power: torch and Python do these.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    from functional_adamax._execution.triton import executor as triton
    from functional_adamax._execution.triton import kernel

    def fused(self: Any, *factors_and_term: Any) -> Any:
        x, y, z = (torch.from_numpy(np.array(h.data)) for h in factors_and_term)
        data = torch.addcmul(z.expand(x.shape), x, y).numpy()
        return TensorHandle(data, factors_and_term[2].dtype.scalar)

    def power(x: Any, y: Any) -> Any:
        pairs = zip(x.handle.data.tolist(), y.handle.data.tolist(), strict=True)
        data = np.array([a**b for a, b in pairs], dtype=np.float64)
        return tl.tensor(TensorHandle(data, tl.float64), x.type)

    def converted(data: Any, given: Any, wanted: Any, mode: Any) -> Any:
        x = torch.from_numpy(np.array(data))
        if wanted == tl.bfloat16:
            return x.bfloat16().view(torch.int16).numpy().view(np.uint16)
        return x.view(torch.int16).view(torch.bfloat16).float().numpy()

    kernel.named(torch.float32)
    monkeypatch.setattr(InterpreterBuilder, "create_fma", fused)
    monkeypatch.setattr(interpreter, "_convert_float", converted)
    monkeypatch.setattr(kernel, "libdevice", SimpleNamespace(pow=power))
    monkeypatch.setattr(triton, "_DEVICE", "cpu")
    triton.available.cache_clear()
    with np.errstate(all="ignore"):
        yield
    triton.available.cache_clear()


@pytest.fixture(autouse=True)
def _forced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the choice of an executor for steps in place, unless a test makes it."""
    from functional_adamax._execution import choice

    executor = request.config.getoption("executor")
    if executor == "triton":
        request.getfixturevalue("interpreter")
    if executor in ("foreach", "triton"):
        monkeypatch.setattr(choice, "plan", _forced_plan(choice.plan, executor))


def _forced_plan(real: Callable[..., Any], executor: str) -> Callable[..., Any]:
    def plan(work: Any, trees: Any) -> Any:
        method = copy.copy(work.method)
        foreach = executor == "foreach" or method.foreach or None
        object.__setattr__(method, "foreach", foreach)
        return real(dataclasses.replace(work, method=method), trees)

    return plan
