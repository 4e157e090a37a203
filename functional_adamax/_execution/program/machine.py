"""What calls the machine of ``native/machine.c``: it runs a program on columns of leaves."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch

from ..._core.private import dispatch, modes
from .graph import Declined
from .lower import Instruction, Program

_machine: Any = None
if os.environ.get("FUNCTIONAL_ADAMAX_NATIVE", "1") != "0":
    with contextlib.suppress(ImportError):  # built without a compiler
        from ..native import _machine

Columns: TypeAlias = Sequence[list[Any]]
"""Of each column, or counter, a tensor for each leaf."""

Numbers: TypeAlias = tuple[float | list[float], ...]
"""The other uniforms: one number for all leaves, or a list with one for each."""

_increment = modes.increment_version
_TYPES = [torch.float32, torch.float64]  # in the order of native/tensors.h


def is_there() -> bool:
    """Whether the machine is built, and not switched off, and rules can be recorded."""
    return _machine is not None and dispatch.IS_THERE


def report() -> str:
    """Whether programs are run, and why not."""
    if os.environ.get("FUNCTIONAL_ADAMAX_NATIVE", "1") == "0":
        return "no: switched off by FUNCTIONAL_ADAMAX_NATIVE=0"
    if _machine is None:
        return "no: built without a C compiler"
    return "yes" if dispatch.IS_THERE else f"no: torch {torch.__version__} has no dispatch modes"


def assembled(program: Program) -> Any:
    """Return what the machine runs.

    Raises:
        Declined: the program is too long.
    """
    try:
        return _machine.program(
            _TYPES.index(program.dtype),
            program.dims,
            program.registers,
            program.numbers,
            list(map(int, program.reads)),
            program.of,
            program.sources,
            program.counts,
            list(map(int, program.wide)),
            program.constants,
            [y for x in program.uniform for y in _coded(x, int(x.single))],
            [y for x in program.vector for y in _coded(x)],
        )
    except ValueError as problem:
        raise Declined(str(problem)) from None


def _coded(x: Instruction, *more: int) -> list[int]:
    operands = [*x.operands, *[x.operands[0]] * 4][:4]
    return [getattr(_machine, x.op), *more, x.target, *operands]


def stepped(program: Any, columns: Columns, counters: Columns, numbers: Numbers) -> Any:
    """Step leaves into new tensors; return their columns, or None where one cannot be taken.

    The first column holds the gradients: a leaf that has none is left as it is.
    """
    recording, threads = torch.is_grad_enabled(), torch.get_num_threads()
    return _machine.stepped(program, columns, counters, numbers, recording, threads)


def summed(program: Any, columns: Columns, counters: Columns, numbers: Numbers) -> float | None:
    """Return the sum of the squares of the first output, in the order of ``sums.py``, or None."""
    recording, threads = torch.is_grad_enabled(), torch.get_num_threads()
    found: float | None = _machine.summed(program, columns, counters, numbers, recording, threads)
    return found


def overwrite(program: Any, columns: Columns, counters: Columns, numbers: Numbers) -> bool:
    """Step leaves where they lie; False, with nothing written, where one cannot be taken."""
    recording, threads = torch.is_grad_enabled(), torch.get_num_threads()
    done: bool = _machine.overwrite(
        program, columns, counters, numbers, recording, _increment, threads
    )
    return done


def plan(
    program: Any, columns: Columns, counters: Columns, numbers: Numbers
) -> Callable[[], bool] | None:
    """Return what steps leaves where they lie, once all is checked and allocated, or None.

    It writes nothing and returns False where memory was moved or counted on meanwhile.
    """
    capsule = _machine.plan(program, columns, counters, numbers, torch.is_grad_enabled())
    return None if capsule is None else partial(_run, capsule)


def _run(capsule: object) -> bool:
    done: bool = _machine.run(capsule, _increment, torch.get_num_threads())
    return done
