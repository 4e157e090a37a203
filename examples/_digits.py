"""What the examples share: handwritten digits, a small network, and the look of the plots."""

from __future__ import annotations

from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

ORANGE, SKY, GREEN, PINK = "#f0a830", "#5db3e8", "#009e73", "#cc6699"
DARK, GRAY, LIGHT = "#26323c", "#c3cace", "#dfe3e6"


class Part(NamedTuple):
    images: Tensor  # (n, 64), float32, in [0, 1]: 8x8 pixels, flattened
    labels: Tensor  # (n,), int64: the digit


class Digits(NamedTuple):
    train: Part
    validation: Part
    test: Part


def load() -> Digits:
    """Return the 1797 digits that come with scikit-learn: 1197 to train on, 300 and 300."""
    images, labels = load_digits(return_X_y=True)
    rest, test, rest_labels, test_labels = train_test_split(
        images, labels, test_size=300, stratify=labels, random_state=0
    )
    train, validation, train_labels, validation_labels = train_test_split(
        rest, rest_labels, test_size=300, stratify=rest_labels, random_state=0
    )

    def part(images: np.ndarray, labels: np.ndarray) -> Part:
        return Part(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))

    return Digits(
        part(train, train_labels),
        part(validation, validation_labels),
        part(test, test_labels),
    )


def network(seed: int = 0, widths: tuple[int, ...] = (64, 128, 64, 10)) -> nn.Module:
    """Return a small network. The same seed always has the same initial weights."""
    torch.manual_seed(seed)
    layers = [(nn.Linear(i, o), nn.ReLU()) for i, o in pairwise(widths)]
    return nn.Sequential(*chain.from_iterable(layers))[:-1]


def shuffled_batches(data: Part, epoch: int, size: int = 64) -> list[Part]:
    """Return the batches of one epoch. The same epoch always has the same batches."""
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(epoch))
    return [Part(data.images[rows], data.labels[rows]) for rows in order.split(size)]


def accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the share of images whose highest score (of ``scores``, (n, 10)) is the label's."""
    return (scores.argmax(dim=-1) == labels).double().mean()


def new_plot(title: str, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure, and the axes that stand side by side in it."""
    figure = Figure(figsize=(9, 4.8), dpi=150, layout="constrained")
    figure.suptitle(title)
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for ax in axes:
        ax.grid(color=LIGHT)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_plot(figure: Figure, path: Path) -> None:
    """Write the figure and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"\nplot: {path}")
