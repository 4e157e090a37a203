"""The optimizer step, ours against others': chains, methods, and Adamax in all that it is used for.

Everything runs in one process on a CPU, in float32, with as many threads for each. Prints tables
of median times and of ratios, and with ``--write`` makes a page and pictures of them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import chains
import compiling
import ensemble
import methods
import timing
import torch
import training
from page import FLOOR, draw, lines, number, table, versions
from timing import Times, Trained
from torch import Tensor
from trees import (
    ADAM,
    CONTENDERS,
    LR,
    TORCH,
    TREES,
    Algorithms,
    Contender,
    Shape,
    size,
)

TOLERANCE = 1e-5  # between the changes of contenders with one algorithm, relative, in float32
COMPUTED_TOLERANCE = 1e-3  # the same, where each computes gradients, or a norm, in its own order
UNMEASURED = "optax"  # allocates elsewhere than torch's profiler looks
PARTS = ("chains", "methods", "variants", "adamax", "training", "ensemble", "compile", "memory")
TO_TORCH, TO_FLOOR = {"to torch.optim": TORCH}, {"to the floor": FLOOR}
LARGE = "GPT-2-like, 6 layers, 82 M"  # the tree whose memory is measured

INTRODUCTION = f"""\
What a step costs on a CPU. `make bench` wrote this page with `benchmarks/step.py`, which runs all
contenders in one process. It times them in rounds of shuffled order, where each runs for 50 ms or
for one call. Absolute times depend on the machine; the ratios are what matters: they are taken
within a round, and given is their median. Below 1 is faster. Before they are timed, contenders with
one algorithm take two steps from one start, and the changes must agree to one part in
{1 / TOLERANCE:.0f}, or to one in {1 / COMPUTED_TOLERANCE:.0f} where gradients are computed, or
their norm, which torch takes in float32: over 39 M elements, 0.3 % too small.

{FLOOR.capitalize()} is the time to read the gradient, the parameter and the moments and to write
the last two, {timing.STEP_BYTES} bytes an element where there are two moments, at the bandwidth
that `a.add_(b)` reaches on tensors of {timing.STREAM >> 20} Mi elements. Faster than that are trees
that fit in a cache, and our kernels, which ask for memory ahead of its use. The pure `fa.step`,
torchopt with `inplace=False`, and optax without donation write to nothing and return new arrays.
optax is compiled together with the addition of its updates; XLA has threads of its own, as many as
torch.
"""
CHAINS = f"""\
The step of `chain(clip_by_global_norm({chains.NORM}), scale_by_adamax(),
add_decayed_weights({chains.DECAY}), scale_by_learning_rate({LR}))`, with gradients given, and of
what others have for it: the same chain of optax; `clip_grad_norm_` and `AdaMax` of
pytorch_optimizer with decoupled decay; `clip_grad_norm_` and `Adamax` of torch, in its two forms
and, where there are at most {chains.FEW} tensors, compiled. The decay of torch and torchopt is
coupled: another algorithm, of as many operations. {FLOOR.capitalize()} is {chains.BYTES} bytes an
element, because the norm reads the gradient first.
"""
METHODS = """\
The step alone of methods in `compat.Optimizer`, and donated, each to the floor of its own bytes;
then the ratios of the first to the same method elsewhere, or, where there is none, to the nearest
that moves as many bytes: for adamaxw those of torch and torchopt with coupled decay, for nadamax
`NAdam` of torch and `nadam` of optax.
"""
VARIANTS = f"""\
The ratios of Adamax and of the chain with `cosine_decay_schedule` to those with a number for their
learning rate; and of the chain over {chains.GROUPS} groups of parameters (or as many as there are
tensors), under `partition` with two labels, and under `inject_hyperparams`, to the chain alone.
Each group or label has a norm of its own, or, coupled, all groups have one.
"""
ADAMAX = f"""\
The optimizer alone, with gradients given. `{ADAM.removeprefix("torch.optim.")}` is another method,
which moves as many bytes.
"""
TRAINING = """\
Forward, backward and the step of the optimizer, and the first two alone.
"""
ENSEMBLE = f"""\
{ensemble.MEMBERS} perceptrons 16-32-32-4, each with a learning rate of its own: one vmap over a
pure function, plain or compiled, against a loop over modules with `torch.optim.Adamax`, as
{ensemble.MEMBERS} optimizers or as one with {ensemble.MEMBERS} groups. A training step is on
{ensemble.ROWS} rows, the same for all. Of Adam and of the chain, which clips each perceptron by its
own norm, the steps alone are measured, too.
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


