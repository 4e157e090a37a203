"""A rule as the list of operations that it runs.

A rule is a function of named tensors: vectors, which have the shape of the leaf, and uniforms,
which are one number for a leaf. It runs on a small leaf under a dispatch mode, which sees every
operation that reaches torch's kernels, with the dtypes that torch computes it in. What is recorded
is true of every other leaf only if the rule depends on nothing else, so all else declines, with a
reason:

- an operation that hands a number to Python, for Python may branch on it;
- a tensor that is no input, random operations, writes to an input or through a view;
- operations that are no function of the elements one by one, or whose bits depend on their place.

What a rule asks about a leaf is noted, for the record holds for leaves of the same answers only.
And the rule runs twice, with other values and other sizes: another graph declines.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from .graph import Declined, Graph
from .recorder import Questions, Recorder

Rule: TypeAlias = Callable[[dict[str, Any]], dict[str, Tensor]]

_SIZES = (7, 11)  # of the leaf in the two runs
_LARGEST = 2**16  # elements of a leaf that is recorded in its own shape


class Input(NamedTuple):
    """What a rule is given under a name."""

    vector: bool  # a value for each element of the leaf, or one for the leaf
    dtype: torch.dtype | None  # None of a number that is no tensor


class Context(NamedTuple):
    """What a rule may ask of its surroundings."""

    grad: bool
    inference: bool
    autocast: bool
    autocast_dtype: torch.dtype
    default_dtype: torch.dtype
    deterministic: bool


def context() -> Context:
    """The surroundings of the caller."""
    return Context(
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )


def record(rule: Rule, inputs: Mapping[str, Input], like: Tensor) -> Graph:
    """Record ``rule`` for leaves such as ``like``.

    Raises:
        Declined: it cannot be, with the reason.
    """
    here = context()
    graphs = alone(partial(_first, rule, inputs), here)
    graph, reads = graphs[0], graphs[0].reads
    _compare(graphs, by_shape=True)
    if not reads:
        if len(graphs) == 1:
            return graph
        if like.dim() == 0:
            graph = _recorded(rule, inputs, [(), ()], here)
    elif reads == {"ndim"}:
        graph = _recorded(rule, inputs, [(size,) * like.dim() for size in (2, 3)], here)
    elif like.numel() > _LARGEST:
        raise Declined("it asks for the shape of the leaf, which is large")
    else:
        shape = tuple(like.shape)
        graph = _recorded(rule, inputs, [shape, shape], here, like.stride())
    if not graph.reads <= reads:
        raise Declined("what it asks about the leaf depends on the leaf")
    graph.dims = min(like.dim(), 1)
    return graph


def _first(rule: Rule, inputs: Mapping[str, Input]) -> list[Graph]:
    """The record of a leaf, and a second one unless a leaf without dimensions has the same."""
    graph = _run(rule, inputs, (_SIZES[0],), None, 0)
    if not graph.reads and _holds_without_dimensions(rule, inputs, graph):
        return [graph]
    return [graph, _run(rule, inputs, (_SIZES[1],), None, 1)]


def _holds_without_dimensions(rule: Rule, inputs: Mapping[str, Input], graph: Graph) -> bool:
    """Whether a leaf of one element has the same record, on other values.

    It is of another shape, and types are promoted otherwise without dimensions.
    """
    try:
        other = _run(rule, inputs, (), None, 1)
    except MemoryError:
        raise
    except Exception:  # which may be one of such leaves alone
        return False
    return not other.reads and bool(other.form() == graph.form())


def answers(reads: frozenset[str], x: Tensor) -> Any:
    """What a rule is told that asks so about ``x``."""
    if reads <= {"ndim"}:
        return x.dim() if reads else None
    return x.shape, x.stride()


Result = TypeVar("Result")


def alone(function: Callable[[], Result], around: Context) -> Result:
    """Call ``function`` in a thread that has the caller's context, and none of its modes.

    Raises:
        Declined: it raises, or no thread can be started any more.
    """
    found: list[Result] = []
    raised: list[Exception] = []

    def run() -> None:
        autocast = torch.autocast(
            "cpu", dtype=around.autocast_dtype, enabled=around.autocast, cache_enabled=False
        )
        try:
            grad = torch.set_grad_enabled(around.grad)  # which leaving inference mode switches on
            with torch.inference_mode(around.inference), grad, autocast:
                found.append(function())
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    try:
        thread.start()
    except RuntimeError as error:
        raise Declined(f"no thread can be started: {error}") from error
    thread.join()
    if found:
        return found[0]
    problem = raised[0]
    if isinstance(problem, (Declined, MemoryError)):
        raise problem
    raise Declined(f"it raises {type(problem).__name__} on other values: {problem}") from problem


def _recorded(
    rule: Rule,
    inputs: Mapping[str, Input],
    shapes: list[tuple[int, ...]],
    around: Context,
    strides: tuple[int, ...] | None = None,
) -> Graph:
    """Run the rule once for each of ``shapes``, and compare the graphs."""

    def run() -> list[Graph]:
        return [_run(rule, inputs, shape, strides, seed) for seed, shape in enumerate(shapes)]

    graphs = alone(run, around)
    _compare(graphs, by_shape=shapes[0] != shapes[-1])
    return graphs[0]


def _compare(graphs: list[Graph], by_shape: bool) -> None:
    """Check that records are the same, but for those of other shapes of a rule that asks for them.

    Raises:
        Declined: they are not.
    """
    first, last = graphs[0], graphs[-1]
    may_differ = by_shape and first.reads - {"ndim"}
    if first.reads != last.reads or not (may_differ or first.form() == last.form()):
        raise Declined("it does not do the same every time")


def _run(
    rule: Rule,
    inputs: Mapping[str, Input],
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    seed: int,
) -> Graph:
    generator = torch.Generator("cpu").manual_seed(seed)
    values: dict[str, Any] = {
        name: sample(given, shape, strides, generator) for name, given in inputs.items()
    }
    recorder = Recorder(shape)
    for name, given in inputs.items():
        if given.dtype is None:
            values[name] = recorder.number(name, values[name].item())
        else:
            recorder.take(name, values[name], given.vector)
    with recorder, Questions(recorder):
        results = rule(values)
    return recorder.graph(results)


def sample(
    given: Input,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    generator: torch.Generator,
) -> Tensor:
    """Random numbers in [0, 1) for an input, of the leaf's shape if it is a vector."""
    dtype = given.dtype or torch.float64
    if not given.vector:
        shape, strides = (), None
    if strides is None:
        return torch.rand(shape, dtype=dtype, device="cpu", generator=generator)
    places = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    memory = torch.rand(max(places, 1), dtype=dtype, device="cpu", generator=generator)
    return memory.as_strided(shape, strides)
