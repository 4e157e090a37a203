"""What calls the machine of ``native/machine.c``: it runs a program on columns of leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

from ..._core.private import dispatch, modes
from ..._core.pytree import EmptyState
from ..native import loaded
from .graph import FLOATING, Declined
from .lower import Instruction, Program

_machine, _why_not = loaded("_machine")

Columns: TypeAlias = Sequence[list[Any]]
"""Of each column, or counter, a tensor for each leaf."""

Numbers: TypeAlias = list[float | list[float]]
"""The other uniforms: one number for all leaves, or a list with one for each."""


class Part(NamedTuple):
    """Leaves that are stepped by one program, of which the first column holds the gradients.

    A leaf that has none is left as it is.
    """

    program: Any
    columns: Columns
    counters: Columns
    where: list[int] | None = None  # which leaves; None for all


_increment = modes.increment_version
_TYPES = list(FLOATING)  # in the order of native/tensors.h


def is_there() -> bool:
    """Whether the machine is built, and not switched off, and rules can be recorded."""
    return _machine is not None and dispatch.IS_THERE


def report() -> str:
    """Whether programs are run, and why not."""
    if _machine is None:
        return f"no: {_why_not}"
    return "yes" if dispatch.IS_THERE else f"no: torch {torch.__version__} has no dispatch modes"


def assembled(program: Program) -> Any:
    """Return what the machine runs.

    Raises:
        Declined: the program is too long.
    """
    columns = len(program.reads) + len(program.of)
    types = program.types or [program.dtype] * columns
    try:
        return _machine.program(
            _TYPES.index(program.dtype),
            program.dims,
            program.registers,
            program.numbers,
            list(map(int, program.reads)),
            list(map(_TYPES.index, types)),
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


def plan(parts: list[Part], in_place: bool, members: int = 0) -> Any:
    """Look at the leaves of a step; return what the step is taken by, or None where it cannot be.

    The parts are for different leaves of the same trees. With ``members`` all tensors are those of
    so many members, stacked, counters too. Where there is one of something for each leaf, be it a
    number or a result, there is then one for each member of the first leaf, of the second, ...
    """
    return _machine.plan(parts, in_place, torch.is_grad_enabled(), members)


SUM, LARGEST, EACH = 0, 1, 2  # as in native/phases.h; EACH beside one of the others


def summed(
    planned: Any, programs: list[Any], numbers: Numbers, mode: int = SUM
) -> float | list[float] | None:
    """Return the sum of the squares of the first outputs, in the order of ``sums.py``.

    There is a program for each part, or None. In the mode LARGEST return the largest absolute
    value; in the modes SUM | EACH and LARGEST | EACH a list with that of each leaf. Of a plan with
    members return in the first two modes a list with that of each member. None where leaves are not
    as they were, or do not lie in the order of their elements.
    """
    found: float | list[float] | None
    found = _machine.summed(planned, programs, numbers, mode, torch.get_num_threads())
    return found


def stepped(planned: Any, numbers: Numbers, lists: list[tuple[list[Any], ...]]) -> bool:
    """Take a step into new tensors, which come into lists: a tuple of them for each part.

    They are for the outputs of its program, and for its counters. False where leaves are not as
    they were.
    """
    done: bool = _machine.stepped(planned, numbers, lists, torch.get_num_threads())
    return done


def write(planned: Any, numbers: Numbers) -> bool:
    """Take a step in place; False, with nothing written, where leaves are not as they were."""
    done: bool = _machine.write(planned, numbers, _increment, torch.get_num_threads())
    return done


class Step(NamedTuple):
    """A step in place: its parts, the sums that are made first, and the numbers of its programs.

    Of a sum, as ``summed`` makes it, there are its place among the numbers, the programs, and the
    mode.
    """

    parts: list[Part]
    sums: list[tuple[int, list[Any], int]]
    numbers: Numbers


def overwrite(steps: list[Step]) -> bool:
    """Plan and take steps together; False, with nothing written, where one cannot be taken.

    None of them writes what another reads.
    """
    if _machine is None:
        return False
    recording, threads = torch.is_grad_enabled(), torch.get_num_threads()
    done: bool = _machine.overwrite(steps, recording, _increment, threads)
    return done


def into_new(part: Part, numbers: Numbers, lists: Columns, members: int = 0) -> bool:
    """Plan and take a step into new tensors, which come into ``lists``."""
    planned = plan([part], in_place=False, members=members)
    return planned is not None and stepped(planned, numbers, [tuple(lists)])


def are_apart(tensors: list[Any]) -> bool:
    """Whether tensors are known to share no memory."""
    found: bool = is_there() and _machine.are_apart(tensors)
    return found


def gathered(
    params: list[Any], state: Any, names: tuple[str, ...], single: tuple[bool, ...]
) -> tuple[list[Any], list[Any], list[Any]] | None:
    """Return gradients, parameters and the flat state of an optimizer, whose entries are dicts.

    Under each name an entry has a value of its own, or all have the ``single`` one. What there is
    none of is EmptyState, and a parameter without an entry None. None where a parameter has a
    gradient and no entry, or entries differ.
    """
    found: tuple[list[Any], list[Any], list[Any]] | None
    found = _machine.gather(params, state, names, single, EmptyState())
    return found


def shared(params: list[Any], state: Any, name: str) -> Any:
    """Return what all entries of an optimizer hold under a name, if it is one object; or None."""
    return _machine.shared(params, state, name)
