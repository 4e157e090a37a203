"""Learn a rate for every layer from the derivative of the validation loss.

A network takes thirty Adamax steps on handwritten digits. Its loss on the validation images after
them is a function of the learning rates, so it has a gradient by them, the hypergradient, that
``fa.unroll`` makes available. Descending on it, in the logarithm of the rates, finds one for the
weight and the bias of every layer. Each iteration starts from initial weights and goes through
batches that no other has seen, so that the rates do not fit a single run.

What was learned is compared with the rate it began from, which is the default of Adamax, and with
the best single rate of a grid: on other initial weights and batches, by the loss on test images.
On this network, a rate for each layer is no better than one for all. But the descent, from a rate
far too small, ends about where the grid does, and finds that biases need only small rates.

Run it with ``python examples/learned_rates.py``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch
from _digits import (
    DARK,
    GRAY,
    ORANGE,
    SKY,
    Digits,
    Part,
    accuracy,
    load,
    network,
    new_plot,
    save_plot,
)
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import functional_adamax as fa

STEPS, BATCH = 30, 64
FIRST_RATE = 0.002
GRID = torch.logspace(-3, -1, 13)  # of single rates

Params = dict[str, Tensor]

model = network()  # only its structure counts here
NAMES = [name for name, _ in model.named_parameters()]


class Runs(NamedTuple):
    """Where training runs start and what they see, stacked."""

    params: Params
    batches: Part  # (runs, STEPS, BATCH, ...)


class Curves(NamedTuple):
    train: Tensor  # (runs, STEPS): loss on the batch before each step
    test: Tensor  # (runs, 1 + STEPS): loss on the test images after 0, 1, 2, ... steps
    accuracy: Tensor  # (runs,): on the test images after the last step


def new_runs(data: Part, seeds: range) -> Runs:
    """Return a run for each seed. Other seeds have other initial weights and other batches."""
    params, _ = stack_module_state([network(seed) for seed in seeds])
    generator = torch.Generator().manual_seed(seeds.start)
    rows = torch.randint(len(data.labels), (len(seeds), STEPS, BATCH), generator=generator)
    params = {name: p.detach() for name, p in params.items()}
    return Runs(params, Part(data.images[rows], data.labels[rows]))


def steps_of(batches: Part) -> list[Part]:
    """Return the batches of a run, one for each step."""
    return [Part(*step) for step in zip(batches.images, batches.labels, strict=True)]


def loss_of(params: Params, part: Part) -> Tensor:
    return cross_entropy(functional_call(model, params, (part.images,)), part.labels)


def inner(log_rates: Params) -> fa.GradientTransformation:
    """The optimizer whose rates are learned.

    Many gradients are zero, of pixels that are never lit and of units that are off. There the
    derivative of a step by its gradient is about 1 / eps, so eps is larger than usual.
    """
    return fa.adamax({name: log.exp() for name, log in log_rates.items()}, eps=1e-3)


def outer_loss(log_rates: Params, params: Params, batches: Part, data: Part) -> Tensor:
    """The loss on ``data`` after a run."""
    end = fa.unroll(loss_of, inner(log_rates), params, steps_of(batches))
    return loss_of(end.params, data)


over_runs = (None, 0, 0, None)  # in_dims of outer_loss


def learn(digits: Digits, iterations: int) -> Params:
    """Descend along the hypergradient, from the default rate of Adamax."""
    log_rates = single(torch.tensor(FIRST_RATE))
    tx = fa.adamax(lambda count: 0.1 * (1 + torch.cos(math.pi * count / iterations)) / 2)
    state = tx.init(log_rates)
    with tqdm(range(iterations), desc="learning rates") as bar:
        for i in bar:
            runs = new_runs(digits.train, range(4 * i, 4 * i + 4))
            slopes, losses = vmap(grad_and_value(outer_loss), over_runs)(
                log_rates, *runs, digits.validation
            )
            grads = {name: slope.mean(0) for name, slope in slopes.items()}
            log_rates, state = fa.step(tx, grads, state, log_rates)
            bar.set_postfix(loss=f"{losses.mean():.3f}")
    return log_rates


def single(rate: Tensor) -> Params:
    return {name: rate.log() for name in NAMES}


@torch.no_grad()
def best_single(digits: Digits, runs: Runs) -> Params:
    """Return the rate of the grid with the lowest validation loss after training."""
    after_training = vmap(outer_loss, over_runs)
    losses = [
        after_training(single(rate), *runs, digits.validation).mean()
        for rate in tqdm(GRID, desc="grid")
    ]
    return single(GRID[int(torch.stack(losses).argmin())])


@torch.no_grad()
def watch(log_rates: Params, runs: Runs, test: Part) -> Curves:
    """Train with the rates, and measure after each step."""

    def watched(params: Params, batches: Part) -> Curves:
        state, train, losses = None, [], [loss_of(params, test)]
        for batch in steps_of(batches):
            params, state, value, _ = fa.unroll(
                loss_of, inner(log_rates), params, [batch], state=state
            )
            train.append(value[0])
            losses.append(loss_of(params, test))
        scores = functional_call(model, params, (test.images,))
        return Curves(torch.stack(train), torch.stack(losses), accuracy(scores, test.labels))

    curves: Curves = vmap(watched)(*runs)
    return curves


def print_table(results: dict[str, Curves], learned: Params) -> None:
    runs = len(results["learned"].accuracy)
    print(f"\nAfter {STEPS} steps, mean of {runs} runs, +- standard deviation over them:")
    print(f"{'rates':22}  {'test loss':>16}  {'test accuracy':>13}")
    for name, curves in results.items():
        last = curves.test[:, -1]
        loss = f"{last.mean():.3f} +- {last.std():.3f}"
        print(f"{name:22}  {loss:>16}  {curves.accuracy.mean():13.1%}")
    print("\nlearned:", ", ".join(f"{name} {log.exp():.4f}" for name, log in learned.items()))
    initial, best, found = (curves.test[:, -1].mean() for curves in results.values())
    verdict = f"{abs(1 - found / best):.1%} {'below' if found < best else 'above'}"
    print(f"The test loss is {initial / found:.1f} times smaller than with the initial rate,")
    print(f"and {verdict} that of the best single rate of {len(GRID)}.")


def plot(results: dict[str, Curves], rates: dict[str, Params], path: Path) -> None:
    """Draw the loss during training, and the rate of each layer."""
    figure, (left, right) = new_plot("Learning rates learned by hypergradients", 2)
    for (name, curves), color in zip(results.items(), (SKY, ORANGE, DARK), strict=True):
        left.plot(curves.test.mean(0), color=color, linewidth=2, label=name)
        left.plot(curves.train.mean(0), ":", color=color)
        values = [log.exp() for log in rates[name].values()]
        right.plot(NAMES, values, "o" if name == "learned" else "--", color=color)
    left.plot([], [], ":", color=GRAY, label="dotted: on the batch, before its step")
    left.set(xlabel="step", ylabel="test loss", yscale="log")
    left.yaxis.set_major_formatter("{x:.1f}")
    left.yaxis.set_minor_formatter("{x:.1f}")
    right.set(ylabel="learning rate", yscale="log", ylim=(5e-4, 0.1))
    right.tick_params(axis="x", rotation=30)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    save_plot(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn a learning rate for every layer.")
    parser.add_argument("--iterations", type=int, default=100, help="of the outer loop")
    parser.add_argument("--runs", type=int, default=20, help="to compare with")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the plot goes")
    args = parser.parse_args()

    torch.set_num_threads(1)  # with so small networks, threads wait for one another on a busy CPU
    digits = load()
    learned = learn(digits, args.iterations)
    # Seeds from far above those that the rates were learned with; the grid has its own, too.
    best = best_single(digits, new_runs(digits.train, range(20_000, 20_000 + args.runs)))
    judges = new_runs(digits.train, range(10_000, 10_000 + args.runs))
    rates = {
        f"initial, {FIRST_RATE}": single(torch.tensor(FIRST_RATE)),
        f"best single, {best[NAMES[0]].exp():.2g}": best,
        "learned": learned,
    }
    results = {name: watch(log_rates, judges, digits.test) for name, log_rates in rates.items()}
    print_table(results, learned)
    plot(results, rates, args.out / "learned_rates.png")


if __name__ == "__main__":
    main()
