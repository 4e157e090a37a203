"""Train one network three ways and get the same bits three times.

The same small network learns handwritten digits from the same initial weights and the same
batches, with

1. pure functions: ``torch.func`` for the gradients, ``fa.adamax`` for the step,
2. ``functional_adamax.compat.Adamax`` in the training loop everybody knows,
3. ``torch.optim.Adamax`` in that same loop.

Run it with ``python examples/train_digits.py``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from _digits import (
    DARK,
    ORANGE,
    SKY,
    Part,
    accuracy,
    load,
    network,
    new_plot,
    save_plot,
    shuffled_batches,
)
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor
from torch.func import functional_call, grad_and_value
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from tqdm import tqdm

import functional_adamax as fa
from functional_adamax.compat import Adamax

LR = 0.005

Params = dict[str, Tensor]
Epochs = list[list[Part]]  # for each epoch its batches
Training = Iterator[tuple[Params, float]]  # after each epoch: the parameters, the mean loss


def train_functional(epochs: Epochs) -> Training:
    """Train with pure functions: parameters and state go in, and new ones come out."""
    model = network()

    def loss_of(params: Params, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, params, (images,)), labels)

    # The parameters of a module require grad. Were they used as they are, autograd would record
    # every update, and each training step would extend one graph that is never freed.
    params = {name: p.detach().clone() for name, p in model.named_parameters()}

    tx = fa.adamax(lr=LR)
    state = tx.init(params)
    for batches in epochs:
        losses = []
        for images, labels in batches:
            grads, loss = grad_and_value(loss_of)(params, images, labels)
            updates, state = tx.update(grads, state, params)
            params = fa.apply_updates(params, updates)
            losses.append(loss.item())
        yield params, sum(losses) / len(losses)


def train_classic(make_optimizer: Callable[..., Optimizer], epochs: Epochs) -> Training:
    """Train with an optimizer object: it changes the parameters of the module in place."""
    model = network()
    optimizer = make_optimizer(model.parameters(), lr=LR)
    for batches in epochs:
        losses = []
        for images, labels in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        params = {name: p.detach().clone() for name, p in model.named_parameters()}
        yield params, sum(losses) / len(losses)


class Run(NamedTuple):
    params: Params  # after the last epoch
    losses: list[float]  # mean over the batches of each epoch
    accuracies: list[float]  # on the test images, after each epoch
    seconds: float  # of the training alone


def watch(name: str, training: Training, epochs: int, test: Part) -> Run:
    """Run the training with a progress bar, and measure it after each epoch."""
    model = network()
    losses, accuracies, seconds = [], [], 0.0
    with tqdm(total=epochs, desc=f"{name:32}", unit="epoch") as bar:
        start = time.perf_counter()
        for params, loss in training:
            seconds += time.perf_counter() - start
            scores = functional_call(model, params, (test.images,))
            losses.append(loss)
            accuracies.append(accuracy(scores, test.labels).item())
            bar.set_postfix(loss=f"{loss:.4f}")
            bar.update()
            start = time.perf_counter()
    return Run(params, losses, accuracies, seconds)


def print_table(runs: dict[str, Run]) -> None:
    print(f"\n{'method':32}  {'train loss':>10}  {'test accuracy':>13}  {'seconds':>7}")
    for name, run in runs.items():
        print(f"{name:32}  {run.losses[-1]:10.6f}  {run.accuracies[-1]:13.2%}  {run.seconds:7.2f}")


def differences(runs: dict[str, Run]) -> list[str]:
    """Compare every parameter of every run with those of the first run, bit for bit."""
    first, *others = runs
    return [
        f"{name}: {first} and {other} differ by up to "
        f"{(p - runs[other].params[name]).abs().max().item():.1e}"
        for other in others
        for name, p in runs[first].params.items()
        if not torch.equal(p, runs[other].params[name])
    ]


def plot(runs: dict[str, Run], path: Path) -> None:
    """Draw the curves, which coincide, one inside the other: a wide, a medium, a thin line."""
    figure, (left, right) = new_plot("One network, trained in three ways", 2)
    looks = [(ORANGE, 10, "-"), (SKY, 5, "-"), (DARK, 1.5, "--")]
    for (name, run), (color, width, style) in zip(runs.items(), looks, strict=True):
        epochs = range(1, len(run.losses) + 1)
        left.plot(epochs, run.losses, style, color=color, linewidth=width, label=name)
        right.plot(epochs, run.accuracies, style, color=color, linewidth=width)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel="test accuracy")
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=3, handlelength=3, frameon=False)
    save_plot(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one network three ways.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the plot goes")
    args = parser.parse_args()

    torch.set_num_threads(1)  # the network is so small that a second thread would only wait
    digits = load()
    epochs = [shuffled_batches(digits.train, epoch) for epoch in range(args.epochs)]
    methods: dict[str, Callable[[Epochs], Training]] = {
        "torch.func + fa.adamax": train_functional,
        "functional_adamax.compat.Adamax": partial(train_classic, Adamax),
        "torch.optim.Adamax": partial(train_classic, torch.optim.Adamax),
    }
    for train in methods.values():
        next(train(epochs[:1]))  # what torch does only once shall not count as time
    runs = {
        name: watch(name, train(epochs), args.epochs, digits.test)
        for name, train in methods.items()
    }
    print_table(runs)
    plot(runs, args.out / "train_digits.png")

    different = differences(runs)
    if different:
        sys.exit("\nThe three runs are NOT bit-identical:\n" + "\n".join(different))
    print(f"\nThe three runs are bit-identical in all {len(network().state_dict())} parameters.")


if __name__ == "__main__":
    main()
