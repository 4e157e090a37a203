"""Change the optimizer in mid-run, three times, without the run noticing.

A training that ``torch.optim.Adamax`` began and saved is

1. resumed from the checkpoint by ``functional_adamax.compat.Adamax``, the drop-in class,
2. continued by ``fa.adamax``, the pure functions,
3. handed back to ``torch.optim.Adamax``, which finishes it.

Beside it runs one ``torch.optim.Adamax`` without interruption. In the end both have the same
losses and the same parameters, bit for bit.

Run it with ``python examples/switch_from_torch.py``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _digits import (
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    Part,
    load,
    network,
    new_plot,
    save_plot,
    shuffled_batches,
)
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from tqdm import tqdm

import functional_adamax as fa
from functional_adamax.compat import (
    Adamax,
    hyperparameters_from_torch,
    state_from_torch,
    state_to_torch,
)

# None of these is a default: a stage that lost one on the way would take another path.
HYPERPARAMETERS: dict[str, Any] = {
    "lr": 0.01,
    "betas": (0.85, 0.99),
    "eps": 1e-7,
    "weight_decay": 0.001,
}

STAGES = {
    "torch.optim.Adamax": SKY,
    "compat.Adamax": ORANGE,
    "fa.adamax": GREEN,
    "torch.optim.Adamax again": PINK,
}

Params = dict[str, Tensor]


def train(model: nn.Module, optimizer: Optimizer, batches: list[Part], bar: tqdm) -> list[float]:
    """Train in the loop everybody knows and return the loss of each batch."""
    losses = []
    for images, labels in batches:
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        bar.update()
    return losses


def begin_with_torch(batches: list[Part], checkpoint: Path, bar: tqdm) -> list[float]:
    """Stage 1: ``torch.optim.Adamax`` begins and saves a checkpoint."""
    model = network()
    optimizer = torch.optim.Adamax(model.parameters(), **HYPERPARAMETERS)
    losses = train(model, optimizer, batches, bar)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
    return losses


def resume_with_compat(batches: list[Part], checkpoint: Path, bar: tqdm) -> list[float]:
    """Stage 2: ``compat.Adamax`` resumes it. Only the name of the class is new."""
    saved = torch.load(checkpoint, weights_only=True)
    model = network()
    model.load_state_dict(saved["model"])
    optimizer = Adamax(model.parameters())  # the checkpoint brings the hyperparameters
    optimizer.load_state_dict(saved["optimizer"])
    losses = train(model, optimizer, batches, bar)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
    return losses


def continue_functionally(batches: list[Part], checkpoint: Path, bar: tqdm) -> list[float]:
    """Stage 3: ``fa.adamax`` continues, and saves what ``torch.optim.Adamax`` can load."""
    saved = torch.load(checkpoint, weights_only=True)
    model = network()  # only its structure counts here

    def loss_of(params: Params, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, params, (images,)), labels)

    params = saved["model"]
    state = state_from_torch(saved["optimizer"], params)
    tx = fa.adamax(**hyperparameters_from_torch(saved["optimizer"], params))
    losses = []
    for images, labels in batches:
        grads, loss = grad_and_value(loss_of)(params, images, labels)
        params, state = fa.step(tx, grads, state, params)
        losses.append(loss.item())
        bar.update()

    optimizer = state_to_torch(state, params, saved["optimizer"])
    torch.save({"model": params, "optimizer": optimizer}, checkpoint)
    return losses


def finish_with_torch(
    batches: list[Part], checkpoint: Path, bar: tqdm
) -> tuple[list[float], nn.Module]:
    """Stage 4: ``torch.optim.Adamax`` finishes, and never learns that it was away."""
    saved = torch.load(checkpoint, weights_only=True)
    model = network()
    model.load_state_dict(saved["model"])
    optimizer = torch.optim.Adamax(model.parameters())
    optimizer.load_state_dict(saved["optimizer"])
    return train(model, optimizer, batches, bar), model


def differences(
    losses: list[float], expected_losses: list[float], model: nn.Module, expected: nn.Module
) -> list[str]:
    """Compare the losses of all batches and all parameters, bit for bit."""
    found = [
        f"loss {i}: {loss!r}, without interruption {other!r}"
        for i, (loss, other) in enumerate(zip(losses, expected_losses, strict=True))
        if loss != other
    ]
    others = expected.state_dict()
    for name, p in model.state_dict().items():
        if not torch.equal(p, others[name]):
            found.append(f"{name}: differs by up to {(p - others[name]).abs().max().item():.1e}")
    return found


def plot(stages: list[list[float]], uninterrupted: list[float], path: Path) -> None:
    """Draw the uninterrupted run as a wide band, and over it each stage in its colour."""
    figure, (ax,) = new_plot("One training in four stages, and without interruption")
    steps = range(1, len(uninterrupted) + 1)
    ax.plot(
        steps, uninterrupted, color=GRAY, linewidth=9, label="torch.optim.Adamax, uninterrupted"
    )
    start = 0
    for (name, color), losses in zip(STAGES.items(), stages, strict=True):
        end = start + len(losses)
        ax.axvspan(start + 0.5, end + 0.5, color=color, alpha=0.12, linewidth=0)
        ax.plot(steps[start:end], losses, ".-", color=color, linewidth=2.5)
        middle = (start + end + 1) / 2
        ax.text(middle, 1.02, name, ha="center", transform=ax.get_xaxis_transform())
        start = end
    ax.set(xlabel="training step", ylabel="loss of the batch", yscale="log")
    ax.margins(x=0)
    ax.legend(loc="upper right", frameon=False)
    save_plot(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Change the optimizer in mid-run.")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each of the four stages")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the plot goes")
    args = parser.parse_args()

    torch.set_num_threads(1)  # the network is so small that a second thread would only wait
    data = load().train
    epochs = [shuffled_batches(data, epoch, size=256) for epoch in range(4 * args.epochs)]
    batches = [batch for epoch in epochs for batch in epoch]
    n = len(batches) // 4
    first, second, third, fourth = (batches[i * n : (i + 1) * n] for i in range(4))

    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=2 * len(batches), unit="step") as bar,
    ):
        expected = network()
        optimizer = torch.optim.Adamax(expected.parameters(), **HYPERPARAMETERS)
        uninterrupted = train(expected, optimizer, batches, bar)

        checkpoint = Path(folder) / "checkpoint.pt"
        stages = [
            begin_with_torch(first, checkpoint, bar),
            resume_with_compat(second, checkpoint, bar),
            continue_functionally(third, checkpoint, bar),
        ]
        last, model = finish_with_torch(fourth, checkpoint, bar)
        stages.append(last)

    print(f"\n{'stage':26}  {'steps':>5}  {'first loss':>10}  {'last loss':>9}")
    for name, losses in zip(STAGES, stages, strict=True):
        print(f"{name:26}  {len(losses):5}  {losses[0]:10.6f}  {losses[-1]:9.6f}")
    plot(stages, uninterrupted, args.out / "switch_from_torch.png")

    losses = [loss for stage in stages for loss in stage]
    different = differences(losses, uninterrupted, model, expected)
    if different:
        sys.exit("\nThe two runs are NOT bit-identical:\n" + "\n".join(different))
    print(
        f"\nAll {len(uninterrupted)} losses and all {len(model.state_dict())} parameters are "
        "bit-identical to those of the uninterrupted run."
    )


if __name__ == "__main__":
    main()
