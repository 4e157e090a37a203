"""The optimizer step, ours against others': alone, in training, in an ensemble, and its memory.

Everything runs in one process on a CPU, in float32, with as many threads for each. Prints tables
of median times and of ratios, and with ``--write`` makes a page and a picture of them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median

import compiling
import ensemble
import timing
import torch
import training
from timing import Times, Trained
from torch import Tensor
from trees import ADAM, CONTENDERS, OURS, PEERS, TORCH, TREES, Contender, Shape, installed, size

TOLERANCE = 1e-5  # between the changes of contenders with one algorithm, relative, in float32
TRAINING_TOLERANCE = 1e-3  # the same, where each computes its gradients, in an order of its own
FLOOR = "the floor"
UNMEASURED = "optax"  # allocates elsewhere than torch's profiler looks
PARTS = ("step", "training", "ensemble", "compile", "memory")

INTRODUCTION = f"""\
What a step costs on a CPU. `make bench` wrote this page with `benchmarks/step.py`, which runs all
contenders in one process. It times them in rounds of shuffled order, where each runs for 50 ms or
for one call. Absolute times depend on the machine; the ratios are what matters: they are taken
within a round, and given is their median. Below 1 is faster than the better form of
`torch.optim.Adamax`. Before they are timed, all Adamaxes take two steps from one start, and the
changes must agree to one part in {1 / TOLERANCE:.0f}, or to one in {1 / TRAINING_TOLERANCE:.0f}
where the gradients are computed, too.
"""
STEP = f"""\
The optimizer alone, with gradients given. {FLOOR.capitalize()} is the time to read the gradient,
the parameter and two moments and to write the last three, {timing.STEP_BYTES} bytes an element, at
the bandwidth that `a.add_(b)` reaches on tensors of {timing.STREAM >> 20} Mi elements. Faster than
that are trees that fit in a cache, and our kernel, which asks for memory ahead of its use.
`Adam(fused=True)` is another method, which moves as many bytes.
The pure `fa.step`, torchopt with `inplace=False`, and optax without donation write to nothing and
return new arrays. optax is compiled together with the addition of its updates; XLA has threads of
its own, as many as torch.
"""
TRAINING = """\
Forward, backward and the step of the optimizer, and the first two alone.
"""
ENSEMBLE = f"""\
{ensemble.MEMBERS} perceptrons 16-32-32-4, each with a learning rate of its own: one vmap over a
pure function, plain or compiled, against a loop over modules with `torch.optim.Adamax`, as
{ensemble.MEMBERS} optimizers or as one with {ensemble.MEMBERS} groups. A training step is on
{ensemble.ROWS} rows, the same for all.
"""
COMPILE = f"""\
{compiling.COUNT} tensors of {" x ".join(map(str, compiling.SHAPE))} under `torch.compile`, with
inductor and nothing cached: one compilation of each, and the medians of steps after it. The pure
step returns new tensors, the others write.
"""
MEMORY = """\
The peak of what one step allocates beyond what there was before it, in MB, and as a multiple of the
memory of the parameters. Buffers that XLA allocates cannot be seen from here, so optax is left out.
"""


def number(x: float) -> str:
    return f"{x:.3g}" if x < 1000 else f"{x:.0f}"


def lines(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of Markdown, the first of which is the head."""
    rows = [rows[0], ("---", *["---:"] * (len(rows[0]) - 1)), *rows[1:]]
    width = max(len(row[0]) for row in rows)
    return [
        f"| {row[0]:{width}} | " + " | ".join(f"{x:>14}" for x in row[1:]) + " |" for row in rows
    ]


def table(times: Times) -> list[str]:
    """Median times, and ratios to the better form of torch.optim.Adamax and to the floor."""
    references = {"to torch.optim": timing.better(times, TORCH)}
    if FLOOR in times:
        references["to the floor"] = FLOOR
    rows: list[tuple[str, ...]] = [("", "time, ms", *references)]
    for name, found in times.items():
        ratios = [timing.ratio(times, name, other) for other in references.values()]
        rows.append((name, number(1e3 * median(found)), *(f"{x:.2f}" for x in ratios)))
    return lines(rows)


def made(shapes: list[Shape]) -> dict[str, Contender]:
    """All contenders on one tree, warm, after a comparison of what they do."""
    torch.manual_seed(0)
    start, grads = ([torch.randn(x) * scale for x in shapes] for scale in (0.02, 1.0))
    others = [g * -0.5 for g in grads]  # the steps of Adam and Adamax differ only after a change
    found: dict[str, Contender] = {}
    expected: list[Tensor] = []
    for name, build in CONTENDERS.items():
        found[name] = contender = build(start, grads)
        contender.step()
        contender.feed(others)
        contender.step()
        contender.feed(grads)
        if name != ADAM:
            change = [p - x for p, x in zip(contender.params(), start, strict=True)]
            expected = expected or change
            timing.check({TORCH: expected, name: change}, TOLERANCE)
    return found


def time_tree(shapes: list[Shape], rounds: int) -> Times:
    runs: dict[str, timing.Run] = {name: x.step for name, x in made(shapes).items()}
    times = timing.measure({**runs, FLOOR: timing.stream()}, rounds)
    share = timing.steps_in_stream(size(shapes))
    times[FLOOR] = [x * share for x in times[FLOOR]]
    return times


