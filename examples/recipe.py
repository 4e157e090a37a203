"""Build a training recipe from parts, and run it in three ways to the same bits.

The recipe is AdamaxW with what usually goes with it: gradients clipped by their global norm,
weight decay that spares biases and norms, a learning rate that warms up and falls along a cosine,
and an average of the weights. It is one chain. The same network learns handwritten digits with

1. pure functions: ``torch.func`` for the gradients, ``fa.step`` for the step,
2. ``compat.wrap(recipe)``, an optimizer class in the training loop everybody knows,
3. ``compat.Optimizer`` with parameter groups, which say what is decayed, and a scheduler of torch.

Run it with ``python examples/recipe.py``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _digits import (
    DARK,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    Part,
    accuracy,
    load,
    new_plot,
    save_plot,
    shuffled_batches,
)
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

import functional_adamax as fa
from functional_adamax import compat

PEAK = 0.02
DECAY = 0.05

Params = dict[str, Tensor]
Epochs = list[list[Part]]  # for each epoch its batches
Rate = Callable[[Any], Any]  # from the number of steps so far to the learning rate


class Epoch(NamedTuple):
    params: Params
    averages: Params
    loss: float  # mean over the batches
    rates: list[float]  # the learning rate of each step


def network(seed: int = 0) -> nn.Module:
    """Return a small network with norms. The same seed always has the same initial weights."""
    torch.manual_seed(seed)
    layers = {
        "first": nn.Linear(64, 128),
        "norm": nn.LayerNorm(128),
        "relu": nn.ReLU(),
        "last": nn.Linear(128, 10),
    }
    return nn.Sequential(OrderedDict(layers))


def is_decayed(name: str) -> bool:
    """Whether a parameter of this name is a matrix, not a bias and not the scale of a norm."""
    return name.endswith("weight") and "norm" not in name


def chain_of(lr: Any, decay: fa.GradientTransformation) -> fa.GradientTransformation:
    return fa.chain(
        fa.clip_by_global_norm(1.0),
        fa.scale_by_adamax(),
        decay,  # behind the direction: decoupled
        fa.scale_by_learning_rate(lr),
        fa.params_ema(0.98, debias=True),
    )


def recipe(lr: Any = PEAK, weight_decay: Any = DECAY) -> fa.GradientTransformation:
    """AdamaxW with all that goes with it; a mask says what is decayed."""
    decay = fa.masked(fa.add_decayed_weights(weight_decay), fa.by_path(is_decayed))
    return chain_of(lr, decay)


def recipe_for_groups(lr: Any = PEAK, weight_decay: Any = DECAY) -> fa.GradientTransformation:
    """The same without a mask: each parameter group has a ``weight_decay`` of its own."""
    return chain_of(lr, fa.add_decayed_weights(weight_decay))


def train_functional(epochs: Epochs, rate: Rate) -> Iterator[Epoch]:
    """Train with pure functions: parameters and state go in, and new ones come out."""
    model = network()

    def loss_of(params: Params, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, params, (images,)), labels)

    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    tx = recipe(lr=rate)
    state = tx.init(params)
    for batches in epochs:
        losses, rates = [], []
        for images, labels in batches:
            rates.append(rate(state[3].count).item())
            grads, loss = grad_and_value(loss_of)(params, images, labels)
            params, state = fa.step(tx, grads, state, params)
            losses.append(loss.item())
        yield Epoch(params, fa.averaged(state), sum(losses) / len(losses), rates)


def train_wrapped(epochs: Epochs, rate: Rate) -> Iterator[Epoch]:
    """Train with the recipe as an optimizer class; it is given names, for the mask goes by them."""
    model = network()
    optimizer = compat.wrap(recipe)(model.named_parameters(), lr=rate)
    yield from train_classic(model, optimizer, None, epochs)


def train_groups(epochs: Epochs, rate: Rate) -> Iterator[Epoch]:
    """Train with parameter groups and a scheduler of torch. The norm is that of both groups."""
    model = network()
    named = list(model.named_parameters())
    groups = [
        {"params": [(n, p) for n, p in named if is_decayed(n)]},
        {"params": [(n, p) for n, p in named if not is_decayed(n)], "weight_decay": 0.0},
    ]
    optimizer = compat.Optimizer(groups, recipe_for_groups, lr=1.0, couple="all")
    scheduler = LambdaLR(optimizer, lambda count: rate(torch.tensor(count)).item())
    yield from train_classic(model, optimizer, scheduler, epochs)


def train_classic(
    model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LambdaLR | None, epochs: Epochs
) -> Iterator[Epoch]:
    """The training loop everybody knows."""
    for batches in epochs:
        losses, rates = [], []
        for images, labels in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])  # of a schedule: what this step used
            if scheduler is not None:
                scheduler.step()
            losses.append(loss.item())
        params = {name: p.detach().clone() for name, p in model.named_parameters()}
        averages = {
            name: optimizer.state[p]["average"].clone() for name, p in model.named_parameters()
        }
        yield Epoch(params, averages, sum(losses) / len(losses), rates)


class Run(NamedTuple):
    params: Params  # after the last epoch
    averages: Params
    losses: list[float]  # of each epoch
    raw: list[float]  # accuracy on the test images after each epoch
    averaged: list[float]  # the same with the averaged weights
    rates: list[float]  # of each step
    seconds: float  # of the training alone


def watch(name: str, training: Iterator[Epoch], epochs: int, test: Part) -> Run:
    """Run the training with a progress bar, and measure it after each epoch."""
    model = network()
    losses, raw, averaged, rates, seconds = [], [], [], [], 0.0
    with tqdm(total=epochs, desc=f"{name:24}", unit="epoch") as bar:
        start = time.perf_counter()
        for epoch in training:
            seconds += time.perf_counter() - start
            for params, found in ((epoch.params, raw), (epoch.averages, averaged)):
                scores = functional_call(model, params, (test.images,))
                found.append(accuracy(scores, test.labels).item())
            losses.append(epoch.loss)
            rates.extend(epoch.rates)
            bar.set_postfix(loss=f"{epoch.loss:.4f}")
            bar.update()
            start = time.perf_counter()
    return Run(epoch.params, epoch.averages, losses, raw, averaged, rates, seconds)


def print_table(runs: dict[str, Run]) -> None:
    print(f"\n{'':24}  {'':10}  {'test accuracy':>17}")
    print(f"{'way':24}  {'train loss':>10}  {'raw':>7}  {'averaged':>8}  {'seconds':>7}")
    for name, run in runs.items():
        print(
            f"{name:24}  {run.losses[-1]:10.6f}  {run.raw[-1]:7.2%}  {run.averaged[-1]:8.2%}  "
            f"{run.seconds:7.2f}"
        )


def differences(runs: dict[str, Run]) -> list[str]:
    """Compare parameters, averages, losses and rates with those of the first run, bit for bit."""
    first, *others = runs
    one = runs[first]
    found = []
    for other in others:
        two = runs[other]
        trees = ("params", one.params, two.params), ("averages", one.averages, two.averages)
        found += [
            f"{what}[{name!r}]: {first} and {other} differ"
            for what, xs, ys in trees
            for name, x in xs.items()
            if not torch.equal(x, ys[name])
        ]
        lists = ("losses", one.losses, two.losses), ("rates", one.rates, two.rates)
        found += [f"{what}: {first} and {other} differ" for what, xs, ys in lists if xs != ys]
    return found


def plot(runs: dict[str, Run], path: Path) -> None:
    """Draw the losses, which coincide, one inside the other; the accuracies; the learning rate."""
    figure, (left, middle, right) = new_plot("One recipe, run in three ways", 3)
    looks = [(ORANGE, 10, "-"), (SKY, 5, "-"), (DARK, 1.5, "--")]
    for (name, run), (color, width, style) in zip(runs.items(), looks, strict=True):
        epochs = range(1, len(run.losses) + 1)
        left.plot(epochs, run.losses, style, color=color, linewidth=width, label=name)
    middle.plot(epochs, run.raw, color=PINK, label="weights as they are")
    middle.plot(epochs, run.averaged, color=GREEN, linewidth=2.5, label="averaged weights")
    right.plot(run.rates, color=DARK)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    middle.set(xlabel="epoch", ylabel="test accuracy")
    right.set(xlabel="step", ylabel="learning rate")
    middle.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for ax in (left, middle):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=5, handlelength=3, frameon=False, fontsize=8)
    save_plot(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one recipe in three ways.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the plot goes")
    args = parser.parse_args()

    torch.set_num_threads(1)  # the network is so small that a second thread would only wait
    digits = load()
    epochs = [shuffled_batches(digits.train, epoch) for epoch in range(args.epochs)]
    steps = sum(map(len, epochs))
    rate = fa.warmup_cosine_decay_schedule(0.0, PEAK, steps // 10, steps)
    ways = {
        "torch.func + fa.step": train_functional,
        "compat.wrap(recipe)": train_wrapped,
        "groups and a scheduler": train_groups,
    }
    for train in ways.values():
        next(train(epochs[:1], rate))  # what torch does only once shall not count as time
    runs = {
        name: watch(name, train(epochs, rate), args.epochs, digits.test)
        for name, train in ways.items()
    }
    print_table(runs)
    plot(runs, args.out / "recipe.png")

    different = differences(runs)
    if different:
        sys.exit("\nThe three runs are NOT bit-identical:\n" + "\n".join(different))
    count = len(network().state_dict())
    print(f"\nThe three runs are bit-identical in all {count} parameters and their averages,")
    print("in all losses and in all learning rates.")


if __name__ == "__main__":
    main()
