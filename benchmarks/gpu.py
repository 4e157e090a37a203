"""One step on a CUDA device: ours against torch.optim, by the clock of the device.

First holds every method to its rule on the CPU. Then prints the median time of a step in
microseconds, ratios to forms of torch.optim, and the share of the bandwidth that an in-place
addition reaches over the largest tensor, by the bytes that the step has to move.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

import functional_adamax as fa
from functional_adamax.compat import Adamax, Optimizer

Shape = tuple[int, ...]

DEVICE = "cuda"
CHECKED: list[Shape] = [(), (3,), (257, 3), (1024,), (5, 1023), (2048, 2048)]
STEPS = 3  # that are checked
METHODS: dict[str, Callable[[], fa.GradientTransformation]] = {
    "adamax": fa.adamax,
    "adamax, weight decay": partial(fa.adamax, weight_decay=0.1),
    "adamaxw": fa.adamaxw,
    "nadamax": fa.nadamax,
    "adam": fa.adam,
    "adam, amsgrad": partial(fa.adam, amsgrad=True),
    "adamw": fa.adamw,
    "sgd, momentum": partial(fa.sgd, 0.1, momentum=0.9),
    "lion": fa.lion,
    "rmsprop": fa.rmsprop,
}
FLOATS = dict.fromkeys(METHODS, 7) | {"adam, amsgrad": 9}
FLOATS |= dict.fromkeys(("sgd, momentum", "lion", "rmsprop"), 5)
"""How many float32 numbers a step reads and writes for each element."""
PEERS: dict[str, tuple[str, Callable[[list[Parameter]], torch.optim.Optimizer], int]] = {
    "torch.optim.Adamax(foreach=True)": (
        "foreach",
        partial(torch.optim.Adamax, foreach=True),
        7,
    ),
    "torch.optim.Adamax(foreach=True, capturable=True)": (
        "capturable",
        partial(torch.optim.Adamax, foreach=True, capturable=True),
        7,
    ),
    "torch.optim.AdamW(fused=True)": ("fused AdamW", partial(torch.optim.AdamW, fused=True), 7),
}
GRAPHS = (
    "torch.optim.Adamax(foreach=True, capturable=True)",
    "compat.Adamax(capturable=True)",
    "fa.step, donated, adamw",
)
ADD_BYTES = 12  # of memory traffic for a float32 element


def resnet18() -> list[Shape]:
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    before = 64
    for width in (64, 128, 256, 512):
        for k in (before, width, width, width):
            shapes += [(width, k, 3, 3), (width,), (width,)]
        if width != before:
            shapes += [(width, before, 1, 1), (width,), (width,)]
        before = width
    return [*shapes, (1000, 512), (1000,)]


def gpt2(layers: int, width: int = 768) -> list[Shape]:
    linear = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    layer: list[Shape] = [(width,)] * 4
    for out, into in linear:
        layer += [(out, into), (out,)]
    return [(50257, width), (1024, width), *layer * layers, (width,), (width,)]


TREES: dict[str, list[Shape]] = {
    "6 tensors, 7 k elements": [(64, 64), (64,), (32, 64), (32,), (10, 32), (10,)],
    "1000 tensors of 64": [(64,)] * 1000,
    "ResNet-18, 11 M": resnet18(),
    "GPT-2, 6 layers, 82 M": gpt2(6),
    "one tensor, 33 M": [(4096, 8192)],
}


def randoms(shapes: list[Shape]) -> list[Tensor]:
    return [torch.randn(shape, device=DEVICE) for shape in shapes]


def check(shapes: list[Shape]) -> str:
    """Hold every method to its rule on the CPU; say how many numbers have other bits."""
    other, count = 0, 0
    for name, make in METHODS.items():
        tx = make()
        params = [torch.randn(shape) for shape in shapes]
        state, there = tx.init(params), [x.to(DEVICE, copy=True) for x in params]
        their = tx.init(there)
        for _ in range(STEPS):
            grads = [torch.randn(shape) for shape in shapes]
            moved = [x.to(DEVICE) for x in grads]
            found = fa.explain(tx, there, moved, their, donate=True)
            odd = [x for x in found.leaves if x.executor != "Triton"]
            if odd:
                raise SystemExit(f"{name}: {odd[0]}")
            params, state = fa.step(tx, grads, state, params)
            there, their = fa.step(tx, moved, their, there, donate=True)
        columns = [(params, there), *zip(state, their, strict=True)]
        for x, y in ((x, y.cpu()) for column in columns for x, y in zip(*column, strict=True)):
            other += int((x != y).sum())
            count += x.numel()
    return f"of {count} numbers of {len(METHODS)} methods {other} differ from the CPU's"


def contenders(shapes: list[Shape]) -> dict[str, tuple[Callable[[], Any], int]]:
    """What makes a step, and how many numbers it has to move for an element."""

    def params() -> list[Parameter]:
        made = [Parameter(x) for x in randoms(shapes)]
        for p in made:
            p.grad = torch.randn_like(p)
        return made

    found: dict[str, tuple[Callable[[], Any], int]] = {
        name: (make(params()).step, floats) for name, (_, make, floats) in PEERS.items()
    }
    found["compat.Adamax"] = Adamax(params()).step, 7
    found["compat.Adamax(capturable=True)"] = Adamax(params(), capturable=True).step, 7
    found["compat.Optimizer, adamw"] = Optimizer(params(), METHODS["adamw"]).step, 7
    for name, make in METHODS.items():
        tree, grads, tx = randoms(shapes), randoms(shapes), make()
        step = partial(fa.step, tx, grads, tx.init(tree), tree, donate=True)
        found[f"fa.step, donated, {name}"] = step, FLOATS[name]
    return found


def captured(step: Callable[[], Any]) -> Callable[[], Any]:
    """The step as a CUDA graph, after the warm-up that a capture needs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def time_us(step: Callable[[], Any], seconds: float) -> float:
    """The median time of a call in microseconds, of runs of several without a gap."""
    for _ in range(5):
        step()
    elapsed, inner = 0.0, 10
    times: list[float] = []
    while elapsed < seconds or len(times) < 5:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(inner):
            step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / inner)
        elapsed += times[-1] * inner / 1e6
    return median(times)


