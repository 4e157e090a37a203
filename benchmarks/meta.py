"""An outer gradient through K inner steps: ours against the differentiable optimizers of others.

A perceptron 64-W-W-W-5 takes K steps; a loss after the last is differentiated by the parameters
before the first. Prints the time of a call, over rounds in which every contender runs for a while,
in shuffled order, and the peak of the memory that a call allocates.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

import functional_adamax as fa

BATCH, LR, BETAS, EPS, MOMENTUM = 25, 1e-3, (0.9, 0.999), 1e-8, 0.9
OURS, FUNC, REMAT = "fa.unroll", "torch.func.grad", "fa.unroll(checkpoint=True)"
BASE, HIGHER, FLOOR = "torchopt", "higher", "SGD, torch.autograd.grad"
BLOCK = 0.05  # seconds for which a contender runs in a round
TOLERANCE = 1e-9  # between outer gradients of the three, relative, in double precision
PEERS = ("torchopt", "higher")
INSTALLED: dict[str, Any] = {name: import_module(name) for name in PEERS if find_spec(name)}

INTRODUCTION = """\
The gradient of a loss after K steps of a perceptron 64-W-W-W-5 on batches of 25, by the parameters
before the first step: by `fa.unroll` under autograd, and by `torch.func.grad` of a loop of
`fa.step`. Ratios are to torchopt's MetaAdaMax, MetaAdam or MetaSGD in the same round, medians over
the rounds; memory is the peak of what a call allocates. SGD without momentum, which keeps no state,
is the floor: what remains of the work when the optimizer costs nearly nothing. `benchmarks/meta.py`
wrote this page.
"""

SETTINGS = [
    *product(("Adamax", "Adam", "SGD with momentum"), (64, 1024), (5,)),
    *product(("Adamax",), (64, 1024), (50,)),
]
Batch = tuple[Tensor, Tensor]
Run = Callable[[], Sequence[Tensor]]  # one call; returns the outer gradient
Figures = dict[str, tuple[list[float], float]]  # times, ms, and peak of memory, MB


class Task(NamedTuple):
    model: nn.Module
    batches: list[Batch]
    query: Batch


def make_task(width: int, steps: int, dtype: torch.dtype = torch.float32) -> Task:
    torch.manual_seed(0)
    pairs = pairwise([64, width, width, width, 5])
    layers = [x for pair in pairs for x in (nn.Linear(*pair, dtype=dtype), nn.ReLU())]
    xs = torch.randn(steps + 1, BATCH, 64).to(dtype).unbind()
    *batches, query = zip(xs, torch.randint(5, (steps + 1, BATCH)).unbind(), strict=True)
    return Task(nn.Sequential(*layers[:-1]), batches, query)


class Method(NamedTuple):
    """An optimizer here, in torchopt and in higher, by its name there."""

    ours: Callable[[], Any]
    torchopt: str
    torch: str
    options: dict[str, Any]


_ADAPTIVE = {"betas": BETAS, "eps": EPS}
METHODS = {
    "Adamax": Method(partial(fa.adamax, LR, **_ADAPTIVE), "MetaAdaMax", "Adamax", _ADAPTIVE),
    "Adam": Method(partial(fa.adam, LR, **_ADAPTIVE), "MetaAdam", "Adam", _ADAPTIVE),
    "SGD with momentum": Method(
        partial(fa.sgd, LR, MOMENTUM), "MetaSGD", "SGD", {"momentum": MOMENTUM}
    ),
}


def contenders(task: Task, method: Method) -> dict[str, Run]:
    model, batches, query = task
    leaves = list(model.parameters())

    def called(module: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        return cross_entropy(module(batch[0]), batch[1])

    def loss(params: Any, batch: Batch) -> Tensor:
        return called(partial(functional_call, model, params), batch)

    def ours(checkpoint: bool) -> Sequence[Tensor]:
        params = dict(model.named_parameters())
        end = fa.unroll(loss, method.ours(), params, batches, checkpoint=checkpoint).params
        return torch.autograd.grad(loss(end, query), leaves)

    def by_func() -> Sequence[Tensor]:
        tx = method.ours()

        def outer(params: dict[str, Tensor]) -> Tensor:
            state = tx.init(params)
            for batch in batches:
                params, state = fa.step(tx, torch.func.grad(loss)(params, batch), state, params)
            return loss(params, query)

        start = {name: p.detach() for name, p in model.named_parameters()}
        return list(torch.func.grad(outer)(start).values())

    def sgd() -> Sequence[Tensor]:
        params: dict[str, Tensor] = dict(model.named_parameters())
        for batch in batches:
            grads = torch.autograd.grad(loss(params, batch), [*params.values()], create_graph=True)
            pairs = zip(params.items(), grads, strict=True)
            params = {k: torch.sub(p, g, alpha=LR) for (k, p), g in pairs}
        return torch.autograd.grad(loss(params, query), leaves)

    def by_torchopt() -> Sequence[Tensor]:
        torchopt = INSTALLED["torchopt"]
        optimizer = getattr(torchopt, method.torchopt)(model, lr=LR, **method.options)
        initial = torchopt.extract_state_dict(model, by="reference")
        for batch in batches:
            optimizer.step(called(model, batch))
        found = torch.autograd.grad(called(model, query), leaves)
        torchopt.recover_state_dict(model, initial)
        return found

    def by_higher() -> Sequence[Tensor]:
        inner = getattr(torch.optim, method.torch)(leaves, lr=LR, **method.options)
        loop = INSTALLED["higher"].innerloop_ctx(model, inner, copy_initial_weights=False)
        with loop as (functional, optimizer):
            for batch in batches:
                optimizer.step(called(functional, batch))
            return torch.autograd.grad(called(functional, query), leaves)

    runs: dict[str, Run] = {OURS: partial(ours, False), FUNC: by_func, REMAT: partial(ours, True)}
    if "torchopt" in INSTALLED:
        runs[BASE] = by_torchopt
    if "higher" in INSTALLED:
        runs[HIGHER] = by_higher
    return {**runs, FLOOR: sgd}


def check(method: Method, width: int, steps: int) -> str:
    """Compare the outer gradients of what is one algorithm, in double precision; say the result."""
    runs = contenders(make_task(width, steps, torch.float64), method)
    same = [name for name in (OURS, FUNC, REMAT, BASE) if name in runs]
    found = {name: torch.cat([g.flatten() for g in runs[name]()]) for name in same}
    odd = [name for name in found if not found[name].isfinite().all()]
    first = found[OURS]
    off = {name: float((x - first).norm() / first.norm()) for name, x in found.items()}
    worst = max(x for name, x in off.items() if name not in odd)
    if OURS in odd or FUNC in odd or REMAT in odd or worst > TOLERANCE:
        raise RuntimeError(f"outer gradients differ: {off}")
    agreeing = ", ".join(name for name in found if name not in odd)
    text = f"Outer gradients in float64, K={steps}: {agreeing} agree to {worst:.0e}"
    return text + "".join(f"; those of {name} are not finite" for name in odd) + "."


def peak_of(run: Run) -> int:
    """The peak of the memory that a call allocates, in bytes."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [x for x in record.profiler.kineto_results.events() if x.name() == "[memory]"]
    return max(accumulate(x.nbytes() for x in sorted(events, key=lambda x: x.start_ns())))


