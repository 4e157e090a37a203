"""Learn to learn: tell new handwritten digits apart after four steps on five images of each.

A task of few-shot classification shows five images (the support) of each of four digits. The
network takes four Adamax steps on them and is judged on other images (the query) of the same
digits. What it learns beforehand, it learns from the digits 0 to 5, each turned by any quarter
turn, as the characters of Omniglot are; the methods are compared on 6, 7, 8 and 9, upright.

MAML learns where to start, and a rate for the weight and the bias of each layer, by differentiating
through the four steps. First-order MAML takes the gradients in these steps as constants. They
compete with

- pre-training: a network that tells the training classes (a digit and a turn) apart takes the
  four steps from there with a new head of zeros, on all layers or on the head only;
- fresh weights: the steps start from the random weights that MAML had at first.

These use one rate, the best of a grid for each number of steps, as tasks of the training digits
tell, on images kept back for it. The last column shows what the best rate in hindsight, on the
tasks that judge, would give them.

MAML leads where steps are few: after four, pre-training is six points behind, with these digits,
and seven to twelve with three other choices of four (``--held-out``) that nothing was tuned on.
Fresh weights, at a good rate, come closer, and after ten steps they have caught up, for these
images are easy enough to be told apart from scratch.

Run it with ``python examples/few_shot.py``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import torch
from _digits import (
    DARK,
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    Part,
    accuracy,
    network,
    new_plot,
    save_plot,
)
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm

import functional_adamax as fa

WAY, SHOTS, QUERIES = 4, 5, 10  # digits in a task; of each, images to learn from and to judge by
STEPS, MORE_STEPS = 4, 10  # of the inner loop; as far as the plot goes
HIDDEN = (64, 64, 64)  # the pixels, then the widths of the hidden layers
HEAD = ("4.weight", "4.bias")
RATES = torch.logspace(-2.5, -0.5, 9)  # the grid for the methods that do not learn theirs
FIRST_RATE = 0.05  # of MAML's inner loop, before it learns better ones

Params = dict[str, Tensor]

model = network(widths=(*HIDDEN, WAY))  # only its structure counts here


class Task(NamedTuple):
    support: Part  # WAY * SHOTS images
    query: Part  # WAY * QUERIES images


class Learner(NamedTuple):
    """What MAML learns, and what every method adapts with. Stacked: one for each seed."""

    params: Params
    log_rates: Params  # a number for each tensor of params


class Banks(NamedTuple):
    """Images by class, (turns, digits, images of each, 64 pixels), for three purposes."""

    train: Tensor  # to learn from: turned
    choice: Tensor  # to choose rates with: other images of the same classes
    test: Tensor  # to judge by: other digits, upright


class Result(NamedTuple):
    """Mean accuracy over the test tasks of a seed after 0, 1, 2, ... steps: (seeds, 1 + steps)."""

    curves: Tensor
    hindsight: Tensor | None = None  # with the best rates for these very tasks


def load_banks(held_out: list[int]) -> Banks:
    pixels, labels = load_digits(return_X_y=True)
    upright = torch.stack([torch.tensor(pixels[labels == digit][:174]) for digit in range(10)])
    squares = upright.float().unflatten(-1, (8, 8)) / 16
    turned = torch.stack([squares.rot90(turn, (-2, -1)).flatten(-2) for turn in range(4)])
    known = [digit for digit in range(10) if digit not in held_out]
    return Banks(turned[:, known, :120], turned[:, known, 120:], turned[:1, held_out])


def draw(bank: Tensor, seeds: int, tasks: int, generator: torch.Generator) -> Task:
    """Draw tasks, stacked: WAY digits, a turn for each, and then images of these classes."""
    turns, digits, images, _ = bank.shape
    digit = torch.rand(seeds, tasks, digits, generator=generator).argsort(-1)[..., :WAY, None]
    turn = torch.randint(turns, (seeds, tasks, WAY, 1), generator=generator)
    image = torch.rand(seeds, tasks, WAY, images, generator=generator).argsort(-1)
    drawn = bank[turn, digit, image[..., : SHOTS + QUERIES]]
    labels = torch.arange(WAY).expand(seeds, tasks, WAY)
    support, query = (
        Part(part.flatten(2, 3), labels.repeat_interleave(part.shape[3], -1))
        for part in drawn.split([SHOTS, QUERIES], 3)
    )
    return Task(support, query)


def initial(seeds: int, classes: int) -> Params:
    params, _ = stack_module_state([network(seed, (*HIDDEN, classes)) for seed in range(seeds)])
    return {name: p.detach() for name, p in params.items()}


def loss_of(params: Params, part: Part) -> Tensor:
    return cross_entropy(functional_call(model, params, (part.images,)), part.labels)


def accuracy_of(params: Params, part: Part) -> Tensor:
    return accuracy(functional_call(model, params, (part.images,)), part.labels)


def inner(learner: Learner) -> fa.GradientTransformation:
    """The optimizer of the inner loop.

    Where a gradient is zero, the derivative of its step is about 1 / eps. So eps is large.
    """
    return fa.adamax({name: log.exp() for name, log in learner.log_rates.items()}, eps=0.01)


def cosine(peak: float, iterations: int) -> Callable[[Tensor], Tensor]:
    return lambda count: peak * (1 + torch.cos(math.pi * count / iterations)) / 2


def outer_loss(learner: Learner, task: Task, first_order: bool) -> Tensor:
    """The loss on the query after the steps on the support."""
    steps = repeat(task.support, STEPS)
    end = fa.unroll(loss_of, inner(learner), learner.params, steps, first_order=first_order)
    return loss_of(end.params, task.query)


def outer_gradient(learner: Learner, tasks: Task, first_order: bool) -> tuple[Learner, Tensor]:
    """The gradient of the mean outer loss over the tasks, and that loss.

    First the gradient of each task, then their mean: from outside of ``vmap``, torch's second
    derivatives of some layers, such as layer norms, are wrong.
    """
    of_each = grad_and_value(partial(outer_loss, first_order=first_order))
    grads, losses = vmap(of_each, (None, 0))(learner, tasks)
    mean = Learner(*({name: g.mean(0) for name, g in part.items()} for part in grads))
    return mean, losses.mean()


def meta_train(learners: Learner, bank: Tensor, iterations: int, first_order: bool) -> Learner:
    """Descend on the outer loss of fresh tasks, with all seeds at once."""
    # Best on classes that were held out of the training classes.
    tx = fa.adamax(cosine(0.0003 if first_order else 0.001, iterations))

    def meta_step(
        learner: Learner, state: fa.ScheduledState, tasks: Task
    ) -> tuple[Learner, fa.ScheduledState, Tensor]:
        grads, loss = outer_gradient(learner, tasks, first_order)
        return *fa.step(tx, grads, state, learner), loss

    state = vmap(tx.init)(learners)
    generator = torch.Generator().manual_seed(0)
    seeds = len(learners.params[HEAD[0]])
    with tqdm(range(iterations), desc="first-order MAML" if first_order else "MAML") as bar:
        for _ in bar:
            tasks = draw(bank, seeds, 8, generator)
            learners, state, loss = vmap(meta_step)(learners, state, tasks)
            bar.set_postfix(loss=f"{loss.mean():.3f}")
    return learners


def pre_train(bank: Tensor, seeds: int, iterations: int) -> tuple[Params, float]:
    """Learn to tell all classes of the bank apart.

    Returns the parameters with a new head of zeros, and the accuracy on the images of the bank.
    """
    images, classes = bank.flatten(0, 1), bank.shape[:2].numel()
    everything = Part(
        images.flatten(0, 1), torch.arange(classes).repeat_interleave(images.shape[1])
    )
    params = initial(seeds, classes)
    tx = fa.adamax(cosine(0.01, iterations))

    def train_step(
        params: Params, state: fa.ScheduledState, batch: Part
    ) -> tuple[Params, fa.ScheduledState]:
        grads, _ = grad_and_value(loss_of)(params, batch)
        return fa.step(tx, grads, state, params)

    state = vmap(tx.init)(params)
    generator = torch.Generator().manual_seed(0)
    for _ in tqdm(range(iterations), desc="pre-training"):
        rows = torch.randint(len(everything.labels), (seeds, 64), generator=generator)
        batch = Part(everything.images[rows], everything.labels[rows])
        params, state = vmap(train_step)(params, state, batch)
    share = vmap(accuracy_of, (0, None))(params, everything).mean().item()
    new_head = {"4.weight": torch.zeros(seeds, WAY, HIDDEN[-1]), "4.bias": torch.zeros(seeds, WAY)}
    return params | new_head, share


def adapt(learner: Learner, task: Task) -> Tensor:
    """Return the accuracy on the query after 0, 1, 2, ... steps on the support."""
    params, state = learner.params, None
    accuracies = [accuracy_of(params, task.query)]
    for _ in range(MORE_STEPS):
        params, state, *_ = fa.unroll(loss_of, inner(learner), params, [task.support], state=state)
        accuracies.append(accuracy_of(params, task.query))
    return torch.stack(accuracies)


@torch.no_grad()
def evaluate(learners: Learner, tasks: Task) -> Tensor:
    return vmap(vmap(adapt, (None, 0)))(learners, tasks).mean(1)


def with_rates(params: Params, rate: Tensor, only: tuple[str, ...] = ()) -> Learner:
    """Return learners with the same rate for every layer, or zero for all but ``only`` some."""
    rates = {name: rate if not only or name in only else torch.zeros(()) for name in params}
    seeds = len(params[HEAD[0]])
    return Learner(params, {name: rate.log().expand(seeds) for name, rate in rates.items()})


def best_rates(name: str, candidates: list[Learner], choice: Task, test: Task) -> Result:
    """Evaluate with the rate of the grid that, for the number of steps, is best on ``choice``."""
    chosen, judged = (
        torch.stack([evaluate(learners, tasks) for learners in tqdm(candidates, desc=desc)])
        for desc, tasks in ((f"{name}: choosing a rate", choice), (name, test))
    )
    return Result(judged.gather(0, chosen.argmax(0, keepdim=True))[0], judged.amax(0))


def compare(seeds: int, iterations: int, held_out: list[int]) -> tuple[dict[str, Result], Banks]:
    banks = load_banks(held_out)
    choice = draw(banks.choice, seeds, 50, torch.Generator().manual_seed(1))
    test = draw(banks.test, seeds, 100, torch.Generator().manual_seed(2))
    fresh = initial(seeds, WAY)
    start = with_rates(fresh, torch.tensor(FIRST_RATE))
    pre_trained, share = pre_train(banks.train, seeds, 1500)
    print(f"The pre-trained networks classify {share:.1%} of their training images.")
    results = {
        name: Result(evaluate(meta_train(start, banks.train, iterations, first_order), test))
        for name, first_order in (("MAML", False), ("first-order MAML", True))
    }
    for name, params, layers in (
        ("pre-trained, all layers", pre_trained, ()),
        ("pre-trained, head only", pre_trained, HEAD),
        ("fresh weights", fresh, ()),
    ):
        candidates = [with_rates(params, rate, layers) for rate in RATES]
        results[name] = best_rates(name, candidates, choice, test)
    return results, banks


def spread(accuracies: Tensor) -> str:
    deviation = f" +- {100 * accuracies.std():.1f}" if len(accuracies) > 1 else ""
    return f"{100 * accuracies.mean():.1f}%{deviation}"


def print_table(results: dict[str, Result]) -> None:
    seeds = len(results["MAML"].curves)
    print(f"\nAccuracy on digits never trained on, mean over {seeds} seeds, +- standard deviation:")
    print(f"{'method':24}  {f'{STEPS} steps':>14}  {f'{MORE_STEPS} steps':>14}  ", end="")
    print(f"{f'{STEPS} steps, hindsight':>18}")
    print(f"{'MAML, not adapted':24}  {spread(results['MAML'].curves[:, 0]):>14}")
    for name, (curves, hindsight) in results.items():
        print(f"{name:24}  {spread(curves[:, STEPS]):>14}  {spread(curves[:, -1]):>14}", end="")
        print("" if hindsight is None else f"  {spread(hindsight[:, STEPS]):>18}")


def plot(results: dict[str, Result], banks: Banks, path: Path) -> None:
    """Draw accuracy against steps, with a band over the seeds, beside the images of two tasks."""
    figure, (left, right) = new_plot("Four digits never trained on, from five images of each", 2)
    for (name, (curves, _)), color in zip(
        results.items(), (DARK, SKY, ORANGE, PINK, GREEN), strict=True
    ):
        mean, deviation = curves.mean(0), curves.std(0, correction=0)
        left.plot(mean, "o-", color=color, markersize=4, label=name)
        steps = range(len(mean))
        left.fill_between(
            steps, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0
        )
    left.axvline(STEPS, color=GRAY, linestyle="--", zorder=0)
    left.set(xlabel="inner steps", ylabel="accuracy on the query")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    right.axis("off")
    generator = torch.Generator().manual_seed(3)
    for column, bank, title in ((0, banks.train, "meta-training"), (1, banks.test, "test")):
        shown = draw(bank, 1, 1, generator).support.images.view(WAY, SHOTS, 8, 8)
        framed = pad(shown, (1, 1, 1, 1)).transpose(1, 2).reshape(WAY * 10, SHOTS * 10)
        inset = right.inset_axes((0.52 * column, 0.1, 0.48, 0.8))
        inset.imshow(framed, cmap="gray_r")
        inset.set(title=f"a {title} task", xticks=[], yticks=[])
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    save_plot(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn to learn new digits from few images.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=200, help="of meta-training")
    parser.add_argument("--held-out", type=int, nargs=WAY, default=[6, 7, 8, 9], metavar="DIGIT")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the plot goes")
    args = parser.parse_args()

    torch.set_num_threads(1)  # with so small networks, threads wait for one another on a busy CPU
    results, banks = compare(args.seeds, args.iterations, args.held_out)
    print_table(results)
    plot(results, banks, args.out / "few_shot.png")


if __name__ == "__main__":
    main()
