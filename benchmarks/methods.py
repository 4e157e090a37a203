"""The methods that are measured, wrapped and donated, each with its like elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from timing import MOMENT_BYTES, STEP_BYTES
from torch import optim
from trees import (
    BETAS,
    EPS,
    HYPER,
    LR,
    Algorithms,
    Build,
    classic,
    optax_step,
    ours,
    present,
    pytorch_optimizer,
    torchopt_step,
)

import functional_adamax as fa
from functional_adamax.compat import Optimizer

DECAY, MOMENTUM, ALPHA, LION = 1e-2, 0.9, 0.99, (0.9, 0.99)
WRAPPED, DONATED = "compat.Optimizer", "fa.step, donated"
FOREACH, FUSED = "torch, foreach", "torch, fused"
PYTORCH_OPTIMIZER, TORCHOPT, OPTAX = "pytorch_optimizer", "torchopt", "optax, jit, donated"
PEERS = (FOREACH, FUSED, PYTORCH_OPTIMIZER, TORCHOPT, OPTAX)


class Method(NamedTuple):
    """A method of ours, and others."""

    factory: Callable[..., Any]
    hyper: dict[str, Any]
    moved: int  # bytes of memory traffic for an element
    same: dict[str, Build]  # that method elsewhere
    near: dict[str, Build]  # others that move as many bytes, where it is not there

    def contenders(self) -> Algorithms:
        own: dict[str, Build] = {
            WRAPPED: classic(Optimizer, factory=self.factory, **self.hyper),
            DONATED: partial(ours, self.factory(**self.hyper), True),
        }
        return [own | present(self.same), *({k: v} for k, v in present(self.near).items())]


def of_torch(make: Callable[..., Any], fused: bool = False, **hyper: Any) -> dict[str, Build]:
    forms = {FOREACH: classic(make, foreach=True, **hyper)}
    return forms | {FUSED: classic(make, fused=True, **hyper)} if fused else forms


def of_torchopt(name: str, **hyper: Any) -> dict[str, Build]:
    return {TORCHOPT: partial(torchopt_step, lambda x: getattr(x, name)(**hyper))}


def of_optax(name: str, **hyper: Any) -> dict[str, Build]:
    return {OPTAX: partial(optax_step, lambda x: getattr(x, name)(LR, **hyper), True)}


DECAYED = HYPER | {"weight_decay": DECAY}
ADAM = {"b1": BETAS[0], "b2": BETAS[1], "eps": EPS}  # in the words of optax
TWO, ONE = STEP_BYTES, STEP_BYTES - MOMENT_BYTES

METHODS = {
    "adamw": Method(
        fa.adamw,
        DECAYED,
        TWO,
        of_torch(optim.AdamW, fused=True, **DECAYED)
        | of_torchopt("adamw", **DECAYED)
        | of_optax("adamw", **ADAM, weight_decay=DECAY),
        {},
    ),
    "adamaxw": Method(
        fa.adamaxw,
        DECAYED,
        TWO,
        {PYTORCH_OPTIMIZER: classic(pytorch_optimizer("AdaMax"), **DECAYED, weight_decouple=True)}
        | of_optax("adamaxw", **ADAM, weight_decay=DECAY),
        of_torch(optim.Adamax, **DECAYED) | of_torchopt("adamax", **DECAYED),
    ),
    "nadamax": Method(
        fa.nadamax, HYPER, TWO, {}, of_torch(optim.NAdam, **HYPER) | of_optax("nadam", **ADAM)
    ),
    "lion": Method(
        fa.lion,
        {"lr": LR, "betas": LION},
        ONE,
        {PYTORCH_OPTIMIZER: classic(pytorch_optimizer("Lion"), lr=LR, betas=LION)}
        | of_optax("lion", b1=LION[0], b2=LION[1], weight_decay=0.0),
        {},
    ),
    "sgd, momentum": Method(
        fa.sgd,
        {"lr": LR, "momentum": MOMENTUM},
        ONE,
        of_torch(optim.SGD, fused=True, lr=LR, momentum=MOMENTUM)
        | {PYTORCH_OPTIMIZER: classic(pytorch_optimizer("SGDW"), lr=LR, momentum=MOMENTUM)}
        | of_torchopt("sgd", lr=LR, momentum=MOMENTUM)
        | of_optax("sgd", momentum=MOMENTUM),
        {},
    ),
    "rmsprop": Method(
        fa.rmsprop,
        {"lr": LR, "alpha": ALPHA, "eps": EPS},
        ONE,
        of_torch(optim.RMSprop, lr=LR, alpha=ALPHA, eps=EPS)
        | of_torchopt("rmsprop", lr=LR, alpha=ALPHA, eps=EPS)
        | of_optax("rmsprop", decay=ALPHA, eps=EPS, eps_in_sqrt=False),
        {},
    ),
}
