"""The table of transforms that the laws run over.

A recipe makes its transform from named hyperparameters, so that a law can hand them over as
numbers or as tensors that are batched, traced or differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import functional_adamax as fa

RATES = {"lr": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-2, "weight_decay": 0.1}


@dataclass(frozen=True)
class Recipe:
    name: str
    make: Callable[..., fa.GradientTransformation]
    hyper: dict[str, float] = field(default_factory=dict)
    excused: dict[str, str] = field(default_factory=dict)  # law: reason

    def __str__(self) -> str:
        return self.name

    def default(self) -> fa.GradientTransformation:
        return self.make(**self.hyper)

    def tensors(self, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(value, dtype=dtype) for name, value in self.hyper.items()}


def decaying(base: Any, count: torch.Tensor) -> Any:
    return base * 0.5**count


def adamax(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any, make=fa.adamax, **options: Any):
    return make(lr, (b1, b2), eps, weight_decay, **options)


def adamax_scheduled(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any, make=fa.adamax):
    return make(partial(decaying, lr), (b1, b2), eps, weight_decay)


def direction(b1: Any, b2: Any, eps: Any):
    return fa.scale_by_adamax((b1, b2), eps)


def coupled(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any):
    return fa.chain(
        fa.add_decayed_weights(weight_decay),
        fa.scale_by_adamax((b1, b2), eps),
        fa.scale_by_learning_rate(lr),
    )


def decoupled(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any):
    return fa.chain(
        fa.scale_by_adamax((b1, b2), eps),
        fa.add_decayed_weights(weight_decay),
        fa.scale_by_learning_rate(partial(decaying, lr)),
    )


def nested(lr: Any, b1: Any, b2: Any, eps: Any):
    return fa.chain(fa.chain(direction(b1, b2, eps), fa.identity()), fa.scale(lr), fa.chain())


def scheduled_rate(lr: Any):
    return fa.scale_by_learning_rate(partial(decaying, lr))


def _only(*names: str) -> dict[str, float]:
    return {name: RATES[name] for name in names}


RECIPES = [
    Recipe("adamax", adamax, RATES),
    Recipe("adamax-maximize", partial(adamax, maximize=True), RATES),
    Recipe("adamax-float64-state", partial(adamax, state_dtype=torch.float64), RATES),
    Recipe("adamax-bounded", partial(adamax, derivative_floor=1e-3), RATES),
    Recipe("adamax-schedule", adamax_scheduled, RATES),
    Recipe("adamaxw", partial(adamax, make=fa.adamaxw), RATES),
    Recipe("adamaxw-schedule", partial(adamax_scheduled, make=fa.adamaxw), RATES),
    Recipe("scale_by_adamax", direction, _only("b1", "b2", "eps")),
    Recipe("add_decayed_weights", fa.add_decayed_weights, _only("weight_decay")),
    Recipe("scale", fa.scale, {"factor": -0.3}),
    Recipe("scale_by_learning_rate", fa.scale_by_learning_rate, _only("lr")),
    Recipe("scale_by_learning_rate-schedule", scheduled_rate, _only("lr")),
    Recipe("identity", fa.identity),
    Recipe("chain-coupled", coupled, RATES),
    Recipe("chain-decoupled", decoupled, RATES),
    Recipe("chain-nested", nested, _only("lr", "b1", "b2", "eps")),
]