def measure(task: Task, method: Method, seconds: float, rounds: int) -> Figures:
    runs, found = contenders(task, method), {}
    for name, run in runs.items():
        run()  # warm up
        found[name] = ([], peak_of(run) / 1e6)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found[OURS][0]) < rounds:
        for name in random.sample(list(runs), len(runs)):
            gc.collect()
            runs[name]()  # as in a training loop, after another call
            calls, start = 0, time.perf_counter()
            while calls == 0 or time.perf_counter() - start < BLOCK:
                runs[name]()
                calls += 1
            found[name][0].append((time.perf_counter() - start) / calls * 1e3)
    return found


def table(figures: Figures) -> list[str]:
    """Rows of Markdown; the ratio of times is the median of the ratios within each round."""
    rows = [("", "time, ms", "quartiles", "to torchopt", "memory, MB", "to torchopt")]
    rows.append(("---", *["---:"] * 5))
    for name, (times, peak) in figures.items():
        low, middle, high = (f"{x:.1f}" for x in statistics.quantiles(times, n=4))
        cells = [middle, f"{low} to {high}", "-", f"{peak:.1f}", "-"]
        if BASE in figures:
            ratio = statistics.median(a / b for a, b in zip(times, figures[BASE][0], strict=True))
            cells[2::2] = f"{ratio:.2f}", f"{peak / figures[BASE][1]:.2f}"
        rows.append((name, *cells))
    return [f"| {row[0]:26} | " + " | ".join(f"{x:>16}" for x in row[1:]) + " |" for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each setting")
    parser.add_argument("--rounds", type=int, default=7, help="at least, and at least 2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", type=Path, metavar="FILE", help="the tables, as Markdown")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    gc.freeze()  # what is imported need not be looked through before every call
    words = [f"{x} {version(x)}" if x in INSTALLED else f"{x} not installed" for x in PEERS]
    words.append(f"CPU, threads: {args.threads}, cores: {os.cpu_count()}, float32")
    text = ["# Inner loops, measured", "", *INTRODUCTION.splitlines(), ""]
    text.append(", ".join([f"torch {torch.__version__}", *words]) + ".")
    print(text[-1])
    for name, width, steps in SETTINGS:
        checked = check(METHODS[name], width, min(steps, 5))
        figures = measure(make_task(width, steps), METHODS[name], args.seconds, args.rounds)
        title = f"## {name}, width {width}, {steps} steps: {len(figures[OURS][0])} rounds"
        text += ["", title, "", checked, "", *table(figures)]
        print(*text[-len(figures) - 6 :], sep="\n", flush=True)
    if args.write:
        args.write.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