def time_trained(found: Mapping[str, Trained], rounds: int, tolerance: float) -> Times:
    """Time what trains one network or ensemble, after a comparison of what the Adamaxes do."""
    start = [x.clone() for x in next(iter(found.values())).params()]
    changes = {}
    for name, each in found.items():
        each.step()
        each.step()
        if name not in (ADAM, training.NONE):
            changes[name] = [p - x for p, x in zip(each.params(), start, strict=True)]
    timing.check(changes, tolerance)
    del changes, start
    return timing.measure({name: x.step for name, x in found.items()}, rounds)


def peaks(shapes: list[Shape]) -> list[str]:
    """The memory that a step of each contender allocates."""
    unit, rows = 4 * size(shapes), [("", "peak, MB", "to parameters")]
    start, grads = ([torch.randn(x) * scale for x in shapes] for scale in (0.02, 1.0))
    for name, build in CONTENDERS.items():
        if not name.startswith(UNMEASURED):
            contender = build(start, grads)
            contender.step()
            peak = timing.peak_of(contender.step)
            rows.append((name, f"{peak / 1e6:.1f}", f"{peak / unit:.2f}"))
    return lines(rows)


def compilations(found: Mapping[str, compiling.Compiled]) -> list[str]:
    """What it took to compile, and the steps before and after."""
    rows: list[tuple[str, ...]] = [("", "first step, s", "graphs", "later, ms", "not compiled, ms")]
    for name, x in found.items():
        rows.append(
            (name, f"{x.first:.1f}", str(x.graphs), number(1e3 * x.later), number(1e3 * x.eager))
        )
    return lines(rows)


def draw(results: Mapping[str, Times], path: Path) -> None:
    """Draw the ratios of every tree as bars."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("Agg")
    blue, grey, dark, limit = "#0072B2", "#b8b8b8", "#222222", 3.0
    figure, grid = plt.subplots(3, 2, figsize=(10.5, 11.5), layout="constrained", sharey=True)
    for axes, (title, times) in zip(grid.flat, results.items(), strict=False):
        names = [name for name in times if name != FLOOR]
        best = timing.better(times, TORCH)
        ratios = [timing.ratio(times, name, best) for name in names]
        colors = [blue if name in OURS else grey for name in names]
        axes.barh(names, [min(x, limit) for x in ratios], color=colors)
        for i, x in enumerate(ratios):
            cut = x > limit
            axes.text(
                min(x, limit) + (-0.05 if cut else 0.05),
                i,
                f"{x:.2f} →" if cut else f"{x:.2f}",
                ha="right" if cut else "left",
                va="center",
                color=dark,
                bbox={"facecolor": "none" if cut else "white", "edgecolor": "none", "pad": 1},
                weight="bold" if names[i] in OURS else "normal",
            )
        axes.axvline(1, color=dark, lw=1, zorder=0)
        axes.set(title=title, xlim=(0, limit))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(results) :]:
        axes.set_axis_off()
    grid[0, 0].invert_yaxis()  # all share it
    figure.suptitle("Time of one step / the better form of torch.optim.Adamax; less is faster")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def versions(threads: int) -> Iterator[str]:
    """What ran, and what did not."""
    names = dict.fromkeys(x for needs, _ in PEERS.values() for x in needs)
    words = [f"{x} {version(x)}" for x in names if installed((x,))]
    words = [f"torch {torch.__version__}", *words]
    yield f"{', '.join(words)}; CPU, threads: {threads}, cores: {os.cpu_count()}, float32."
    for name, (needs, _) in PEERS.items():
        if missing := [x for x in needs if not installed((x,))]:
            yield f"{name} is left out: {' and '.join(missing)} not installed."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="for each measurement")
    parser.add_argument("--tree", action="append", help="only trees with this in their name")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; all if absent")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page in Markdown")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["PJRT_NPROC"] = str(args.threads)  # the size of XLA's pool, read at its import
    trees = {k: v for k, v in TREES.items() if any(x in k for x in args.tree or [""])}
    parts, rounds, results = args.part or PARTS, args.rounds, {}
    text: list[str] = []

    def say(*words: str) -> None:
        text.extend(words)
        print(*words, sep="\n", flush=True)

    def section(title: str, introduction: str) -> None:
        say("", f"## {title}", "", *introduction.splitlines())

    def report(title: str, rows: list[str]) -> None:
        say("", f"### {title}", "", *rows)

    say("# Speed, measured", "", *INTRODUCTION.splitlines(), "", *versions(args.threads))
    if "step" in parts:
        section("One step", STEP)
        if args.write:
            text.extend(("", "![Time of a step, relative to torch.optim.Adamax](images/speed.png)"))
        for name, shapes in trees.items():
            results[name] = time_tree(shapes, rounds)
            report(name, table(results[name]))
    if "training" in parts:
        section("A training step", TRAINING)
        for name, task in training.TASKS.items():
            report(name, table(time_trained(training.trainings(task), rounds, TRAINING_TOLERANCE)))
    if "ensemble" in parts:
        section("An ensemble", ENSEMBLE)
        alone, whole = (ensemble.contenders(training=x) for x in (False, True))
        report("The optimizer alone", table(time_trained(alone, rounds, TOLERANCE)))
        report("A whole training step", table(time_trained(whole, rounds, TRAINING_TOLERANCE)))
    if "compile" in parts:
        section("Compiling", COMPILE)
        say("", *compilations(compiling.compile_all(rounds, TOLERANCE)))
    if "memory" in parts:
        section("Memory of a step", MEMORY)
        name = "GPT-2-like, 6 layers, 82 M"
        report(name, peaks(TREES[name]))
    if args.write:
        args.write.write_text("\n".join(text) + "\n")
        if results:
            draw(results, args.write.parent / "images" / "speed.png")


if __name__ == "__main__":
    main()
