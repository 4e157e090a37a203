"""Who steps which leaves: the one place where that is decided.

An executor is another spelling of ``rule.step``. It takes only what it can do with the same bits on
a CPU (``tests/execution/test_executors.py``), and the rule itself takes the rest. Some take all the
work or nothing, in one call that checks it, too. What they leave is checked and shared out: each
executor in its order takes the leaves that it can, but for those that have a hyperparameter for
each element, which pure steps leave to the rule. The file is longer than others: what pure steps
and steps in place choose has to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain, pairwise
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core import context, donation, memory, pytree
from .._core.plans import OverTrees
from .._core.pytree import Tree
from . import by_rule, foreach, inplace, recorded
from .adamax_rule import adamax
from .native import kernel
from .native.kernel import Group
from .program import batched
from .program import executor as program
from .triton import executor as triton
from .triton.table import Leaf
from .work import Columns, Row, Work, leaves_of

_TITLES = {  # others are other ways to the kernel
    program: "program",
    batched: "program",
    triton: "Triton",
    foreach: "torch's foreach",
    inplace: "torch in place",
    recorded: "one node of autograd",
    by_rule: "the rule",
}
_SLOWER = (foreach, inplace, recorded, by_rule)
NOBODY = "none", "it has no gradient"
FOLLOWED = "a transform of torch.func, a compiler or a mode follows it"
RECORDED = "autograd records it"
UNLIKE = "its tensors are not dense in memory, or not laid out alike"


class Taken(NamedTuple):
    """A leaf, and who steps it."""

    path: str
    executor: str
    why_not: str | None
    """Why neither a kernel nor a program does, if none does."""


class Part(NamedTuple):
    """What steps some leaves where they lie."""

    executor: ModuleType
    where: list[int]
    write: Callable[[], None]


def _order(work: Work) -> tuple[ModuleType, tuple[ModuleType, ...]]:
    """The executors of pure steps: the one for all the work, and those for some of the leaves.

    The former has ``compute(work, add)``, which returns None or the results of all leaves; the
    latter ``part(work, where, add)``, which returns the results of those that they take.
    """
    followed = (recorded,) if torch.is_grad_enabled() else ()
    if context.traced():
        return batched, followed if context.only_in_reverse() else ()
    if work.method.rule is not adamax:
        return program, (*followed, program)
    return kernel, (*followed, kernel, program)


def compute(work: Work, add: bool, takers: dict[int, ModuleType] | None = None) -> Columns:
    """Step ``work``, purely; with ``add``, the new parameters take the place of the updates.

    ``takers``, where it is given, is told the executor of each leaf.
    """
    whole, parts = _order(work)
    found: Columns | None = whole.compute(work, add)
    if found is not None:
        if takers is not None:
            takers |= dict.fromkeys(work.stepped(), whole)
        return found
    work.check()
    rows: dict[int, Row] = {}
    stepped = work.stepped()
    elementwise = work.elementwise() if parts else ()
    left = [i for i in stepped if i not in elementwise]
    for executor in parts:
        if left:
            how = (compute,) if executor is recorded else ()
            new = executor.part(work, left, add, *how)
            rows |= new
            left = [i for i in left if i not in rows]
            if takers is not None:
                takers |= dict.fromkeys(new, executor)
    rest = [i for i in stepped if i not in rows]
    if rest:
        rows |= by_rule.part(work, rest, add)
        if takers is not None:
            takers |= dict.fromkeys(rest, by_rule)
    return work.columns(rows, add)


def advance(
    groups: list[Group], state: Mapping[Tensor, Any], known: list[Tensor]
) -> list[Tensor] | None:
    """Step, in place, whole groups of an optimizer, or write nothing and return None.

    What is returned was written by the kernel, and is ``known`` in the next step.
    """
    return kernel.advance(groups, state, known)


class Step(OverTrees):
    """A step of a method."""

    def __init__(self, work: Work, trees: tuple[Tree, Any, Tree], donate: bool) -> None:
        super().__init__(trees, donate)
        self._work = work

    def check(self) -> None:
        if self._write is not None or self.new is not None:
            return
        work = self._work
        if self._donate and self._may_write():
            self._write, self.problem = plan(work, self._trees)
        if self._write is None:
            self.new = work.method.results(work, compute(work, add=True))

    def explained(self) -> list[Taken]:
        """Say who would step each leaf; nothing is written.

        Raises:
            ValueError: donated tensors share memory.
        """
        work = self._work
        work.check()
        parts, takers = None, dict[int, ModuleType]()
        if self._donate and self._may_write():
            parts, problem = _parts(work, self._trees)
            if problem is not None:
                raise ValueError(problem)
        if parts is None:
            compute(work, True, takers)
        else:
            takers = {i: x.executor for x in parts for i in x.where}
        paths = pytree.paths(work.spec, "params")
        return [_taken(work, i, path, takers.get(i)) for i, path in enumerate(paths)]

    def _may_write(self) -> bool:
        if torch.compiler.is_compiling():
            return self._work.method.in_turn and not torch.is_grad_enabled()
        return donation.may_write(*self._trees)

    def __call__(self) -> tuple[Tree, Any]:
        fresh = self._write is None and self.new is None
        if self._donate and fresh and not context.traced() and _overwrite(self._work):
            self.in_place = True
            _, state, params = self._trees
            return params, state
        return super().__call__()


def _overwrite(work: Work) -> bool:
    """Step all leaves in place in one call that checks them, or write nothing."""
    return kernel.overwrite(work) or (not work.method.in_turn and program.overwrite(work))


def plan(work: Work, trees: tuple[Tree, Any, Tree]) -> tuple[Callable[[], None] | None, str | None]:
    """Return what steps ``work`` over its trees, once all is checked and allocated.

    None where a hyperparameter lies where the step would write, or autograd records it; or where
    tensors share memory, with what says so, unless the method steps such leaves in turn.
    """
    parts, problem = _parts(work, trees)
    return None if parts is None else partial(_run, parts), problem


def _parts(work: Work, trees: tuple[Tree, Any, Tree]) -> tuple[list[Part] | None, str | None]:
    """The same, in parts."""
    method = work.method
    if _is_learned(work):
        return None, None
    if not method.in_turn and any(g is None for g in work.g):  # which the kernel does not look at
        problem = _shared_memory(work, trees)
        if problem is not None:
            return None, problem
    aliased = _follows_writes(work)
    if not aliased and not method.foreach and not torch.compiler.is_compiling():
        executor: ModuleType = kernel
        write = kernel.plan(work) if method.rule is adamax else None
        if write is None and not method.in_turn:
            executor, write = program, program.plan(work)
        if write is not None:
            where = work.stepped()
            return [Part(executor, where, partial(_in_c, write, work, where))], None
    work.check()
    if method.in_turn:
        in_turn = aliased or not memory.are_apart(_written(work))
        return _in_torch(work, work.stepped(), in_turn=in_turn), None
    problem = _shared_memory(work, trees)
    if aliased or problem is not None:
        return None, problem
    return _in_torch(work, work.stepped()), None


def _in_c(write: Callable[[], bool], work: Work, where: list[int]) -> None:
    if not write():  # an odd counter, or memory that was moved
        work.check()
        _run(_in_torch(work, where, by_program=False))


def _in_torch(
    work: Work,
    where: list[int],
    by_triton: bool = True,
    in_turn: bool = False,
    by_program: bool = True,
) -> list[Part]:
    """Plan in torch's operations, or in Triton's; ``in_turn`` what does not go by foreach."""
    wanted = work.method.foreach
    if in_turn and not wanted:
        return [Part(inplace, where, partial(_in_turn, work, where))]
    if wanted is None and by_triton and not torch.compiler.is_compiling():
        leaves = triton.part(work, where)
        if leaves:
            rest = _in_torch(work, [i for i in where if i not in leaves], by_program=by_program)
            return [Part(triton, list(leaves), partial(_by_triton, work, leaves)), *rest]
    if work.method.rule is not adamax:  # which the other executors are written for
        return _for_any_rule(work, where, by_program)
    if wanted is None and not torch.compiler.is_compiling():
        wanted = all(_is_plain_cuda(work.p[i]) for i in where)
    parts: list[Part] = []
    if wanted:
        taken, write = foreach.part(work, where)
        parts.append(Part(foreach, taken, write))
        where = [i for i in where if i not in set(taken)]
    if in_turn:
        return [*parts, Part(inplace, where, partial(_in_turn, work, where))]
    inside = inplace.part(work, where)
    parts += [Part(inplace, [i], write) for i, write in inside.items()]
    return [*parts, *_for_any_rule(work, [i for i in where if i not in inside], by_program)]


def _for_any_rule(work: Work, left: list[int], by_program: bool) -> list[Part]:
    """Plan by programs, and by the rule what those do not take."""
    parts: list[Part] = []
    if by_program and left and not torch.compiler.is_compiling():
        for places, planned in program.written(work, left):
            parts.append(Part(program, places, partial(_in_c, planned, work, places)))
            left = [i for i in left if i not in set(places)]
    rest = by_rule.written(work, left) if left else {}
    return [*parts, *(Part(by_rule, [i], write) for i, write in rest.items())]


def _by_triton(work: Work, leaves: dict[int, Leaf]) -> None:
    if not triton.write(list(leaves.values())):
        _run(_in_torch(work, list(leaves), by_triton=False))


def _in_turn(work: Work, where: list[int]) -> None:
    """Step leaf after leaf, each of which sees what those before it wrote."""
    for i in where:
        _run(_in_torch(work, [i]))


def _run(parts: Iterable[Part]) -> None:
    for part in parts:
        part.write()


def _taken(work: Work, i: int, path: str, executor: ModuleType | None) -> Taken:
    if executor is None:
        return Taken(path, *NOBODY)
    why = _why_not(work, i, executor) if executor in _SLOWER else None
    return Taken(path, _TITLES.get(executor, "kernel"), why)


def _why_not(work: Work, i: int, executor: ModuleType) -> str:
    """Why neither a kernel nor a program steps a leaf."""
    batching = context.only_vmaps() is not None
    if context.traced() and not batching:
        return FOLLOWED
    problem = None
    for leaf in () if batching else leaves_of(work, [i]).values():
        problem = kernel.why_not(leaf)
        if problem is None and executor in (foreach, inplace) and kernel.as_read([leaf]):
            problem = "the kernel writes over all leaves or none, and does not take another one"
    problem = problem or triton.why_not(work, i) or program.why_not(work, i)
    if problem is None:
        tensors = pytree.tensors([work.p[i], work.g[i], *(x[i] for x in work.moments.values())])
        recorded = torch.is_grad_enabled() and any(map(context.tracked, tensors))
        problem = RECORDED if recorded else UNLIKE
    return problem


def _shared_memory(work: Work, trees: tuple[Tree, Any, Tree]) -> str | None:
    """Return what ``donation.shared_memory`` does, asked only where two storages overlap."""
    columns = work.p, work.g, work.t, *work.moments.values()
    tensors = [x for x in chain.from_iterable(columns) if isinstance(x, Tensor)]
    if all(type(x) in memory.PLAIN and x.layout is torch.strided for x in tensors):
        storages = [x.untyped_storage() for x in tensors]
        places = sorted((x.data_ptr(), x.nbytes()) for x in storages)
        if all(start + size <= after for (start, size), (after, _) in pairwise(places)):
            return None
    return donation.shared_memory(*trees)


def _written(work: Work) -> list[Any]:
    columns = (work.p, work.g, *work.moments.values(), work.t)
    return [column[i] for column in columns for i in work.stepped()]


def _follows_writes(work: Work) -> bool:
    """Whether a hyperparameter lies where a step would write."""
    hyper = [x for x in work.rates.values() if not isinstance(x, (int, float))]
    tensors = pytree.tensors(hyper) if hyper else []
    if not tensors:
        return False
    columns = (work.p, *work.moments.values(), work.t)
    written: Iterable[Any] = chain.from_iterable(columns)
    if not torch.compiler.is_compiling() and all(map(_is_lone, tensors)):
        written = (x for x in written if isinstance(x, Tensor) and x.numel() == 1)
    return not memory.storages(written).isdisjoint(memory.storages(tensors))


def _is_lone(x: Tensor) -> bool:
    """Whether no other element lies in the memory of the one of ``x``."""
    plain = type(x) in memory.PLAIN and memory.has_address(x)
    return plain and x.untyped_storage().nbytes() == x.element_size()


def _is_learned(work: Work) -> bool:
    """Whether autograd records a hyperparameter."""
    return torch.is_grad_enabled() and any(
        x.requires_grad for x in pytree.tensors(list(work.rates.values()))
    )


def _is_plain_cuda(p: Any) -> bool:
    return type(p) in memory.PLAIN and p.is_cuda