def made(
    shapes: list[Shape], algorithms: Algorithms, tolerance: float = TOLERANCE
) -> dict[str, Contender]:
    """All contenders on one tree, warm, after a comparison of what they do."""
    torch.manual_seed(0)
    start, grads = ([torch.randn(x) * scale for x in shapes] for scale in (0.02, 1.0))
    others = [g * -0.05 for g in grads]  # the averages keep their signs, which Lion steps by
    found: dict[str, Contender] = {}
    for builds in algorithms:
        expected: dict[str, list[Tensor]] = {}
        for name, build in builds.items():
            found[name] = contender = build(start, grads)
            contender.step()
            contender.feed(others)
            contender.step()
            contender.feed(grads)
            change = [p - x for p, x in zip(contender.params(), start, strict=True)]
            expected = expected or {name: change}
            timing.check(expected | {name: change}, tolerance)
    return found


def time_tree(
    shapes: list[Shape],
    algorithms: Algorithms,
    moved: int,
    rounds: int,
    tolerance: float = TOLERANCE,
) -> Times:
    """Time a step on one tree, and the floor of so many bytes an element."""
    found = made(shapes, algorithms, tolerance)
    runs: dict[str, timing.Run] = {name: x.step for name, x in found.items()}
    times = timing.measure({**runs, FLOOR: timing.stream()}, rounds)
    share = timing.steps_in_stream(size(shapes), moved)
    times[FLOOR] = [x * share for x in times[FLOOR]]
    return times


def time_methods(shapes: list[Shape], rounds: int) -> list[str]:
    """Our times, beside the floors, and their ratios to those of others."""
    own = (methods.WRAPPED, methods.DONATED)
    head = [x for name in own for x in (f"{name}, ms", "to the floor")]
    rows = [("", *head, *(f"to {peer}" for peer in methods.PEERS))]
    for title, method in methods.METHODS.items():
        times = time_tree(shapes, method.contenders(), method.moved, rounds)
        cells = [
            x
            for name in own
            for x in (number(1e3 * median(times[name])), f"{timing.ratio(times, name, FLOOR):.2f}")
        ]
        cells += [
            f"{timing.ratio(times, methods.WRAPPED, peer):.2f}" if peer in times else "-"
            for peer in methods.PEERS
        ]
        rows.append((title, *cells))
    return lines(rows)


def time_variants(trees: Mapping[str, list[Shape]], rounds: int) -> list[str]:
    """The ratios of chains under wrappers, and of schedules, to what is plain."""
    columns: list[dict[str, str]] = []
    for shapes in trees.values():
        columns.append({})
        for algorithms in chains.variants(shapes):
            runs = {name: x.step for name, x in made(shapes, algorithms).items()}
            times = timing.measure(runs, rounds)
            plain, *others = times
            columns[-1] |= {name: f"{timing.ratio(times, name, plain):.2f}" for name in others}
    return lines([("", *trees), *((name, *(x[name] for x in columns)) for name in columns[0])])


def time_trained(found: Mapping[str, Trained], rounds: int, tolerance: float) -> Times:
    """Time what trains one network or ensemble, after a comparison of what the Adamaxes do."""
    start = [x.clone() for x in next(iter(found.values())).params()]
    changes = {}
    for name, each in found.items():
        each.step()
        each.step()
        if name not in (ADAM, training.NONE, ensemble.CLIPPED):
            changes[name] = [p - x for p, x in zip(each.params(), start, strict=True)]
    timing.check(changes, tolerance)
    del changes, start
    return timing.measure({name: x.step for name, x in found.items()}, rounds)


