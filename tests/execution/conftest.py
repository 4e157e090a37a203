"""Which executors write, and steps without the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from functional_adamax._execution import foreach as _foreach
from functional_adamax._execution import inplace
from functional_adamax._execution.native import kernel
from functional_adamax._execution.program import machine
from functional_adamax._execution.triton import executor as triton

WRITERS = {
    "native": (kernel, ("_run", "overwritten", "advance")),
    "torch": (inplace, ("_write",)),
    "foreach": (_foreach, ("_run",)),
    "triton": (triton, ("write",)),
}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The executors that write, in the order in which they do."""
    names: list[str] = []

    def noted(name: str, write: Any) -> Any:
        def run(given: Any, *more: Any) -> Any:
            answer = write(given, *more)
            if given if name in ("torch", "foreach") else answer:  # the others say if they did
                names.append(name)
            return answer

        return run

    for name, (module, functions) in WRITERS.items():
        for function in functions:
            monkeypatch.setattr(module, function, noted(name, getattr(module, function)))
    return names


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call something without the machine."""

    def run(function: Callable[..., Any], *given: Any, **more: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(machine, "_machine", None)
            return function(*given, **more)

    return run
