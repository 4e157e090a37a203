"""The methods beside optax's, in float64, where the formulas are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import functional_adamax as fa

jax = pytest.importorskip("jax", reason="optax is not installed")
optax = pytest.importorskip("optax", reason="optax is not installed")
LR, WD = 0.05, 0.1
SGD = {"learning_rate": LR, "momentum": 0.9}
BETAS, B1_B2 = (0.8, 0.95), {"b1": 0.8, "b2": 0.95}


def rms(**options: Any) -> Any:
    return optax.rmsprop(LR, decay=0.9, eps=1e-3, eps_in_sqrt=False, **options)


def sign_adamax() -> Any:
    return optax.chain(
        optax.scale_by_sign(),
        optax.scale_by_adamax(**B1_B2, eps=1e-3),
        optax.scale_by_learning_rate(LR),
    )


PAIRS: dict[str, tuple[fa.GradientTransformation, Callable[[], Any]]] = {
    "sgd": (fa.sgd(LR), lambda: optax.sgd(LR)),
    "sgd-momentum": (fa.sgd(LR, 0.9), lambda: optax.sgd(**SGD)),
    "sgd-nesterov": (fa.sgd(LR, 0.9, nesterov=True), lambda: optax.sgd(**SGD, nesterov=True)),
    "sgd-decay": (
        fa.sgd(LR, 0.9, weight_decay=WD),
        lambda: optax.chain(optax.add_decayed_weights(WD), optax.sgd(**SGD)),
    ),
    "adam": (fa.adam(LR, BETAS, 1e-3), lambda: optax.adam(LR, **B1_B2, eps=1e-3)),
    "adam-decay": (
        fa.adam(LR, BETAS, 1e-3, WD),
        lambda: optax.chain(optax.add_decayed_weights(WD), optax.adam(LR, **B1_B2, eps=1e-3)),
    ),
    "adam-schedule": (
        fa.adam(lambda count: LR * 0.9 ** count.double(), BETAS),
        lambda: optax.adam(lambda count: LR * jax.numpy.float64(0.9) ** count, **B1_B2),
    ),
    "adamw": (
        fa.adamw(LR, BETAS, 1e-3, WD),
        lambda: optax.adamw(LR, **B1_B2, eps=1e-3, weight_decay=WD),
    ),
    "scale_by_adam": (fa.scale_by_adam(BETAS), lambda: optax.scale_by_adam(**B1_B2)),
    "rmsprop": (fa.rmsprop(LR, 0.9, 1e-3), rms),
    "rmsprop-momentum": (
        fa.rmsprop(LR, 0.9, 1e-3, momentum=0.5),
        lambda: rms(momentum=0.5),
    ),
    "rmsprop-centered": (
        fa.rmsprop(LR, 0.9, 1e-3, centered=True),
        lambda: rms(centered=True),
    ),
    "scale_by_rms": (
        fa.scale_by_rms(0.9),
        lambda: optax.scale_by_rms(0.9, eps_in_sqrt=False),
    ),
    "lion": (
        fa.lion(LR, BETAS, WD),
        lambda: optax.lion(LR, **B1_B2, weight_decay=WD),
    ),
    "scale_by_lion": (fa.scale_by_lion(BETAS), lambda: optax.scale_by_lion(**B1_B2)),
    # where u and sqrt(v) are both |g|, Nadamax is Nadam
    "scale_by_nadamax": (
        fa.scale_by_nadamax((0.8, 0.0), 0.0),
        lambda: optax.scale_by_adam(0.8, 0.0, 0.0, nesterov=True),
    ),
    "scale_by_amsmax": (
        fa.scale_by_amsmax(0.8, 1e-3),
        lambda: optax.scale_by_adamax(0.8, 1.0, 1e-3),
    ),
    "scale_by_sign": (fa.scale_by_sign(), lambda: optax.scale_by_sign()),
    "chain-sign-adamax": (
        fa.chain(
            fa.scale_by_sign(),
            fa.scale_by_adamax(BETAS, 1e-3),
            fa.scale_by_learning_rate(LR),
        ),
        sign_adamax,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_way_is_that_of_optax(name: str) -> None:
    tx, make = PAIRS[name]
    random = np.random.default_rng(0)
    start = {"w": random.normal(size=(4, 3)), "b": random.normal(size=())}
    ours = {k: torch.tensor(x, dtype=torch.float64) for k, x in start.items()}
    theirs = {k: jax.numpy.asarray(x) for k, x in start.items()}
    other, state = make(), tx.init(ours)
    other_state = other.init(theirs)
    for _ in range(30):
        grads = {k: random.normal(size=np.shape(x)) for k, x in start.items()}
        given = {k: torch.tensor(g, dtype=torch.float64) for k, g in grads.items()}
        ours, state = fa.step(tx, given, state, ours)
        updates, other_state = other.update(
            {k: jax.numpy.asarray(g) for k, g in grads.items()}, other_state, theirs
        )
        theirs = optax.apply_updates(theirs, updates)
        for k, x in theirs.items():
            np.testing.assert_allclose(ours[k].numpy(), np.asarray(x), rtol=1e-9, atol=1e-10)