def peaks(shapes: list[Shape], algorithms: Algorithms) -> list[str]:
    """The memory that a step of each contender allocates."""
    unit, rows = 4 * size(shapes), [("", "peak, MB", "to parameters")]
    start, grads = ([torch.randn(x) * scale for x in shapes] for scale in (0.02, 1.0))
    for name, build in (x for builds in algorithms for x in builds.items()):
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
    parts, rounds = args.part or PARTS, args.rounds
    few = max(1, rounds // 2)  # for what takes long
    text: list[str] = []
    pictures: dict[str, tuple[dict[str, Times], str]] = {}

    def say(*words: str) -> None:
        text.extend(words)
        print(*words, sep="\n", flush=True)

    def section(title: str, introduction: str) -> None:
        say("", f"## {title}", "", *introduction.splitlines())

    def report(title: str, rows: list[str]) -> None:
        say("", f"### {title}", "", *rows)

    def picture(name: str, reference: str) -> dict[str, Times]:
        """Place a picture here that is drawn in the end, of what is put into the dict."""
        if args.write:
            text.extend(("", f"![Time of a step, relative to {reference}](images/{name}.png)"))
        pictures[name] = {}, reference
        return pictures[name][0]

    say("# Speed, measured", "", *INTRODUCTION.splitlines(), "", *versions(args.threads))
    if "chains" in parts:
        section("Chains", CHAINS)
        results = picture("speed", chains.TORCH)
        for name, shapes in trees.items():
            algorithms = chains.contenders(shapes)
            times = time_tree(shapes, algorithms, chains.BYTES, rounds, COMPUTED_TOLERANCE)
            results[name] = times
            references = {"to torch": chains.TORCH, "to optax": chains.OPTAX, **TO_FLOOR}
            report(name, table(times, references))
    if "methods" in parts:
        section("Methods", METHODS)
        for name, shapes in trees.items():
            report(name, time_methods(shapes, few))
    if "variants" in parts:
        section("Schedules, groups, labels, injected hyperparameters", VARIANTS)
        say("", *time_variants(trees, rounds))
    if "adamax" in parts:
        section("Adamax alone", ADAMAX)
        results = picture("adamax", TORCH)
        for name, shapes in trees.items():
            results[name] = time_tree(shapes, CONTENDERS, timing.STEP_BYTES, rounds)
            report(name, table(results[name], TO_TORCH | TO_FLOOR))
    if "training" in parts:
        section("A training step", TRAINING)
        for name, task in training.TASKS.items():
            times = time_trained(training.trainings(task), rounds, COMPUTED_TOLERANCE)
            report(name, table(times, TO_TORCH))
    if "ensemble" in parts:
        section("An ensemble", ENSEMBLE)
        alone, whole = (ensemble.contenders(training=x) for x in (False, True))
        times = time_trained(alone, rounds, TOLERANCE)
        report("The optimizer alone", table(times, TO_TORCH))
        for title, found in ensemble.others().items():
            times = time_trained(found, rounds, TOLERANCE)
            report(f"{title} alone", table(times, {"to torch.optim": "torch.optim"}))
        times = time_trained(whole, rounds, COMPUTED_TOLERANCE)
        report("A whole training step", table(times, TO_TORCH))
    if "compile" in parts:
        section("Compiling", COMPILE)
        say("", *compilations(compiling.compile_all(rounds, TOLERANCE)))
    if "memory" in parts:
        section("Memory of a step", MEMORY)
        measured = {"The chain": chains.contenders(TREES[LARGE]), "Adamax": CONTENDERS}
        for title, algorithms in measured.items():
            report(f"{title}, {LARGE}", peaks(TREES[LARGE], algorithms))
    if args.write:
        args.write.write_text("\n".join(text) + "\n")
        for name, (results, reference) in pictures.items():
            draw(results, reference, args.write.parent / "images" / f"{name}.png")


if __name__ == "__main__":
    main()
