"""Executor: steps that autograd records, as one node for all leaves.

Recorded operation by operation, a rule makes a node for each, which keeps what it computed. Here
one node keeps what the step was given, and a program made of the rule computes the cotangents, with
the bits of autograd. Inside of ``torch.func.grad`` the step itself is taken outside, by whoever
takes it there. What is differentiated again, or batched, goes through the rule. The file is longer
than others: the step, its derivative, and what both are given have to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .._core import capture, context, numerics
from . import by_rule
from .program import machine, pulled
from .program.derivative import cotangent
from .program.programs import named, names_of, rate_of, results_of, sources_of
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
    followed = [i for i in where if _is_followed(work, i)]
    lone = [i for i in followed if not _is_followed(work, i, but_p=True)]
    rows = _added(work, lone, add, compute) if lone else {}
    sources = sources_of(work, [i for i in followed if i not in rows], add)
    if sources:
        leaves, tensors = _taken(work, list(sources), add, compute, list(sources.values()))
        for k, source in enumerate(leaves.sources):
            if source.reads("p", ()):  # which may be written before the derivative is taken
                tensors[k] = tensors[k].clone()
        columns = _split(capture.apply(_Step, leaves, *tensors), len(sources))
        for i, (first, t, *moments) in zip(sources, zip(*columns, strict=True), strict=True):
            rows[i] = [first, work.t[i] + 1 if context.tracked(work.t[i]) else t, *moments]
    return rows


def _is_followed(work: Work, i: int, but_p: bool = False) -> bool:
    """Whether autograd records the step of a leaf; ``but_p``, what is added to its parameter."""
    assert work.hyper is not None
    hyper = [x[i] for x in work.hyper.values()]
    row = [work.g[i], work.t[i], *(x[i] for x in work.moments.values()), *hyper]
    if not but_p or decays(work.hyper["weight_decay"][i]):
        row.append(work.p[i])
    return any(isinstance(x, Tensor) and context.tracked(x) for x in row)


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
    hyper: dict[str, list[Any]]  # those that are no tensors
    places: dict[tuple[str, int], int]  # of the tensors, by their names in the record, and the leaf
    sources: Sequence[Source]
    add: bool
    compute: Compute

    def filled(self, tensors: Sequence[Any]) -> Work:
        """The work of these leaves."""
        n = len(next(iter(self.hyper.values())))
        hyper = {
            name: [self.value(named(name), i, tensors) for i in range(n)] for name in self.hyper
        }
        alike = all(x is column[0] for column in hyper.values() for x in column)
        rates: dict[str, Any] = {k: x[0] for k, x in hyper.items()} if alike else dict(hyper)
        p, g, t, *columns = map(list, _split(tensors[: (3 + len(self.moments)) * n], n))
        moments = dict(zip(self.moments, columns, strict=True))
        return Work(self.method, None, None, p, g, t, moments, rates, self.given, hyper)

    def read(self, tensors: Sequence[Any], needs: Sequence[bool]) -> list[Any]:
        """The tensors, but for parameters whose values no derivative that is needed depends on."""
        kept = list(tensors)
        for i, source in enumerate(self.sources):
            numbers = [name for name, x in source.inputs.items() if not x.vector]
            places = [(name, self.places.get((name, i))) for name in numbers]
            learned = tuple(name for name, at in places if at is not None and needs[at])
            if not source.reads("p", learned):
                kept[i] = None
        return kept

    def restored(self, tensors: list[Any]) -> list[Any]:
        """What ``read`` was given, with zeros for those parameters."""
        n = len(self.sources)
        for i, source in enumerate(self.sources):
            if tensors[i] is None and self.given:
                like = source.inputs.get("p", source.inputs["g"])
                tensors[i] = torch.zeros_like(tensors[n + i], dtype=like.dtype)
        return tensors

    def value(self, name: str, i: int, tensors: Sequence[Any]) -> Any:
        """What the record calls by a name, of a leaf."""
        place = self.places.get((name, i))
        return self.hyper[rate_of(name)][i] if place is None else tensors[place]


def _split(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Parts of one length."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def _taken(
    work: Work, where: list[int], add: bool, compute: Compute, sources: Sequence[Source] = ()
) -> tuple[_Leaves, list[Any]]:
    """The leaves at some positions, and their tensors."""
    assert work.hyper is not None
    columns = [work.p, work.g, work.t, *work.moments.values()]
    names, moments = names_of(tuple(work.moments)), tuple(work.moments)
    tensors = [column[i] for column in columns for i in where]
    keys = ((name, i) for name in names for i in range(len(where)))
    places = {key: place for place, key in enumerate(keys)}
    seen: dict[int, int] = {}
    hyper: dict[str, list[Any]] = {}
    for name, column in work.hyper.items():
        hyper[name] = [None if isinstance(column[i], Tensor) else column[i] for i in where]
        for k, i in enumerate(where):
            if isinstance(x := column[i], Tensor):
                if id(x) not in seen:
                    seen[id(x)] = len(tensors)
                    tensors.append(x)
                places[named(name), k] = seen[id(x)]
    how = work.method, moments, work.given, hyper, places
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
        tensors = leaves.restored(_living(ctx.saved_tensors))
        given = tuple(i for i, x in enumerate(cotangents) if x is not None)
        wanted = tuple(i for i, x in enumerate(ctx.needs_input_grad[1:]) if x)
        some = [cotangents[i] for i in given]
        way = _Way(leaves, given, wanted)
        if context.forward_mode() or context.batched_by_autograd(some):
            found = way.by_rule(tensors, some)
        else:
            found = capture.apply(_Pull, way, *tensors, *some)
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

    def by_rule(self, tensors: Sequence[Any], cotangents: Sequence[Tensor]) -> Sequence[Tensor]:
        """The cotangents, in operations of torch."""
        leaves = self.leaves

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
    ) -> list[Tensor] | None:
        """The same by programs; None where there is one that the machine does not run."""
        if context.traced():
            return None
        leaves, n = self.leaves, len(self.leaves.sources)
        results = results_of(leaves.moments)
        of = {divmod(i, n): x for i, x in zip(self.given, cotangents, strict=True)}
        by: dict[int, Tensor] = {}
        for (source, given, wanted), where in self._alike().items():
            found = pulled.found_for(source, given, wanted)
            if isinstance(found, str):
                return None
            values = {
                name: [leaves.value(name, i, tensors) for i in where] for name in source.inputs
            }
            for name in given:
                values[cotangent(name)] = [of[results.index(name), i] for i in where]
            made = found.run(values)
            if made is None:
                return None
            for name, column in made.items():
                for i, x in reversed(list(zip(where, column, strict=True))):
                    place = leaves.places[name, i]
                    by[place] = by[place] + x if place in by else x  # in the order of autograd
        return [by[i] if i in by else torch.zeros_like(tensors[i]) for i in self.wanted]

    def _alike(self) -> dict[tuple[Source, tuple[str, ...], tuple[str, ...]], list[int]]:
        """Which leaves have one program: its record, the given results and the wanted inputs."""
        leaves, n = self.leaves, len(self.leaves.sources)
        given, wanted = {divmod(i, n) for i in self.given}, frozenset(self.wanted)
        results = list(enumerate(results_of(leaves.moments)))
        found: dict[Any, list[int]] = {}
        for i, source in enumerate(leaves.sources):
            key = (
                source,
                tuple(name for k, name in results if (k, i) in given),
                tuple(name for name in source.inputs if leaves.places.get((name, i)) in wanted),
            )
            found.setdefault(key, []).append(i)
        return found


class _Pull(torch.autograd.Function):
    """The derivative of a step in reverse: of tensors and cotangents, other cotangents."""

    generate_vmap_rule = True

    @staticmethod
    def forward(way: _Way, *given: Any) -> tuple[Tensor, ...]:
        tensors, cotangents = way.apart(given)
        found = way.by_programs(tensors, cotangents)
        if found is None:  # where a cotangent may be what was given, which torch does not allow
            found = [x.view_as(x) for x in way.by_rule(tensors, cotangents)]
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
