"""Rematerialization: keep what passes between segments of a loop, and run each again backwards.

A loop of K steps in segments of about sqrt(K) keeps the tensors of one segment and the states
between segments, not those of K steps. Each segment is one autograd function; its backward is the
``vjp`` of the same steps, so it can be differentiated and batched in its turn.

Tensors that several segments use (hyperparameters, what the loss closes over, repeated batches)
are handed from each segment to the next. So their gradients add up step by step in the order of
the plain loop, and have its bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from .._core import capture, checks, context, pytree
from .._core.pytree import Tree

Step = Callable[[Tree, Tree, Any], tuple[Tree, Tree, Tensor]]
"""One step of a loop, from (carry, buffers, batch) to (carry, buffers, value).

Only the carry is differentiated; the buffers are data that passes along.
"""


def loop(
    step: Step, carry: Tree, buffers: Tree, batches: Sequence[Any], length: int
) -> tuple[Tree, Tree, Tensor]:
    """Run ``step`` over ``batches`` in segments of ``length``; return the last and all values."""
    carry = pytree.map_tensors(lambda x: x.view_as(x), carry)
    given = [pytree.tensors(batch) for batch in batches]
    closed = _closed_over(step, carry, buffers, batches[0])
    uses = Counter(id(x) for xs in given for x in xs)
    repeated = {id(x): x for xs in given for x in xs if uses[id(x)] > 1 and checks.trainable(x)}
    shared = [*closed, *repeated.values()]
    values = []
    for start in range(0, len(batches), length):
        own = [x for xs in given[start : start + length] for x in xs if id(x) not in repeated]
        pool = {key: i for i, key in enumerate([*map(id, closed), *repeated, *map(id, own)])}
        layout, tensors = pytree.split(carry)
        data_layout, data = pytree.split(buffers)
        segment = Segment(
            step,
            layout,
            data_layout,
            tuple(closed),
            tuple(pytree.split(batch)[0] for batch in batches[start : start + length]),
            tuple(tuple(pool[id(x)] for x in xs) for xs in given[start : start + length]),
            len(tensors),
            len(shared),
            len(data),
        )
        inputs = [*tensors, *shared, *own, *data]
        outputs = capture.apply(_Rerun, segment, Ambience(inputs), *inputs)
        carry = layout.build(outputs[: len(tensors)])
        shared = outputs[len(tensors) : segment.n_differentiated - 1]
        values.append(outputs[segment.n_differentiated - 1])
        ends = outputs[segment.n_differentiated :]
        buffers = data_layout.build(x.detach() for x in ends)  # which vmap marks as differentiable
    return carry, buffers, torch.cat(values)


def _closed_over(step: Step, carry: Tree, buffers: Tree, batch: Any) -> list[Tensor]:
    """Take a first step only to see what it uses."""
    layout, tensors = pytree.split((carry, batch))
    where = [i for i, x in enumerate(tensors) if checks.trainable(x)]

    def function(*primals: Tensor) -> Tensor:
        carry, batch = layout.build(pytree.placed(tensors, where, primals))
        return step(carry, buffers, batch)[2]

    with Ambience(tensors).restored(), torch.no_grad():
        refuse = None if context.transforming() else capture.refuse_applied
        return capture.closed_over(function, [tensors[i] for i in where], refuse)


@dataclass(frozen=True, eq=False)
class Segment:
    """A few steps as a function from tensors to tensors.

    In: the carry, the shared tensors, the tensors of these batches alone, the buffers. Out: the
    carry, the shared tensors as they came, the values stacked, the buffers.
    """

    step: Step
    carry: pytree.Layout
    buffers: pytree.Layout
    closed: tuple[Tensor, ...]  # the first of the shared tensors stand for these
    batches: tuple[pytree.Layout, ...]
    picks: tuple[tuple[int, ...], ...]  # which of shared and own tensors a batch is made of
    n_carry: int
    n_shared: int
    n_buffers: int

    @property
    def n_differentiated(self) -> int:
        """The number of outputs before the buffers."""
        return self.n_carry + self.n_shared + 1

    def __call__(
        self, tensors: Sequence[Tensor], at: int, unknown: capture.Unknown
    ) -> list[Tensor]:
        carry = self.carry.build(tensors[: self.n_carry])
        end = len(tensors) - self.n_buffers
        pool, buffers = tensors[self.n_carry : end], self.buffers.build(tensors[end:])
        shared = pool[: self.n_shared]
        values = []
        new = shared[: len(self.closed)]
        with capture.Closure(at, tensors, self.closed, new, unknown):
            for layout, picks in zip(self.batches, self.picks, strict=True):
                batch = layout.build(pool[i] for i in picks)
                carry, buffers, value = self.step(carry, buffers, batch)
                values.append(value)
        given = {id(x) for x in tensors}  # an autograd function must not return its inputs
        outputs = [*pytree.tensors(carry), *shared, torch.stack(values), *pytree.tensors(buffers)]
        return [x.view_as(x) if id(x) in given else x for x in outputs]


class Ambience:
    """What a computation depends on besides its arguments: random state and autocast."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        devices = {x.device for x in tensors if x.device.type == "cuda"}
        self.cpu = torch.get_rng_state()
        self.cuda = {device: torch.cuda.get_rng_state(device) for device in devices}
        self.autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in {"cpu", *(device.type for device in devices)}
        ]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Compute as when this was made, random numbers included; then all is as before."""
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=list(self.cuda)))
            for autocast in self.autocast:
                stack.enter_context(torch.autocast(*autocast))
            torch.set_rng_state(self.cpu)
            for device, state in self.cuda.items():
                torch.cuda.set_rng_state(state, device)
            yield


class _Rerun(torch.autograd.Function):
    """A segment that saves its inputs only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(segment: Segment, ambience: Ambience, *tensors: Tensor) -> Any:
        del ambience
        batching = context.transforming()  # then what is inside cannot be told from outside here
        unknown = capture.ignore if batching else capture.refuse
        outputs = segment(tensors, context.level(), unknown)
        return tuple(capture.batched_alike(tensors, outputs) if context.batching() else outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.segment, ctx.ambience, *tensors = inputs
        ctx.save_for_backward(*tensors)
        last = ctx.segment.n_differentiated
        data = [x for i, x in enumerate(output) if i >= last or not checks.trainable(x)]
        ctx.mark_non_differentiable(*data)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        tensors = list(map(context.living, ctx.saved_tensors))
        last = ctx.segment.n_differentiated
        primal = tensors[: len(tensors) - ctx.segment.n_buffers]
        needed = ctx.needs_input_grad[2:]
        wanted = [i for i, x in enumerate(primal) if checks.trainable(x) and needed[i]]
        at = context.level()

        def function(*primals: Tensor) -> tuple[Tensor, ...]:
            filled = pytree.placed(tensors, wanted, primals)
            outputs = ctx.segment(filled, at, capture.refuse)
            return tuple(x for x in outputs[:last] if checks.trainable(x))

        given = [c for c in cotangents[:last] if checks.trainable(c)]
        points = [tensors[i] for i in wanted]
        with ctx.ambience.restored():
            if context.transforming():
                grads = vjp(function, *points)[1](tuple(given))
            else:
                grads = _vjp(function, points, given)
        return None, None, *pytree.placed([None] * len(tensors), wanted, grads)


def _vjp(
    function: Callable[..., Sequence[Tensor]],
    points: Sequence[Tensor],
    cotangents: Sequence[Tensor],
) -> Sequence[Tensor]:
    """``torch.func.vjp`` by plain autograd: by the executors, and to the bits, of a plain loop."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        points = [x.view_as(x) if again else x.detach().requires_grad_() for x in points]
        pairs = zip(function(*points), cotangents, strict=True)
        outputs, cotangents = zip(*(x for x in pairs if x[0].requires_grad), strict=True)
        return torch.autograd.grad(
            outputs, points, cotangents, create_graph=again, materialize_grads=True
        )
