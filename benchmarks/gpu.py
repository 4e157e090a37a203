"""One step on a CUDA device: ours against torch.optim, by the clock of the device.

First holds the executor to the rule. Then prints the median time of a step in microseconds, ratios
to the forms of torch.optim, and the share of the bandwidth that an in-place addition reaches over
the largest tensor, if a step moves 28 bytes an element.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

import functional_adamax as fa
from functional_adamax._core import numerics
from functional_adamax._execution import adamax_rule
from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.triton import executor as triton
from functional_adamax.compat import Adamax

Shape = tuple[int, ...]
Steps = dict[str, Callable[[], Any]]

DEVICE = "cuda"
CHECKED: list[Shape] = [(), (3,), (257, 3), (1024,), (5, 1023), (2048, 2048)]
OURS = "Triton executor alone"
PEERS = {
    "torch.optim.Adamax(foreach=True)": "foreach",
    "torch.optim.Adamax(foreach=True, capturable=True)": "capturable",
    "torch.optim.Adam(fused=True)": "fused Adam",
}
STEP_BYTES, ADD_BYTES = 28, 12  # of memory traffic for a float32 element


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


def leaves(shapes: list[Shape], decay: float = 0.0) -> list[AdamaxLeaf]:
    columns = randoms(shapes), randoms(shapes), randoms(shapes), randoms(shapes)
    rates = 1e-3, 0.9, 0.999, 1e-8, decay
    return [
        AdamaxLeaf(p, g, m, u.abs(), torch.tensor(3.0, device=DEVICE), *rates)
        for p, g, m, u in zip(*columns, strict=True)
    ]


def check(shapes: list[Shape]) -> str:
    """Hold the executor to the rule; return how far they are apart."""
    worst, equal, count = 0.0, 0, 0
    eps = torch.finfo(torch.float32).eps
    for decay, decoupled in ((0.0, False), (0.1, False), (0.1, True)):
        given = [x._replace(decoupled=decoupled) for x in leaves(shapes, decay)]
        wanted = []
        for x in given:
            update, t, m, u = adamax_rule.step(x)
            wanted.append((numerics.add(x.p, update), m, u, t, x.p.abs() + update.abs()))
        if not all(triton.takes(x) for x in given):
            raise SystemExit("the Triton executor does not take plain tensors: is Triton there?")
        if not triton.write(given):
            raise SystemExit("the Triton executor refused plain tensors")
        for x, (p, m, u, t, size) in zip(given, wanted, strict=True):
            rows = ((x.p, p, size), (x.m, m, x.g.abs() + m.abs()), (x.u, u, u), (x.t, t, t))
            for got, want, scale in rows:
                error = ((got - want).abs() / (eps * scale)).max().item()
                if not error <= 2:
                    raise SystemExit(f"the executor is {error} ulp from the rule")
                worst = max(worst, error)
                equal += int((got == want).sum())
                count += got.numel()
    return f"{equal / count:.4%} of the numbers equal the rule's, the rest to {worst:.2f} ulp"


def contenders(shapes: list[Shape]) -> Steps:
    def params() -> list[Parameter]:
        made = [Parameter(x) for x in randoms(shapes)]
        for p in made:
            p.grad = torch.randn_like(p)
        return made

    tx = fa.adamax()
    tree, grads = randoms(shapes), randoms(shapes)
    state = tx.init(tree)
    work = leaves(shapes)
    return {
        "torch.optim.Adamax(foreach=True)": torch.optim.Adamax(params(), foreach=True).step,
        "torch.optim.Adamax(foreach=True, capturable=True)": torch.optim.Adamax(
            params(), foreach=True, capturable=True
        ).step,
        "torch.optim.Adam(fused=True)": torch.optim.Adam(params(), fused=True).step,
        "compat.Adamax": Adamax(params()).step,
        "compat.Adamax(capturable=True)": Adamax(params(), capturable=True).step,
        "fa.step, donated": lambda: fa.step(tx, grads, state, tree, donate=True),
        OURS: lambda: triton.write(work),
    }


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
    heads = ["", "us", *(f"to {short}" for short in PEERS.values()), "share of bandwidth"]
    lines = [f"\n## {name}\n", f"| {' | '.join(heads)} |", f"|---{'|---:' * (len(heads) - 1)}|"]
    steps = contenders(shapes)
    graphs = ("torch.optim.Adamax(foreach=True, capturable=True)", OURS)
    steps |= {f"{label}, as a graph": captured(steps[label]) for label in graphs}
    times = {label: time_us(step, seconds) for label, step in steps.items()}
    for label, time in times.items():
        ratios = [f"{time / times[peer]:.2f}" for peer in PEERS]
        share = f"{STEP_BYTES * elements / time / rate:.0%}"
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
        lines += table(name, shapes, rate, arguments.seconds)
        print("\n".join(lines[-len(PEERS) - 9 :]), flush=True)
        torch.cuda.empty_cache()
    if arguments.write:
        arguments.write.write_text("# A step on a GPU\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
