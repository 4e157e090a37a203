"""Executor: steps that autograd records, as one node for all leaves.

Recorded operation by operation, a rule makes a node for each, which keeps what it computed. Here
one node keeps what the step was given, and a program made of the rule computes the cotangents, with
the bits of autograd. Inside of ``torch.func.grad`` the step itself is taken outside, by whoever
takes it there. What is differentiated again, or batched, goes through the rule. The file is longer
than others: the step, its derivative, and what both are given have to agree.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any

import torch
from torch import Tensor

from .._core import capture, context, numerics
from . import by_rule
from .program import machine, pulled
from .program.derivative import cotangent
from .program.programs import named, names_of, results_of, sources_of
from .program.pulled import Source
from .rule import decays
from .work import Columns, MethodLike, Row, Work

Compute = Callable[[Work, bool], Columns]
"""What steps a work, purely."""


def part(work: Work, where: list[int], add: bool, compute: Compute) -> dict[int, Row]:
    """Step those of the leaves that autograd records, and whose derivative is a program.

    ``compute`` takes the step itself.
    """
    if not machine.is_there():
        return {}
    followed, lone = _followed(work, where)
    rows = _added(work, lone, add, compute) if lone else {}
    sources = sources_of(work, [i for i in followed if i not in rows], add)
    if sources:
        leaves, tensors = _taken(work, list(sources), add, compute, list(sources.values()))
        read = {x for x in set(leaves.sources) if x.reads("p", ())}
        for k, source in enumerate(leaves.sources):
            if source in read:  # and the parameter may be written before the derivative is taken
                tensors[k] = tensors[k].clone()
        columns = _split(capture.apply(_Step, leaves, *tensors), len(sources))
        for i, (first, t, *moments) in zip(sources, zip(*columns, strict=True), strict=True):
            rows[i] = [first, work.t[i] + 1 if context.tracked(work.t[i]) else t, *moments]
    return rows


def _followed(work: Work, where: list[int]) -> tuple[list[int], list[int]]:
    """The leaves whose step autograd records; and those where it adds to the parameter alone."""
    assert work.hyper is not None
    columns = [work.g, work.t, *work.moments.values(), *work.own()]
    inside = [i for i in where if any(_is_followed(x[i]) for x in columns)]
    others = [i for i in where if i not in inside and _is_followed(work.p[i])]
    decay = work.hyper["weight_decay"]
    return sorted(inside + others), [i for i in others if not decays(decay[i])]


def _is_followed(x: Any) -> bool:
    return isinstance(x, Tensor) and context.tracked(x)


def _added(work: Work, where: list[int], add: bool, compute: Compute) -> dict[int, Row]:
    """Step leaves of which autograd follows the parameters alone."""
    leaves, tensors = _taken(work, where, False, compute)
    with torch.no_grad():
        columns = compute(leaves.filled(tensors), False)
    rows: dict[int, Row] = {}
    for i, first, *rest in zip(where, *columns, strict=True):
        rows[i] = [numerics.add(work.p[i], first) if add else first, *rest]
    return rows


@dataclass(frozen=True, eq=False)
class _Leaves:
    """Leaves but for their tensors, which come in columns: p, g, t, the moments.

    After them come the hyperparameters that are tensors, each once.
    """

    method: MethodLike
    moments: tuple[str, ...]
    given: bool  # whether there are parameters
    size: int
    hyper: dict[str, list[Any]]  # None where it is a tensor
    places: dict[str, list[int | None]]  # of the tensors, by their names in the record
    sources: Sequence[Source]
    add: bool
    compute: Compute

    def values(self, tensors: Sequence[Any]) -> dict[str, list[Any]]:
        """The columns, by their names in the record."""
        found = {named(name): column for name, column in self.hyper.items()}
        for name, places in self.places.items():
            numbers = found.get(name, places)
            pairs = zip(places, numbers, strict=True)
            found[name] = [x if at is None else tensors[at] for at, x in pairs]
        return found

    def filled(self, tensors: Sequence[Any]) -> Work:
        """The work of these leaves."""
        values = self.values(tensors)
        hyper = {name: values[named(name)] for name in self.hyper}
        alike = all(x is column[0] for column in hyper.values() for x in column)
        rates: dict[str, Any] = {k: x[0] for k, x in hyper.items()} if alike else dict(hyper)
        p, g, t, *columns = (values[name] for name in names_of(self.moments))
        moments = dict(zip(self.moments, columns, strict=True))
        return Work(self.method, None, None, p, g, t, moments, rates, self.given, hyper)

    def read(self, tensors: Sequence[Any], needs: Sequence[bool]) -> list[Any]:
        """The tensors, but for parameters whose values no derivative that is needed depends on."""
        kept = list(tensors)
        names = ["t", *(x for x in map(named, self.hyper) if x in self.places)]
        columns = [[at is not None and needs[at] for at in self.places[x]] for x in names]
        known: dict[Any, bool] = {}
        for i, key in enumerate(zip(self.sources, *columns, strict=True)):
            if key not in known:
                source, *row = key
                learned = tuple(x for x in compress(names, row) if x in source.inputs)
                known[key] = source.reads("p", learned)
            if not known[key]:
                kept[i] = None
        return kept

    def restored(self, tensors: Sequence[Any]) -> list[Any]:
        """What ``read`` was given, with zeros for those parameters."""
        found = list(tensors)
        for i, source in enumerate(self.sources):
            if found[i] is None and self.given:
                like = source.inputs.get("p", source.inputs["g"])
                found[i] = torch.zeros_like(found[self.size + i], dtype=like.dtype)
        return found


def _split(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Parts of one length."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def _taken(
    work: Work, where: list[int], add: bool, compute: Compute, sources: Sequence[Source] = ()
) -> tuple[_Leaves, list[Any]]:
    """The leaves at some positions, and their tensors."""
    assert work.hyper is not None
    columns = [work.p, work.g, work.t, *work.moments.values()]
    moments, size = tuple(work.moments), len(where)
    tensors = [column[i] for column in columns for i in where]
    places: dict[str, list[int | None]] = {
        name: [*range(k * size, (k + 1) * size)] for k, name in enumerate(names_of(moments))
    }
    seen: dict[int, int] = {}
    hyper: dict[str, list[Any]] = {}
    for name, column in work.hyper.items():
        hyper[name] = [column[i] for i in where]
        if not any(isinstance(x, Tensor) for x in hyper[name]):
            continue
        places[named(name)] = [None] * size
        for k, x in enumerate(hyper[name]):
            if isinstance(x, Tensor):
                if id(x) not in seen:
                    seen[id(x)] = len(tensors)
                    tensors.append(x)
                hyper[name][k], places[named(name)][k] = None, seen[id(x)]
    how = work.method, moments, work.given, size, hyper, places
    return _Leaves(*how, sources, add, compute), tensors


def _living(saved: Sequence[Any]) -> list[Any]:
    """What was saved, also in a transform that has ended."""
    return [x if x is None else context.living(x) for x in saved]


class _Step(torch.autograd.Function):
    """A step: of leaves and their tensors, the columns of results."""

    generate_vmap_rule = True

    @staticmethod
    def forward(leaves: _Leaves, *tensors: Any) -> tuple[Any, ...]:
        results = list(chain(*leaves.compute(leaves.filled(tensors), leaves.add)))
        return tuple(capture.batched_alike(tensors, results) if context.batching() else results)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        leaves, *tensors = inputs
        ctx.leaves = leaves
        ctx.save_for_backward(*leaves.read(tensors, ctx.needs_input_grad[1:]))
        ctx.set_materialize_grads(False)
        n = len(leaves.sources)
        places = enumerate(ctx.needs_input_grad[1:])
        is_stateful = any(x for i, x in places if i >= n and not 2 * n <= i < 3 * n)
        ctx.mark_non_differentiable(*output[n : 2 * n if is_stateful else None])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        leaves: _Leaves = ctx.leaves
        tensors = _living(ctx.saved_tensors)
        given = tuple(i for i, x in enumerate(cotangents) if x is not None)
        wanted = tuple(i for i, x in enumerate(ctx.needs_input_grad[1:]) if x)
        some = [cotangents[i] for i in given]
        way = _Way(leaves, given, wanted)
        found: Sequence[Tensor | None]
        if context.forward_mode() or context.batched_by_autograd(some):
            found = way.by_rule(tensors, some)
        elif torch.is_grad_enabled() or context.traced():
            found = capture.apply(_Pull, way, *tensors, *some)
        else:
            found = way.pulled(tensors, some)
        by = dict(zip(wanted, found, strict=True))
        return (None, *[by.get(i) for i in range(len(tensors))])


@dataclass(frozen=True, eq=False)
class _Way:
    """Which cotangents are made of which: the positions of results, and of tensors."""

    leaves: _Leaves
    given: tuple[int, ...]
    wanted: tuple[int, ...]

    def apart(self, both: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Tensors, and the cotangents after them."""
        size = len(both) - len(self.given)
        return both[:size], both[size:]

    def pulled(self, tensors: Sequence[Any], cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        """The cotangents of what is wanted, each a tensor of its own; None for zeros."""
        found = self.by_programs(tensors, cotangents)
        if found is None:
            return [x.view_as(x) for x in self.by_rule(tensors, cotangents)]
        return found

    def by_rule(self, tensors: Sequence[Any], cotangents: Sequence[Tensor]) -> Sequence[Tensor]:
        """The cotangents, in operations of torch."""
        leaves = self.leaves
        tensors = leaves.restored(tensors)

        def results(*some: Tensor) -> tuple[Tensor, ...]:
            given = list(tensors)
            for i, x in zip(self.wanted, some, strict=True):
                given[i] = x
            work = leaves.filled(given)
            rows = by_rule.part(work, list(range(len(leaves.sources))), leaves.add)
            flat = list(chain(*work.columns(rows, leaves.add)))
            return tuple(flat[i] for i in self.given)

        pull = torch.func.vjp(results, *(tensors[i] for i in self.wanted))[1]
        found: Sequence[Tensor] = pull(tuple(cotangents))
        return found

    def by_programs(
        self, tensors: Sequence[Any], cotangents: Sequence[Tensor]
    ) -> list[Tensor | None] | None:
        """The same by programs; None where there is one that the machine does not run."""
        if context.traced():
            return None
        values, names = self.leaves.values(tensors), results_of(self.leaves.moments)
        of = dict(zip(self.given, cotangents, strict=True))
        by: dict[int, Tensor] = {}
        for (source, given, wanted), where in self._alike().items():
            found = pulled.found_for(source, given, wanted)
            if isinstance(found, str):
                return None
            some = {name: [values[name][i] for i in where] for name in source.inputs}
            for name in given:
                at = names.index(name) * self.leaves.size
                some[cotangent(name)] = [of[at + i] for i in where]
            made = found.run(some)
            if made is None:
                return None
            for name, column in made.items():
                places = [self.leaves.places[name][i] for i in where]
                for place, x in reversed(list(zip(places, column, strict=True))):
                    assert place is not None  # only tensors are wanted
                    by[place] = by[place] + x if place in by else x  # in the order of autograd
        return [by.get(i) for i in self.wanted]

    def _alike(self) -> dict[tuple[Source, tuple[str, ...], tuple[str, ...]], list[int]]:
        """Which leaves have one program: its record, the given results and the wanted inputs."""
        leaves, n = self.leaves, self.leaves.size
        given, wanted = set(self.given), set(self.wanted)
        results = results_of(leaves.moments)
        flags = [[k * n + i in given for i in range(n)] for k in range(len(results))]
        flags += [list(map(wanted.__contains__, places)) for places in leaves.places.values()]
        by: dict[Any, list[int]] = {}
        for i, key in enumerate(zip(leaves.sources, *flags, strict=True)):
            by.setdefault(key, []).append(i)
        found = {}
        for (source, *row), where in by.items():
            made = tuple(compress(results, row))
            inputs = set(compress(leaves.places, row[len(results) :]))
            found[source, made, tuple(x for x in source.inputs if x in inputs)] = where
        return found


class _Pull(torch.autograd.Function):
    """The derivative of a step in reverse: of tensors and cotangents, other cotangents."""

    generate_vmap_rule = True

    @staticmethod
    def forward(way: _Way, *given: Any) -> tuple[Tensor, ...]:
        tensors, cotangents = way.apart(given)
        pairs = list(zip(way.wanted, way.pulled(tensors, cotangents), strict=True))
        if any(x is None for _, x in pairs):
            tensors = way.leaves.restored(tensors)
        found = [torch.zeros_like(tensors[i]) if x is None else x for i, x in pairs]
        return tuple(capture.batched_alike(given, found) if context.batching() else found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        del output
        ctx.way, *given = inputs
        ctx.save_for_backward(*given)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        way, given = ctx.way, _living(ctx.saved_tensors)
        wanted = [i for i, x in enumerate(ctx.needs_input_grad[1:]) if x]

        def pulled_back(*some: Tensor) -> tuple[Tensor, ...]:
            new = list(given)
            for i, x in zip(wanted, some, strict=True):
                new[i] = x
            return tuple(way.by_rule(*way.apart(new)))

        pull = torch.func.vjp(pulled_back, *(given[i] for i in wanted))[1]
        by = dict(zip(wanted, pull(cotangents), strict=True))
        return (None, *[by.get(i) for i in range(len(given))])


for _function in (_Step.forward, _Pull.forward):  # torch asks for their signatures in every call
    _function.__dict__["__signature__"] = inspect.signature(_function)
