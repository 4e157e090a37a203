"""One optimizer step, ours against torch.optim.Adamax, over the same gradients in one process.

Prints the median time of a step in microseconds and its ratio to the better of torch's two forms.
Timing and statistics are torch.utils.benchmark's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.benchmark import Timer

import functional_adamax as fa
from functional_adamax.compat import Adamax

TREES: dict[str, list[tuple[int, ...]]] = {
    "6 tensors, 7 k elements": [(64, 64), (64,), (32, 64), (32,), (10, 32), (10,)],
    "1000 tensors of 64": [(64,)] * 1000,
    "one tensor, 4 M elements": [(2048, 2048)],
}


def contenders(shapes: list[tuple[int, ...]]) -> dict[str, Callable[[], Any]]:
    """A function that takes one step, for each way to take it."""

    def params() -> list[torch.nn.Parameter]:
        made = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        for p in made:
            p.grad = torch.randn_like(p)
        return made

    def functional(donate: bool) -> Callable[[], Any]:
        tx = fa.adamax()
        tree = [torch.randn(shape) for shape in shapes]
        grads = [torch.randn(shape) for shape in shapes]
        state = tx.init(tree)
        return lambda: fa.step(tx, grads, state, tree, donate=donate)

    return {
        "torch.optim.Adamax": torch.optim.Adamax(params(), foreach=False).step,
        "torch.optim.Adamax(foreach=True)": torch.optim.Adamax(params(), foreach=True).step,
        "compat.Adamax": Adamax(params()).step,
        "compat.Adamax(foreach=True)": Adamax(params(), foreach=True).step,
        "fa.step, donated": functional(donate=True),
        "fa.step, pure": functional(donate=False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement")
    seconds = parser.parse_args().seconds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    for name, shapes in TREES.items():
        print(f"\n{name}")
        times = {}
        for label, function in contenders(shapes).items():
            timer = Timer("step()", globals={"step": function}, num_threads=torch.get_num_threads())
            times[label] = timer.blocked_autorange(min_run_time=seconds).median * 1e6
        best = min(time for label, time in times.items() if label.startswith("torch"))
        for label, time in times.items():
            print(f"  {label:34}{time:12.1f} us{time / best:8.2f}")


if __name__ == "__main__":
    main()
