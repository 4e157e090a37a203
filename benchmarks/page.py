"""The tables and pictures of the page that says what a step costs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median

import timing
import torch
from timing import Times
from trees import OURS, PACKAGES, installed

FLOOR = "the floor"


def number(x: float) -> str:
    return f"{x:.3g}" if x < 1000 else f"{x:.0f}"


def lines(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of Markdown, the first of which is the head."""
    head, *rest = rows
    widths = [max(len(row[0]) for row in rows), *(max(14, len(title)) for title in head[1:])]
    return [
        f"| {row[0]:{widths[0]}} | "
        + " | ".join(f"{x:>{width}}" for x, width in zip(row[1:], widths[1:], strict=True))
        + " |"
        for row in (head, ("---", *["---:"] * len(head[1:])), *rest)
    ]


def table(times: Times, references: Mapping[str, str]) -> list[str]:
    """Median times, and ratios to the better of those whose names begin like a reference."""
    best = {
        title: timing.better(times, prefix)
        for title, prefix in references.items()
        if any(name.startswith(prefix) for name in times)
    }
    rows: list[tuple[str, ...]] = [("", "time, ms", *best)]
    for name, found in times.items():
        ratios = [timing.ratio(times, name, other) for other in best.values()]
        rows.append((name, number(1e3 * median(found)), *(f"{x:.2f}" for x in ratios)))
    return lines(rows)


def draw(results: Mapping[str, Times], reference: str, path: Path) -> None:
    """Draw as bars what every tree has, as ratios to the better form of ``reference``."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("Agg")
    blue, grey, dark, limit = "#0072B2", "#b8b8b8", "#222222", 3.0
    figure, grid = plt.subplots(3, 2, figsize=(10.5, 11.5), layout="constrained", sharey=True)
    names = [x for x in min(results.values(), key=len) if x != FLOOR]
    for axes, (title, times) in zip(grid.flat, results.items(), strict=False):
        best = timing.better(times, reference)
        ratios = [timing.ratio(times, name, best) for name in names]
        colors = [blue if name.startswith(OURS) else grey for name in names]
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
                weight="bold" if names[i].startswith(OURS) else "normal",
            )
        axes.axvline(1, color=dark, lw=1, zorder=0)
        axes.set(title=title, xlim=(0, limit))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(results) :]:
        axes.set_axis_off()
    grid[0, 0].invert_yaxis()  # all share it
    figure.suptitle(f"Time of one step / the better form of {reference}; less is faster")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def versions(threads: int) -> Iterator[str]:
    """What ran, and what did not."""
    names = (x for needs in PACKAGES.values() for x in needs)
    words = [f"{x} {version(x)}" for x in names if installed((x,))]
    words = [f"torch {torch.__version__}", *words]
    yield f"{', '.join(words)}; CPU, threads: {threads}, cores: {os.cpu_count()}, float32."
    for name, needs in PACKAGES.items():
        if missing := [x for x in needs if not installed((x,))]:
            yield f"{name} is left out: {' and '.join(missing)} not installed."
