"""How the benchmarks of the step measure: times in shuffled rounds, peaks of memory, and a floor.

What else runs on a machine slows every contender of a round alike, so ratios are taken within a
round, and the median over the rounds is reported.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

BLOCK = 0.05  # seconds for which a contender runs in a round, or one call where that takes longer
STREAM = 2**26  # elements of each tensor that the floor is measured on
STREAM_BYTES = 12  # of memory traffic for an element: add_ reads two numbers and writes one
STEP_BYTES = 28  # a step of Adamax reads four and writes three
READ_BYTES, MOMENT_BYTES = 4, 8  # one number; a moment is read and written

Run = Callable[[], object]


class Trained(NamedTuple):
    """Something that takes steps, and its parameters as they are now."""

    step: Run
    params: Callable[[], list[Tensor]]


Times = dict[str, list[float]]  # seconds a call, one entry a round, by contender


def measure(runs: Mapping[str, Run], rounds: int) -> Times:
    """Time ``runs``, which are warm, in ``rounds`` of shuffled order."""
    times: Times = {name: [] for name in runs}
    gc.collect()
    gc.freeze()  # what lives on need not be looked through before every stretch
    gc.disable()
    try:
        for _ in range(rounds):
            for name in random.sample(list(runs), len(runs)):
                gc.collect()
                times[name].append(_stretch(runs[name]))
    finally:
        gc.enable()
        gc.unfreeze()
    return times


def _stretch(run: Run) -> float:
    """Seconds a call, over calls that fill a block, after one that brings its data near."""
    run()
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < BLOCK:
        run()
        calls += 1
    return (time.perf_counter() - start) / calls


def ratio(times: Times, name: str, reference: str) -> float:
    """The median over the rounds of the ratio of two contenders within a round."""
    return median(a / b for a, b in zip(times[name], times[reference], strict=True))


def better(times: Times, prefix: str) -> str:
    """The contender with the least median time among those whose name starts with ``prefix``."""
    names = [name for name in times if name.startswith(prefix)]
    return min(names, key=lambda name: median(times[name]))


def stream() -> Run:
    """``a.add_(b)`` over tensors larger than caches, whose bandwidth is that of the floor."""
    a, b = torch.zeros(STREAM), torch.ones(STREAM)
    return lambda: a.add_(b)


def steps_in_stream(elements: int, moved: int) -> float:
    """The bytes of a step that moves so many for an element, in those of one ``stream``."""
    return moved * elements / (STREAM_BYTES * STREAM)


def peak_of(run: Run) -> int:
    """The peak of the bytes that a call allocates through torch beyond what there was before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [x for x in record.profiler.kineto_results.events() if x.name() == "[memory]"]
    return max(0, *accumulate(x.nbytes() for x in sorted(events, key=lambda x: x.start_ns())), 0)


def check(changes: Mapping[str, list[Tensor]], tolerance: float) -> float:
    """The greatest relative distance, over tensors, of the changes of contenders from the first's.

    Raises:
        RuntimeError: it exceeds ``tolerance``, so that something else than meant would be timed.
    """
    (first, expected), *others = changes.items()
    worst = 0.0
    for name, found in others:
        for x, y in zip(found, expected, strict=True):
            distance = float((x - y).norm() / y.norm())
            if not distance <= tolerance:
                raise RuntimeError(f"{name} and {first} differ by {distance:.1e}, relative")
            worst = max(worst, distance)
    return worst
