"""What ``torch.compile`` makes of an optimizer step over many small tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import timing
import torch
from timing import Run, Trained
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache
from trees import BETAS, EPS, LR, TORCH

import functional_adamax as fa
from functional_adamax.compat import Adamax

COUNT, SHAPE = 200, (64, 33)

Wrap = Callable[[Run], Run]


class Compiled(NamedTuple):
    """What it cost to compile a step, and what the step costs then."""

    first: float  # seconds to the end of the first step
    graphs: int
    eager: float  # seconds a step, not compiled
    later: float  # seconds a step, compiled


def classic(optimizer: Callable[..., Any], wrap: Wrap) -> Trained:
    params, grads = tensors()
    leaves = [torch.nn.Parameter(x) for x in params]
    for p, g in zip(leaves, grads, strict=True):
        p.grad = g
    step = wrap(optimizer(leaves, lr=torch.tensor(LR), betas=BETAS, eps=EPS).step)
    return Trained(step, lambda: [p.detach() for p in leaves])


def functional(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Trained:
    params, grads = tensors()
    tx = fa.adamax(torch.tensor(LR), BETAS, EPS)
    step = wrap(lambda grads, params, state: fa.step(tx, grads, state, params))
    now = [params, tx.init(params)]

    def run() -> None:
        now[:] = step(grads, *now)

    return Trained(run, lambda: now[0])


CONTENDERS: dict[str, Callable[[Any], Trained]] = {
    TORCH: partial(classic, torch.optim.Adamax),
    "compat.Adamax": partial(classic, Adamax),
    "fa.step, pure": functional,
}


def tensors() -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and gradients."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, COUNT, *SHAPE, generator=generator)
    params, grads = ([x.clone() for x in half] for half in values)
    return params, grads


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Nothing is compiled yet, in memory or on disk."""
    torch._dynamo.reset()
    counters.clear()
    with fresh_cache():
        yield


def compile_all(rounds: int, tolerance: float) -> dict[str, Compiled]:
    """Compile the step of each contender once, after a comparison of what it does then."""
    found, changes = {}, {}
    for name, build in CONTENDERS.items():
        with nothing_compiled():
            plain, compiled = build(lambda run: run), build(torch.compile)
            start = [x.clone() for x in compiled.params()]
            before = time.perf_counter()
            compiled.step()
            first = time.perf_counter() - before
            compiled.step()
            changes[name] = [p - x for p, x in zip(compiled.params(), start, strict=True)]
            plain.step()
            graphs = counters["stats"]["unique_graphs"]
            times = timing.measure({"eager": plain.step, "later": compiled.step}, rounds)
            found[name] = Compiled(first, graphs, *(sorted(x)[rounds // 2] for x in times.values()))
    timing.check(changes, tolerance)
    return found
