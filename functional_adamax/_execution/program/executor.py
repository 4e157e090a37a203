"""Executor: the rule of any method, recorded once and run by the machine.

It takes plain tensors on the CPU, of one dtype in each leaf, whose elements lie side by side in the
same order, with numbers or tensors of one element as hyperparameters. A program is made when leaves
of a kind are first stepped; it is held against the rule once more, as a whole, and kept by what it
depends on: the method but for its numbers, dtypes, which numbers are zero, and what the rule asks
about a leaf. What cannot be recorded is remembered with its reason, and the rule steps it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..._core import hyper, numerics
from .. import rule
from ..adamax_rule import adamax
from ..native import kernel
from ..rule import Leaf, decays
from ..work import Columns, MethodLike, Row, Work
from . import machine
from .captured import Getter, captured, is_plain
from .lower import Layout, lower
from .machine import Numbers
from .operations import Declined
from .record import Context, Input, alone, answers, context, record

_DTYPES = (torch.float32, torch.float64)
_PLAIN = (Tensor, torch.nn.Parameter)
_FIXED = "_fixed"  # where a method keeps what is fixed of it
_MOST = 256  # kinds of leaves that are remembered
_CHANGES = 16  # kinds that differ in what the rule reads of globals, say
_SAMPLE = 67  # elements by which a program is held against its rule
_P, _G, _T, _FIRST, _NEXT = "p", "g", "t", "first", "next t"


class Kind(NamedTuple):
    """What a program depends on, but for what the rule asks about the leaf."""

    method: type[Any]
    fixed: tuple[Any, ...]  # the fields of the method that are no numbers
    captured: tuple[Any, ...]
    rates: tuple[tuple[str, Any], ...]  # of each: its dtype, float for a number, or a constant
    moments: tuple[str, ...]
    dtype: torch.dtype
    step: torch.dtype
    with_p: bool
    add: bool
    maximize: bool
    decoupled: bool
    context: Context


class Runner(NamedTuple):
    """A program, and what it is given."""

    program: Any
    with_p: bool
    numbers: tuple[str, ...]  # the hyperparameters that it reads


Found: TypeAlias = Runner | str
"""A program, or the reason why there is none."""


@dataclass
class Family:
    """The programs of one kind of leaves, by what the rule asks about them."""

    reads: frozenset[str] = frozenset()
    by_dims: bool = False  # whether leaves of no dimension have their own
    known: dict[Any, Found] = field(default_factory=dict)

    def place(self, like: Tensor) -> Any:
        """What tells the programs apart."""
        return answers(self.reads, like), self.by_dims and like.dim() > 0


_families: dict[Kind, Family] = {}


class Job(NamedTuple):
    """What the machine is given for one step of some leaves."""

    program: Any
    columns: Columns
    counters: Columns
    numbers: Numbers


def compute(work: Work, add: bool) -> Columns | None:
    """Step all leaves into new tensors, checks included, or return None."""
    job = _job(work, add)
    columns = None if job is None else machine.stepped(*job)
    return None if columns is None else _ordered(columns)


def part(work: Work, where: list[int], add: bool) -> dict[int, Row]:
    """Step those of the leaves that the machine takes."""
    rows: dict[int, Row] = {}
    for places, columns in _taken(work, where, add, machine.stepped):
        rows |= dict(zip(places, zip(*_ordered(columns), strict=True), strict=True))
    return rows


def overwrite(work: Work) -> bool:
    """Step all leaves in place, checks included; False with nothing written."""
    if any(isinstance(x, Tensor) for x in work.rates.values()):
        return False  # which may be recorded, or lie where the step would write
    job = _job(work, add=True)
    return job is not None and machine.overwrite(*job)


def plan(work: Work) -> Callable[[], bool] | None:
    """Return what steps all leaves over their tensors, if the machine takes them, or None."""
    job = _job(work, add=True)
    return None if job is None else machine.plan(*job)


def written(work: Work, where: list[int]) -> list[tuple[list[int], Callable[[], bool]]]:
    """Return what steps some of the leaves, which it names, over their tensors."""
    return _taken(work, where, True, machine.plan)


def why_not(work: Work, i: int, add: bool = True) -> str | None:
    """The reason why the machine does not take a leaf, or None if it does."""
    if not machine.is_there():
        return "the machine is not built, or switched off"
    found = _found(work, i, _rates_of(work, i), add)[1]
    return found if isinstance(found, str) else None


def _ordered(columns: Columns) -> Columns:
    """The columns in the order of a row: the update or the parameter, t, and the moments."""
    first, *moments, t = columns
    return [first, t, *moments]


def _job(work: Work, add: bool) -> Job | None:
    """All leaves as one job, which the machine checks; None where it may not be one."""
    i = next((i for i, g in enumerate(work.g) if g is not None), None)
    if i is None or not machine.is_there():
        return None
    if work.method.rule is adamax and kernel.is_there():
        return None  # which comes first, and is proven leaf by leaf
    rates = {
        name: x if isinstance(x, (int, float)) else _single(name, x)
        for name, x in work.rates.items()
    }
    family, found = _found(work, i, rates, add)
    if isinstance(found, str) or family.reads:
        return None
    numbers = tuple(float(rates[name]) for name in found.numbers)
    return _given(work, found, range(len(work.g)), numbers)


def _taken(
    work: Work, where: Sequence[int], add: bool, do: Callable[..., Any]
) -> list[tuple[list[int], Any]]:
    """What ``do`` returns for leaves that it takes: all of one program, or else one by one."""
    if not machine.is_there():
        return []
    groups: dict[int, tuple[Runner, list[int]]] = {}
    for i in where:
        found = _found(work, i, _rates_of(work, i), add)[1]
        if isinstance(found, Runner):
            groups.setdefault(id(found.program), (found, []))[1].append(i)
    taken = []
    for runner, places in groups.values():
        done = do(*_job_of(work, runner, places))
        if done is not None:
            taken.append((places, done))
            continue
        singles = (([i], do(*_job_of(work, runner, [i]))) for i in places)
        taken += [(place, done) for place, done in singles if done is not None]
    return taken


def _job_of(work: Work, runner: Runner, places: list[int]) -> Job:
    assert work.hyper is not None
    columns = [work.hyper[name] for name in runner.numbers]
    return _given(work, runner, places, tuple([float(x[i]) for i in places] for x in columns))


def _given(work: Work, runner: Runner, where: Sequence[int], numbers: Numbers) -> Job:
    columns = [work.g, *([work.p] if runner.with_p else []), *work.moments.values()]
    counters = [work.t]
    if len(where) < len(work.g):
        columns = [[column[i] for i in where] for column in columns]
        counters = [[work.t[i] for i in where]]
    return Job(runner.program, tuple(columns), tuple(counters), numbers)


def _single(name: str, value: Any) -> Any:
    """A hyperparameter that is one number for all leaves, as ``Work.check`` has it."""
    if value is None or name == "derivative_floor":
        return value
    one = hyper.single(value)
    return value if one is None else one


def _rates_of(work: Work, i: int) -> dict[str, Any]:
    """The hyperparameters of one leaf."""
    assert work.hyper is not None
    return {name: column[i] for name, column in work.hyper.items()}


def _found(work: Work, i: int, rates: dict[str, Any], add: bool) -> tuple[Family, Found]:
    """The program for a leaf, and its like, made where there is none yet."""
    try:
        kind = _kind(work, i, rates, add)
    except Declined as problem:
        return Family(), str(problem)
    family = _families.get(kind)
    if family is None:
        alike = sum(x._replace(captured=kind.captured) == kind for x in list(_families))
        if alike >= _CHANGES:
            return Family(), "it reads values that keep changing"
        family = _families[kind] = Family()
        _forget(_families)
    g: Tensor = work.g[i]
    found = family.known.get(family.place(g))
    if found is None:
        try:
            found = _make(work, g, rates, kind, family)
        except Declined as problem:
            found = str(problem)
        family.known[family.place(g)] = found
        _forget(family.known)
    return family, found


def _forget(known: dict[Any, Any]) -> None:
    """Keep a bounded number of entries, the latest."""
    for key in list(known)[:-_MOST]:
        known.pop(key, None)


def _kind(work: Work, i: int, rates: dict[str, Any], add: bool) -> Kind:
    """What the program for a leaf depends on."""
    method, g, t = work.method, work.g[i], work.t[i]
    with_p = work.given or decays(rates["weight_decay"])  # read or not, they are checked
    tensors = [g, *([work.p[i]] if with_p else []), *(x[i] for x in work.moments.values())]
    for x in (*tensors, t):
        if type(x) not in _PLAIN or not x.is_cpu or x.layout != torch.strided:
            raise Declined("its tensors are not plain ones on the CPU")
        if x.dtype not in _DTYPES or (x is not t and x.dtype != g.dtype):
            raise Declined("its tensors are not all in float32, or all in float64")
    reads = _reads(type(method))
    if isinstance(reads, str):
        raise Declined(reads)
    return Kind(
        type(method),
        _fixed(method),
        tuple(get() for get in reads),
        tuple(
            (name, float if type(x) is float and x != 0 else _rate(name, x))
            for name, x in rates.items()
        ),
        tuple(work.moments),
        g.dtype,
        t.dtype,
        with_p,
        add,
        method.maximize,
        method.decoupled,
        context(),
    )


@lru_cache(_MOST)
def _reads(method: type[Any]) -> list[Getter] | str:
    """What finds the values that the rule of a method reads, or why it cannot be told."""
    try:
        return captured(method.rule, method)
    except Declined as problem:
        return str(problem)


def _fixed(method: MethodLike) -> tuple[Any, ...]:
    """The fields of a method but for its numbers, which are hyperparameters."""
    if not dataclasses.is_dataclass(method):
        raise Declined("its method is no dataclass")
    known: tuple[Any, ...] | None = vars(method).get(_FIXED)
    if known is None:
        known = tuple(_but_numbers(getattr(method, x.name)) for x in dataclasses.fields(method))
        object.__setattr__(method, _FIXED, known)
    return known


def _but_numbers(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_but_numbers, value))
    return value if type(value) is not float and is_plain(value) else float


def _rate(name: str, value: Any) -> Any:
    """What a program depends on of a hyperparameter."""
    if isinstance(value, Tensor):
        if type(value) not in _PLAIN or not value.is_cpu or value.dim() > 0:
            raise Declined(f"{name} is no number, nor a tensor of one on the CPU")
        if value.dtype not in _DTYPES:
            raise Declined(f"{name} is in {value.dtype}")
        if torch.is_grad_enabled() and value.requires_grad:
            raise Declined(f"{name} is followed by autograd")
        return value.dtype
    if not is_plain(value):
        raise Declined(f"{name} is no number")
    return float if type(value) in (int, float) and value != 0 else value


@dataclass(frozen=True)
class _Whole:
    """One step of one leaf as a rule of named tensors."""

    method: MethodLike
    rates: dict[str, Any]  # those that are not among the tensors
    moments: tuple[str, ...]
    dtype: torch.dtype
    add: bool

    def __call__(self, x: dict[str, Any]) -> dict[str, Tensor]:
        moments = {name: x[name] for name in self.moments}
        rates = {name: x.get(_named(name), value) for name, value in self.rates.items()}
        p: Any = x.get(_P)
        method = self.method
        how = method.maximize, method.decoupled
        leaf = Leaf(p, x[_G], x[_T], moments, rates, self.dtype, *how)
        update, t, moments = rule.step(method.rule, leaf)
        first = numerics.add(p, update) if self.add else update
        return {_FIRST: first, _NEXT: t, **moments}


def _named(rate: str) -> str:
    return f"rate {rate}"


def _make(work: Work, g: Tensor, rates: dict[str, Any], kind: Kind, family: Family) -> Runner:
    """Record the rule for leaves like ``g``, and make the program.

    Raises:
        Declined: there is none, with the reason.
    """
    inputs = {_G: Input(True, kind.dtype), _T: Input(False, kind.step)}
    columns = [_G, *([_P] if kind.with_p else []), *kind.moments]
    inputs |= {name: Input(True, kind.dtype) for name in columns}
    numbers = tuple(name for name, how in kind.rates if how in (float, *_DTYPES))
    for name, how in kind.rates:
        if name in numbers:
            inputs[_named(name)] = Input(False, None if how is float else how)
    whole = _Whole(work.method, rates, kind.moments, kind.dtype, kind.add)
    hidden = dataclasses.replace(whole, method=_without_numbers(work.method))
    graph = record(hidden, inputs, g)
    family.reads |= graph.reads
    family.by_dims |= graph.dims != 2
    outputs = [(_FIRST, _P if kind.add else _G), *((name, name) for name in kind.moments)]
    layout = Layout(columns, outputs, [(_T, _NEXT)], [_named(name) for name in numbers])
    lowered = lower(graph, layout)
    runner = Runner(machine.made(lowered), kind.with_p, numbers)
    signed = not any(x.op in machine.ZEROS for x in lowered.vector)
    like = g if graph.reads - {"ndim"} else g.new_empty(((_SAMPLE,) + (1,) * g.dim())[: g.dim()])
    if not alone(partial(_agrees, runner, whole, inputs, layout, like, signed), kind.context):
        raise Declined("its program has not the bits of the rule")
    return runner


def _agrees(
    runner: Runner,
    whole: _Whole,
    inputs: dict[str, Input],
    layout: Layout,
    like: Tensor,
    signed: bool,
) -> bool:
    """Hold a program against its rule."""
    generator = torch.Generator("cpu").manual_seed(2)
    for t in (0.0, 1.0, 9.0):
        x: dict[str, Any] = {}
        for name, given in inputs.items():
            x[name] = torch.empty_like(like, dtype=given.dtype)
            if not given.vector:
                x[name] = torch.zeros((), dtype=given.dtype or torch.float64, device="cpu")
            x[name].normal_(generator=generator)
            if not given.vector:
                x[name].sigmoid_()
        x[_T].fill_(t)
        columns = tuple([x[name]] for name in layout.columns)
        numbers = tuple(x[name].item() for name in layout.numbers)
        found = machine.stepped(runner.program, columns, ([x[_T]],), numbers)
        x |= {name: x[name].item() for name, given in inputs.items() if given.dtype is None}
        wanted = whole(x)
        names = [name for name, _ in layout.outputs] + [_NEXT]
        if found is None or not all(
            machine.same_bits(y, wanted[name], signed)
            for name, (y,) in zip(names, found, strict=True)
        ):
            return False
    return True


def _without_numbers(method: Any) -> Any:
    """A method whose numbers are tensors that no record knows: a rule is given others."""
    values = {x.name: getattr(method, x.name) for x in dataclasses.fields(method)}
    return dataclasses.replace(method, **{name: _hidden(x) for name, x in values.items()})


def _hidden(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_hidden, value))
    return value if _but_numbers(value) is not float else torch.zeros((), device="cpu")
