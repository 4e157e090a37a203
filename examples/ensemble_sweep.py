"""Sweep the learning rate by training dozens of networks at once, in one ``vmap``.

An optimizer that is a pure function can be batched like any other function. Here ``vmap`` runs
one training step for all networks together: each has its own parameters, its own optimizer
state and its own learning rate, and all of them see the same images.

Run it with ``python examples/ensemble_sweep.py``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from _digits import (
    DARK,
    GREEN,
    ORANGE,
    SKY,
    Digits,
    accuracy,
    load,
    network,
    new_plot,
    save_plot,
    shuffled_batches,
)
from matplotlib.ticker import PercentFormatter
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import functional_adamax as fa

Params = dict[str, Tensor]

model = network()  # only its structure counts here: the parameters are passed as an argument


def loss_of(params: Params, images: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(functional_call(model, params, (images,)), labels)


def accuracy_of(params: Params, images: Tensor, labels: Tensor) -> Tensor:
    return accuracy(functional_call(model, params, (images,)), labels)


def train_step(
    params: Params, state: fa.AdamaxState, lr: Tensor, images: Tensor, labels: Tensor
) -> tuple[Params, fa.AdamaxState]:
    """Take one step of one network. Nothing here knows that there are many."""
    tx = fa.adamax(lr=lr)
    grads = grad(loss_of)(params, images, labels)
    updates, state = tx.update(grads, state, params)
    return fa.apply_updates(params, updates), state


# Every network has its own params, state and lr (0: batched); the images are shared (None).
train_step_of_all = vmap(train_step, in_dims=(0, 0, 0, None, None))
accuracy_of_all = vmap(accuracy_of, in_dims=(0, None, None))


def sweep(lrs: Tensor, digits: Digits, epochs: int) -> tuple[Params, list[Tensor]]:
    """Train one network for each learning rate, all from the same initial weights.

    Returns their parameters, stacked, and their validation accuracies after each epoch.
    """
    params, _ = stack_module_state([network() for _ in lrs])
    params = {name: p.detach() for name, p in params.items()}  # torch.func does the gradients
    state = vmap(fa.adamax().init)(params)  # the state does not depend on the learning rate
    accuracies = []
    for epoch in tqdm(range(epochs), desc=f"{len(lrs)} networks", unit="epoch"):
        for images, labels in shuffled_batches(digits.train, epoch):
            params, state = train_step_of_all(params, state, lrs, images, labels)
        accuracies.append(accuracy_of_all(params, *digits.validation))
    return params, accuracies


def train_alone(lr: Tensor, digits: Digits, epochs: int) -> Params:
    """Train one network with the same step, without ``vmap``, to compare."""
    params = {name: p.detach().clone() for name, p in network().named_parameters()}
    state = fa.adamax().init(params)
    for epoch in range(epochs):
        for images, labels in shuffled_batches(digits.train, epoch):
            params, state = train_step(params, state, lr, images, labels)
    return params


def plot(lrs: Tensor, accuracies: list[Tensor], best: int, path: Path) -> None:
    """Draw accuracy against learning rate: early, midway and at the end."""
    last = len(accuracies)
    figure, (ax,) = new_plot(f"{len(lrs)} learning rates in one vmap")
    looks = {1: (SKY, "o"), (last + 1) // 2: (ORANGE, "s"), last: (DARK, "D")}
    for epoch, (color, marker) in looks.items():
        label = f"after {epoch} epoch{'s' if epoch > 1 else ''}"
        ax.plot(lrs, accuracies[epoch - 1], marker, linestyle="-", color=color, label=label)
    top = accuracies[-1][best].item()
    ax.plot(
        lrs[best],
        top,
        "*",
        color=GREEN,
        markersize=20,
        markeredgecolor="white",
        label=f"best: {top:.1%} at lr = {lrs[best]:.2g}",
    )
    ax.set(xlabel="learning rate", ylabel="validation accuracy", xscale="log", ylim=(0, 1.05))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    save_plot(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sweep the learning rate in one vmap.")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--networks", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the plot goes")
    args = parser.parse_args()

    torch.set_num_threads(1)  # with so small networks, threads wait for one another on a busy CPU
    digits = load()
    lrs = torch.logspace(-4, 0, args.networks)
    start = time.perf_counter()
    params, accuracies = sweep(lrs, digits, args.epochs)
    middle = time.perf_counter()

    # The best is chosen on the validation images; how good it is, the test images must say.
    best = int(accuracies[-1].argmax())
    best_params = {name: p[best] for name, p in params.items()}
    print(f"\nbest learning rate:  {lrs[best]:.5f}")
    print(f"validation accuracy: {accuracies[-1][best]:.2%}")
    print(f"test accuracy:       {accuracy_of(best_params, *digits.test):.2%}")

    alone = train_alone(lrs[best], digits, args.epochs)
    end = time.perf_counter()
    difference = max((alone[name] - p).abs().max().item() for name, p in best_params.items())
    print(f"\n{len(lrs)} networks took {middle - start:.2f} s together, the best took ", end="")
    print(f"{end - middle:.2f} s alone.")
    print(f"Trained alone, its parameters differ by at most {difference:.1e}.")
    plot(lrs, accuracies, best, args.out / "ensemble_sweep.png")


if __name__ == "__main__":
    main()
