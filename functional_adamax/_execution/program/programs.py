"""The programs of rules, made when leaves of a kind are first stepped.

A program is held against the rule once more, as a whole, and kept by what it depends on: the method
but for its numbers, dtypes, which numbers are zero, and what the rule asks about a leaf. What
cannot be recorded is remembered with its reason. The file is longer than others: what a program
depends on and what it is made of have to agree.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..._core import numerics
from .. import rule
from ..rule import Leaf, decays
from ..work import MethodLike, Work
from . import entries, machine, proof
from .captured import Getter, captured, is_plain
from .graph import FLOATING, Declined
from .lower import Layout, lower
from .pulled import Source
from .record import Context, Input, alone, answers, context, record, sample

_DTYPES = (torch.float32, torch.float64)  # of single numbers
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
    columns: tuple[tuple[str, torch.dtype], ...]
    moments: tuple[str, ...]
    dtype: torch.dtype  # of those, or of the parameter where there are none
    step: torch.dtype
    add: bool
    maximize: bool
    decoupled: bool
    context: Context


class Runner(NamedTuple):
    """A program, and what it is given."""

    program: Any
    with_p: bool
    numbers: tuple[str, ...]  # the hyperparameters that it reads
    source: Source


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


families: dict[Kind, Family] = {}


def found_for(
    work: Work, i: int, rates: dict[str, Any], add: bool, checked: bool
) -> tuple[Family, Found]:
    """The program for a leaf, and its like, made where there is none yet.

    What is not ``checked`` the machine is shown, also parameters that the rule does not read.
    """
    if entries.thread.is_compiling:
        return Family(), "a program of a whole transform is held against its rule"
    try:
        kind = _kind(work, i, rates, add, checked)
    except Declined as problem:
        return Family(), str(problem)
    family = families.get(kind)
    if family is None:
        alike = sum(x._replace(captured=kind.captured) == kind for x in list(families))
        if alike >= _CHANGES:
            return Family(), "it reads values that keep changing"
        family = families[kind] = Family()
        _forget(families)
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


def sources_of(work: Work, where: list[int], add: bool) -> dict[int, Source]:
    """The records of the steps of those leaves whose derivative is a program."""
    assert work.hyper is not None
    known: dict[Any, Source | str] = {}
    sources = {}
    for i in where:
        row = [work.p[i], work.g[i], work.t[i], *(x[i] for x in work.moments.values())]
        kinds = [x if x is None else (type(x), x.dtype, x.is_cpu, x.layout) for x in row]
        key = (*kinds, work.g[i].dim() > 0, *(id(x[i]) for x in work.hyper.values()))
        if key not in known:
            known[key] = source_of(work, i, add)
        source = known[key]
        if isinstance(source, Source):
            sources[i] = source
    return sources


def source_of(work: Work, i: int, add: bool) -> Source | str:
    """The record of the step of a leaf, where its derivative is a program; or why it is none."""
    assert work.hyper is not None
    rates = {
        name: x[i].detach() if isinstance(x[i], Tensor) else x[i] for name, x in work.hyper.items()
    }
    found = found_for(work, i, rates, add, checked=True)[1]
    if isinstance(found, str):
        return found
    if found.source.graph.reads:
        return "it asks about the leaf, and autograd records it"
    whole = found.source.whole()
    return whole if isinstance(whole, str) else found.source


def _forget(known: dict[Any, Any]) -> None:
    """Keep a bounded number of entries, the latest."""
    for key in list(known)[:-_MOST]:
        known.pop(key, None)


def _kind(work: Work, i: int, rates: dict[str, Any], add: bool, checked: bool) -> Kind:
    """What the program for a leaf depends on."""
    method, g, t = work.method, work.g[i], work.t[i]
    with_p = add or decays(rates["weight_decay"]) or (work.given and not checked)
    moments = {name: x[i] for name, x in work.moments.items()}
    columns = {_G: g, **({_P: work.p[i]} if with_p else {}), **moments}
    for x in (*columns.values(), t):
        if type(x) not in _PLAIN or not x.is_cpu or x.layout != torch.strided:
            raise Declined("its tensors are not plain ones on the CPU")
        if x.dtype not in (_DTYPES if x is t else FLOATING):
            raise Declined(f"it has a tensor in {x.dtype}")
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
        tuple((name, x.dtype) for name, x in columns.items()),
        tuple(moments),
        next(iter(moments.values()), work.p[i] if work.given else g).dtype,
        t.dtype,
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
        rates = {name: x.get(named(name), value) for name, value in self.rates.items()}
        p: Any = x.get(_P)
        method = self.method
        how = method.maximize, method.decoupled
        leaf = Leaf(p, x[_G], x[_T], moments, rates, self.dtype, *how)
        update, t, moments = rule.step(method.rule, leaf)
        first = numerics.add(p, update) if self.add else update
        return {_FIRST: first, _NEXT: t, **moments}


def named(rate: str) -> str:
    """How the record calls a hyperparameter."""
    return f"rate {rate}"


def rate_of(name: str) -> str:
    """The hyperparameter that the record calls so."""
    return name.removeprefix("rate ")


def names_of(moments: tuple[str, ...]) -> tuple[str, ...]:
    """How the record calls the tensors of a leaf."""
    return _P, _G, _T, *moments


def results_of(moments: tuple[str, ...]) -> tuple[str, ...]:
    """How the record calls the results of a step, in the order of a row."""
    return _FIRST, _NEXT, *moments


def _make(work: Work, g: Tensor, rates: dict[str, Any], kind: Kind, family: Family) -> Runner:
    """Record the rule for leaves like ``g``, and make the program.

    Raises:
        Declined: there is none, with the reason.
    """
    inputs = {name: Input(True, dtype) for name, dtype in kind.columns}
    inputs[_T] = Input(False, kind.step)
    columns = [name for name, _ in kind.columns]
    numbers = tuple(name for name, how in kind.rates if how in (float, *_DTYPES))
    for name, how in kind.rates:
        if name in numbers:
            inputs[named(name)] = Input(False, None if how is float else how)
    whole = _Whole(work.method, rates, kind.moments, kind.dtype, kind.add)
    hidden = dataclasses.replace(whole, method=_without_numbers(work.method))
    graph = record(hidden, inputs, g)
    family.reads |= graph.reads
    family.by_dims |= graph.dims != 2
    outputs = [(_FIRST, _P if kind.add else _G), *((name, name) for name in kind.moments)]
    layout = Layout(columns, outputs, [(_T, _NEXT)], [named(name) for name in numbers])
    lowered = lower(graph, layout)
    given = dataclasses.replace(hidden, rates=dict(kind.rates))
    source = Source(given, graph, inputs, kind.context)
    runner = Runner(proof.made(lowered), _P in columns, numbers, source)
    signed = not any(x.op in proof.ZEROS for x in lowered.vector)
    like = g
    if not graph.reads - {"ndim"}:
        shape = ((_SAMPLE,) + (1,) * g.dim())[: g.dim()]
        like = torch.empty(shape, dtype=g.dtype, device="cpu")
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
            x[name] = sample(given, like.shape, like.stride(), generator)
            if given.vector:
                x[name] = 4 * x[name] - 2
        x[_T] = torch.full_like(x[_T], t)
        columns = tuple([x[name]] for name in layout.columns)
        numbers: machine.Numbers = [x[name].item() for name in layout.numbers]
        found = [[x[column]] for _, column in layout.outputs] + [[x[_T]]]
        part = machine.Part(runner.program, columns, ([x[_T]],))
        if not machine.into_new(part, numbers, found):
            return False
        x |= {name: x[name].item() for name, given in inputs.items() if given.dtype is None}
        wanted = whole(x)
        names = [name for name, _ in layout.outputs] + [_NEXT]
        if not all(
            proof.same_bits(y, wanted[name], signed)
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
