"""The programs of rules, made when leaves of a kind are first stepped.

A program is held against the rule once more, as a whole, and kept by what it depends on: the method
but for its numbers, dtypes, which numbers are zero, and what the rule asks about a leaf. What
cannot be recorded is remembered with its reason. The file is longer than others: what a program
depends on and what it is made of have to agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
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
from .lower import Layout, Program, lower
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


@dataclass(frozen=True, eq=False, repr=False)
class Lowered:
    """The rule of some leaves as a program, and what it is made of."""

    program: Program
    kind: Kind
    layout: Layout
    numbers: tuple[str, ...]  # the hyperparameters that it reads
    inputs: dict[str, Input]
    source: Source
    shape: tuple[int, ...]  # of the leaves, if the rule asks for it
    stride: tuple[int, ...]

    @property
    def is_signed(self) -> bool:
        """Whether the signs of zeros are those of the rule."""
        return not any(x.op in proof.ZEROS for x in self.program.vector)


class Runner(NamedTuple):
    """A program that the machine runs, and what it is given."""

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
    lowered: dict[Any, Lowered | str] = field(default_factory=dict)
    known: dict[Any, Found] = field(default_factory=dict)  # those that the machine runs

    def place(self, like: Tensor) -> Any:
        """What tells the programs apart."""
        return answers(self.reads, like), self.by_dims and like.dim() > 0


families: dict[Kind, Family] = {}


def found_for(
    work: Work, i: int, rates: dict[str, Any], add: bool, checked: bool
) -> tuple[Family, Found]:
    """The program by which the machine steps a leaf, and its like, made where there is none yet.

    What is not ``checked`` the machine is shown, also parameters that the rule does not read.
    """
    family, lowered = lowered_for(work, i, rates, add, checked)
    if isinstance(lowered, str):
        return family, lowered
    place = family.place(work.g[i])
    found = family.known.get(place)
    if found is None:
        try:
            found = _made(lowered)
        except Declined as problem:
            found = str(problem)
        family.known[place] = found
        _forget(family.known)
    return family, found


def lowered_for(
    work: Work, i: int, rates: dict[str, Any], add: bool, checked: bool, device: str = "cpu"
) -> tuple[Family, Lowered | str]:
    """The program for a leaf on a kind of device, and its like, made where there is none yet."""
    if entries.thread.is_compiling:
        return Family(), "a program of a whole transform is held against its rule"
    try:
        kind = _kind(work, i, rates, add, checked, device)
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
    found = family.lowered.get(family.place(g))
    if found is None:
        try:
            found = _lowered(work, g, rates, kind, family)
        except Declined as problem:
            found = str(problem)
        family.lowered[family.place(g)] = found
        _forget(family.lowered)
    return family, found


def alike(work: Work, where: Iterable[int]) -> list[list[int]]:
    """Leaves that have one program, but for what the rule asks about them."""
    rates, columns = work.own(), [work.p, work.g, work.t, *work.moments.values()]
    found: dict[Any, list[int]] = {}
    for i in where:
        row = [column[i] for column in columns]
        kinds = [x if x is None else (type(x), x.dtype, x.device, x.layout) for x in row]
        key = (*kinds, work.g[i].dim() > 0, *(id(x[i]) for x in rates))
        found.setdefault(key, []).append(i)
    return list(found.values())


def shared_out(
    work: Work, where: Iterable[int], find: Callable[[int], tuple[Family, Any]]
) -> list[tuple[Any, list[int]]]:
    """What ``find`` finds for leaves, and which it is for; it is asked once for those alike.

    What it has found is a reason, and nothing, where it is a string.
    """
    groups: dict[int, tuple[Any, list[int]]] = {}
    for places in alike(work, where):
        family, found = find(places[0])
        for i in places:
            if family.reads and i != places[0]:
                found = find(i)[1]
            if not isinstance(found, str):
                groups.setdefault(id(found), (found, []))[1].append(i)
    return list(groups.values())


def sources_of(work: Work, where: list[int], add: bool) -> dict[int, Source]:
    """The records of the steps of those leaves whose derivative is a program, in order."""
    found: dict[int, Source] = {}
    for places in alike(work, where):
        source = source_of(work, places[0], add)
        if isinstance(source, Source):
            found |= dict.fromkeys(places, source)
    return {i: found[i] for i in where if i in found}


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


def _kind(work: Work, i: int, rates: dict[str, Any], add: bool, checked: bool, device: str) -> Kind:
    """What the program for a leaf depends on."""
    method, g, t = work.method, work.g[i], work.t[i]
    with_p = add or decays(rates["weight_decay"]) or (work.given and not checked)
    moments = {name: x[i] for name, x in work.moments.items()}
    columns = {_G: g, **({_P: work.p[i]} if with_p else {}), **moments}
    for x in (*columns.values(), t):
        here = x.device.type == device or (x is t and x.is_cpu)
        if type(x) not in _PLAIN or not here or x.layout != torch.strided:
            raise Declined(f"its tensors are not plain ones on the {device.upper()}")
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
            (name, float if type(x) is float and x != 0 else _rate(name, x, t.device))
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


def _rate(name: str, value: Any, device: torch.device) -> Any:
    """What a program depends on of a hyperparameter, which is where the counter is."""
    if isinstance(value, Tensor):
        if type(value) not in _PLAIN or value.device != device or value.dim() > 0:
            raise Declined(f"{name} is no number, nor a tensor of one on the {device.type.upper()}")
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


def rates_of(work: Work, i: int) -> dict[str, Any]:
    """The hyperparameters of one leaf."""
    assert work.hyper is not None
    return {name: column[i] for name, column in work.hyper.items()}


def named(rate: str) -> str:
    """How the record calls a hyperparameter."""
    return f"rate {rate}"


def names_of(moments: tuple[str, ...]) -> tuple[str, ...]:
    """How the record calls the tensors of a leaf."""
    return _P, _G, _T, *moments


def results_of(moments: tuple[str, ...]) -> tuple[str, ...]:
    """How the record calls the results of a step, in the order of a row."""
    return _FIRST, _NEXT, *moments


def _lowered(work: Work, g: Tensor, rates: dict[str, Any], kind: Kind, family: Family) -> Lowered:
    """Record the rule for leaves like ``g``.

    Raises:
        Declined: it cannot be, with the reason.
    """
    inputs = {name: Input(True, dtype) for name, dtype in kind.columns}
    inputs[_T] = Input(False, kind.step)
    columns = [name for name, _ in kind.columns]
    numbers = tuple(name for name, how in kind.rates if how in (float, *_DTYPES))
    for name, how in kind.rates:
        if name in numbers:
            inputs[named(name)] = Input(False, None if how is float else how)
    method = _without_numbers(work.method)
    hidden = _Whole(method, rates, kind.moments, kind.dtype, kind.add)
    graph = record(hidden, inputs, g)
    family.reads |= graph.reads
    family.by_dims |= graph.dims != 2
    outputs = [(_FIRST, _P if kind.add else _G), *((name, name) for name in kind.moments)]
    layout = Layout(columns, outputs, [(_T, _NEXT)], [named(name) for name in numbers])
    given = dataclasses.replace(hidden, rates=dict(kind.rates))
    source = Source(given, graph, inputs, kind.context)
    shape, stride = tuple(g.shape), g.stride()
    if not graph.reads - {"ndim"}:
        shape = ((_SAMPLE,) + (1,) * g.dim())[: g.dim()]
        stride = (1,) * g.dim()
    return Lowered(lower(graph, layout), kind, layout, numbers, inputs, source, shape, stride)


def _made(lowered: Lowered) -> Runner:
    """Let the machine run a program, if it has the bits of the rule.

    Raises:
        Declined: it has not, with the reason.
    """
    program = proof.made(lowered.program)
    if not alone(partial(_agrees, program, lowered), lowered.kind.context):
        raise Declined("its program has not the bits of the rule")
    return Runner(program, _P in lowered.layout.columns, lowered.numbers, lowered.source)


def _agrees(program: Any, lowered: Lowered) -> bool:
    """Hold a program against its rule."""
    generator = torch.Generator("cpu").manual_seed(2)
    inputs, layout = lowered.inputs, lowered.layout
    for t in (0.0, 1.0, 9.0):
        x: dict[str, Any] = {}
        for name, given in inputs.items():
            x[name] = sample(given, lowered.shape, lowered.stride, generator)
            if given.vector:
                x[name] = 4 * x[name] - 2
        x[_T] = torch.full_like(x[_T], t)
        columns = tuple([x[name]] for name in layout.columns)
        numbers: machine.Numbers = [x[name].item() for name in layout.numbers]
        found = [[x[column]] for _, column in layout.outputs] + [[x[_T]]]
        if not machine.into_new(machine.Part(program, columns, ([x[_T]],)), numbers, found):
            return False
        x |= {name: x[name].item() for name, given in inputs.items() if given.dtype is None}
        wanted = lowered.source.rule(x)
        names = [name for name, _ in layout.outputs] + [_NEXT]
        if not all(
            proof.same_bits(y, wanted[name], lowered.is_signed)
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
