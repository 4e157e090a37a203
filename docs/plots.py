"""Draw the figures of these pages, with the library itself: ``python docs/plots.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from torch import Tensor
from torch.func import grad, vmap

import functional_adamax as fa

IMAGES = Path(__file__).resolve().parent / "images"
LR, FLOOR = 0.1, 1e-3
BLACK, BLUE, ORANGE, GREEN = "#222222", "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's


def first_update(g: Tensor, **options: Any) -> Tensor:
    """The update of the first step of Adamax, for one gradient."""
    tx = fa.adamax(LR, **options)
    return tx.update(g, tx.init(torch.zeros_like(g)))[0]


def updates(g: Tensor, **options: Any) -> Tensor:
    """The updates for many gradients, each alone."""
    return vmap(lambda x: first_update(x, **options))(g)


def slopes(g: Tensor, **options: Any) -> Tensor:
    """The absolute derivatives of the updates by their gradients."""
    return vmap(grad(lambda x: first_update(x, **options)))(g).abs()


def derivative(path: Path) -> None:
    """Draw the update of the first step, and its derivative, against the gradient."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained")

    g = torch.linspace(-5e-3, 5e-3, 2001, dtype=torch.float64)
    left.plot(g, updates(g, eps=1e-8), color=BLUE, lw=2, label="eps = 1e-8, any derivative_floor")
    left.plot(g, updates(g, eps=1e-3), color=ORANGE, lw=2, label="eps = 1e-3")
    left.set(
        title="The update of the first step",
        xlabel="gradient g",
        ylabel="update",
        ylim=(-0.125, 0.165),
        xticks=[-4e-3, -2e-3, 0, 2e-3, 4e-3],
        yticks=[-0.1, -0.05, 0, 0.05, 0.1],
    )

    g = torch.logspace(-12, 0, 601, dtype=torch.float64)
    bound = (1 + (1 - 0.9) / (1 - 0.9 / 0.999)) * LR / FLOOR
    for options, color, width, label in (
        ({"eps": 1e-3}, ORANGE, 3.5, "eps = 1e-3"),
        ({"eps": 1e-8}, BLUE, 3.5, "eps = 1e-8"),
        (
            {"eps": 1e-8, "derivative_floor": FLOOR},
            GREEN,
            1.6,
            "eps = 1e-8, derivative_floor = 1e-3",
        ),
    ):
        right.loglog(g, slopes(g, **options), color=color, lw=width, label=label)
    right.axhline(bound, color=BLACK, lw=1.3, ls="--", label="bound for a floor or eps of 1e-3")
    right.set(
        title="Its derivative by the gradient",
        xlabel="|g|",
        ylabel="|d update / d g|",
        xlim=(1e-12, 1),
        ylim=(1e-10, 1e17),
        xticks=[10.0**i for i in range(-12, 1, 3)],
        yticks=[10.0**i for i in range(-9, 10, 3)],
    )
    for axes in (left, right):
        axes.legend(loc="upper right", framealpha=1, facecolor="white", edgecolor="none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", lw=0.6)
        axes.minorticks_off()
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def curves() -> list[tuple[str, dict[str, Any]]]:
    """Each kind of schedule, by its name, with one or several examples."""
    cycle = {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 5, "end_value": 0.05}
    scales = {25: 0.4, 50: 2.0, 75: 0.25}
    up, flat, down = fa.linear_schedule(0, 1, 20), fa.constant_schedule(1), fa.exponential_decay
    joined = fa.join_schedules([up, flat, down(1, 10, 0.6)], [20, 50])
    return [
        ("constant_schedule", {"": fa.constant_schedule(0.6)}),
        ("linear_schedule", {"": fa.linear_schedule(1.0, 0.1, 60, transition_begin=20)}),
        (
            "polynomial_schedule",
            {f"power {p:g}": fa.polynomial_schedule(1.0, 0.0, p, 90) for p in (0.5, 2, 4)},
        ),
        (
            "exponential_decay",
            {
                "smooth": fa.exponential_decay(1.0, 20, 0.5),
                "staircase": fa.exponential_decay(1.0, 20, 0.5, staircase=True),
                "end_value": fa.exponential_decay(1.0, 20, 0.5, end_value=0.3),
            },
        ),
        (
            "cosine_decay_schedule",
            {f"exponent {p:g}": fa.cosine_decay_schedule(1.0, 90, exponent=p) for p in (0.5, 1, 3)},
        ),
        ("piecewise_constant_schedule", {"": fa.piecewise_constant_schedule(1.0, scales)}),
        (
            "piecewise_interpolate_schedule",
            {
                kind: fa.piecewise_interpolate_schedule(kind, 1.0, scales)
                for kind in ("linear", "cosine")
            },
        ),
        ("linear_onecycle_schedule", {"": fa.linear_onecycle_schedule(90, 1.0)}),
        ("cosine_onecycle_schedule", {"": fa.cosine_onecycle_schedule(90, 1.0)}),
        ("warmup_constant_schedule", {"": fa.warmup_constant_schedule(0.0, 1.0, 20)}),
        (
            "warmup_cosine_decay_schedule",
            {"": fa.warmup_cosine_decay_schedule(0.0, 1.0, 20, 90)},
        ),
        (
            "warmup_exponential_decay_schedule",
            {"": fa.warmup_exponential_decay_schedule(0.0, 1.0, 20, 20, 0.5)},
        ),
        (
            "warmup_stable_decay_schedule",
            {
                kind: fa.warmup_stable_decay_schedule(0.0, 1.0, 10, 40, 40, cooldown=kind)
                for kind in ("linear", "1-sqrt", "cosine")
            },
        ),
        (
            "sgdr_schedule",
            {"": fa.sgdr_schedule({**cycle, "decay_steps": n} for n in (15, 30, 45))},
        ),
        ("join_schedules", {"": joined}),
    ]


def schedules(path: Path) -> None:
    """Draw every schedule against the count of steps."""
    figure, grid = plt.subplots(5, 3, figsize=(10.5, 10.5), layout="constrained", sharex=True)
    t = torch.linspace(0, 100, 1001, dtype=torch.float64)
    for axes, (title, examples) in zip(grid.flat, curves(), strict=True):
        colors = (BLUE, ORANGE, GREEN)
        for (label, schedule), color in zip(examples.items(), colors, strict=False):
            axes.plot(t, vmap(schedule)(t), color=color, lw=1.8, label=label)
        if len(examples) > 1:
            axes.legend(fontsize=8.5, framealpha=1, facecolor="white", edgecolor="none")
        axes.set_title(title, fontsize=10)
        axes.set(ylim=(-0.05, 1.12), xlim=(0, 100), yticks=[0, 0.5, 1], xticks=[0, 25, 50, 75, 100])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", lw=0.6)
    for axes in grid[-1]:
        axes.set_xlabel("count of steps")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    mpl.use("Agg")
    plt.rcParams.update({"font.size": 11, "axes.titlesize": 12})
    IMAGES.mkdir(exist_ok=True)
    derivative(IMAGES / "derivative.png")
    schedules(IMAGES / "schedules.png")
