"""The chain that is measured: beside its like elsewhere, and under what wraps chains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timing
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from trees import (
    BETAS,
    EPS,
    HYPER,
    LR,
    Algorithms,
    Build,
    Classic,
    Shape,
    classic,
    optax_step,
    ours,
    present,
    pytorch_optimizer,
    torchopt_step,
)

import functional_adamax as fa
from functional_adamax import GradientTransformation
from functional_adamax.compat import Optimizer

NORM, DECAY = 1.0, 1e-2
BYTES = timing.STEP_BYTES + timing.READ_BYTES  # the norm reads the gradient once more
TORCH, OPTAX = "clip_grad_norm_, torch.optim.Adamax", "optax.chain"
FEW = 10  # tensors, for which torch.compile takes seconds
GROUPS = 10


class Clipped(Classic):
    """An optimizer of torch after ``clip_grad_norm_``, which writes to gradients of its own."""

    def __init__(
        self, make: Callable[[Any], Any], compiled: bool, start: list[Tensor], grads: list[Tensor]
    ) -> None:
        super().__init__(make, start, grads)
        advance = self.step

        def step() -> None:
            clip_grad_norm_(self.leaves, NORM)
            advance()

        self.step = torch.compile(step) if compiled else step

    def feed(self, grads: list[Tensor]) -> None:
        super().feed([g.clone() for g in grads])


def clipped(make: Callable[..., Any], compiled: bool = False, **hyper: Any) -> Build:
    return partial(Clipped, partial(make, **HYPER, weight_decay=DECAY, **hyper), compiled)


def recipe(lr: float | Callable[[Any], Any] = LR) -> GradientTransformation:
    return fa.chain(
        fa.clip_by_global_norm(NORM),
        fa.scale_by_adamax(BETAS, EPS),
        fa.add_decayed_weights(DECAY),
        fa.scale_by_learning_rate(lr),
    )


def optax_recipe(optax: Any) -> Any:
    return optax.chain(
        optax.clip_by_global_norm(NORM),
        optax.scale_by_adamax(*BETAS, EPS),
        optax.add_decayed_weights(DECAY),
        optax.scale_by_learning_rate(LR),
    )


def torchopt_recipe(torchopt: Any) -> Any:
    clip = torchopt.clip_grad_norm(NORM)
    return torchopt.chain(clip, torchopt.adamax(**HYPER, weight_decay=DECAY))


DECOUPLED = present(
    {
        "compat.Optimizer": classic(Optimizer, factory=recipe, lr=LR),
        "fa.step, donated": partial(ours, recipe(), True),
        "fa.step, pure": partial(ours, recipe(), False),
        "pytorch_optimizer.AdaMax, clipped": clipped(
            pytorch_optimizer("AdaMax"), weight_decouple=True
        ),
        f"{OPTAX}, jit, donated": partial(optax_step, optax_recipe, True),
        f"{OPTAX}, jit": partial(optax_step, optax_recipe, False),
    }
)
COUPLED = present(
    {
        f"{TORCH}(foreach=False)": clipped(torch.optim.Adamax, foreach=False),
        f"{TORCH}(foreach=True)": clipped(torch.optim.Adamax, foreach=True),
        "torchopt.chain, inplace=False": partial(torchopt_step, torchopt_recipe),
    }
)
COMPILED = {"torch.compile of torch's two": clipped(torch.optim.Adamax, compiled=True)}


def contenders(shapes: list[Shape]) -> Algorithms:
    return [DECOUPLED, COUPLED | COMPILED if len(shapes) <= FEW else COUPLED]


def in_groups(couple: str, params: list[Any]) -> Optimizer:
    groups = [{"params": params[i::GROUPS]} for i in range(min(GROUPS, len(params)))]
    return Optimizer(groups, recipe, lr=LR, couple=couple)


def variants(shapes: list[Shape]) -> list[Algorithms]:
    """What is timed together: first the plain form, which the others are compared with."""
    schedule = fa.cosine_decay_schedule(LR, 10_000)
    labels = [("even", "odd")[i % 2] for i in range(len(shapes))]
    labelled = fa.partition({"even": recipe(), "odd": recipe()}, labels)
    injected = fa.inject_hyperparams(recipe)(lr=LR)
    return [
        [
            {
                "adamax, wrapped": classic(Optimizer, factory=fa.adamax, **HYPER),
                "adamax with a schedule, wrapped": classic(
                    Optimizer, factory=fa.adamax, **HYPER | {"lr": schedule}
                ),
            }
        ],
        [
            {
                "adamax, donated": partial(ours, fa.adamax(**HYPER), True),
                "adamax with a schedule, donated": partial(
                    ours, fa.adamax(**HYPER | {"lr": schedule}), True
                ),
            }
        ],
        [
            {
                "chain, wrapped": classic(Optimizer, factory=recipe, lr=LR),
                "chain with a schedule, wrapped": classic(Optimizer, factory=recipe, lr=schedule),
                "chain over 10 groups, coupled, wrapped": classic(partial(in_groups, "all")),
                "chain under inject_hyperparams, wrapped": classic(Optimizer, factory=injected),
            },
            {"chain in each of 10 groups, wrapped": classic(partial(in_groups, "group"))},
            {"chain under partition, wrapped": classic(Optimizer, factory=labelled)},
        ],
        [
            {
                "chain, donated": partial(ours, recipe(), True),
                "chain with a schedule, donated": partial(ours, recipe(schedule), True),
                "chain under inject_hyperparams, donated": partial(ours, injected, True),
            },
            {"chain under partition, donated": partial(ours, labelled, True)},
        ],
    ]