def bandwidth(seconds: float) -> float:
    """Bytes a microsecond of an in-place addition, which moves 12 bytes an element."""
    a, b = torch.randn(2, 1 << 27, device=DEVICE).unbind()
    return ADD_BYTES * a.numel() / time_us(lambda: a.add_(b), seconds)


def table(name: str, shapes: list[Shape], rate: float, seconds: float) -> list[str]:
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    heads = ["", "us", *(f"to {short}" for short, *_ in PEERS.values()), "share of bandwidth"]
    lines = [f"\n## {name}\n", f"| {' | '.join(heads)} |", f"|---{'|---:' * (len(heads) - 1)}|"]
    steps = contenders(shapes)
    for label in GRAPHS:
        step, floats = steps[label]
        steps[f"{label}, as a graph"] = captured(step), floats
    times = {label: time_us(step, seconds) for label, (step, _) in steps.items()}
    for label, time in times.items():
        ratios = [f"{time / times[peer]:.2f}" for peer in PEERS]
        share = f"{4 * steps[label][1] * elements / time / rate:.0%}"
        lines.append(f"| {' | '.join([label, f'{time:.1f}', *ratios, share])} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement")
    parser.add_argument("--write", type=Path, help="the Markdown file to write")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        sys.exit(0)
    agreement = check(CHECKED)
    rate = bandwidth(arguments.seconds)
    lines = [
        f"torch {torch.__version__}, {torch.cuda.get_device_name()}, float32; {agreement}. An "
        f"in-place addition moves {rate / 1e3:.0f} GB/s. A ratio below 1 is faster than the peer."
    ]
    print(lines[0], flush=True)
    for name, shapes in TREES.items():
        start = len(lines)
        lines += table(name, shapes, rate, arguments.seconds)
        print("\n".join(lines[start:]), flush=True)
        torch.cuda.empty_cache()
    if arguments.write:
        arguments.write.write_text("# A step on a GPU\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
