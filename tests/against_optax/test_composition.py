"""The flagship and the composition beside optax's, in float64, over twelve steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import functional_adamax as fa
from functional_adamax._core import pytree

optax = pytest.importorskip("optax", reason="optax is not installed")
jax = pytest.importorskip("jax", reason="jax is not installed")

LR, WD, BETAS, EPS = 0.05, 0.1, (0.8, 0.95), 1e-3
MASK = {"a": True, "b": {"c": False, "d": True}}
LABELS = {"a": "fast", "b": {"c": "slow", "d": "slow"}}


def adamax(lr: Any = LR) -> Any:
    return optax.adamax(lr, *BETAS, EPS)


def ours(lr: Any = LR) -> fa.GradientTransformation:
    return fa.adamax(lr, BETAS, EPS)


def halving(count: torch.Tensor) -> torch.Tensor:
    return LR * 0.5 ** count.double()


def odd(count: Any) -> Any:
    return count % 2 == 1


PAIRS: dict[str, tuple[fa.GradientTransformation, Callable[[], Any]]] = {
    "adamax": (ours(), adamax),
    "adamax-schedule": (
        ours(halving),
        lambda: adamax(lambda count: LR * jax.numpy.float64(0.5) ** count),
    ),
    "adamaxw": (
        fa.adamaxw(LR, BETAS, EPS, WD),
        lambda: optax.adamaxw(LR, *BETAS, EPS, weight_decay=WD),
    ),
    "adamaxw-mask": (
        fa.chain(
            fa.scale_by_adamax(BETAS, EPS),
            fa.masked(fa.add_decayed_weights(WD), MASK),
            fa.scale_by_learning_rate(LR),
        ),
        lambda: optax.adamaxw(LR, *BETAS, EPS, weight_decay=WD, mask=MASK),
    ),
    "named_chain": (
        fa.named_chain(("clip", fa.clip(0.5)), ("adamax", ours())),
        lambda: optax.named_chain(("clip", optax.clip(0.5)), ("adamax", adamax())),
    ),
    "masked": (fa.masked(ours(), MASK), lambda: optax.masked(adamax(), MASK)),
    "partition": (
        fa.partition({"fast": ours(0.5), "slow": fa.set_to_zero()}, LABELS),
        lambda: optax.partition({"fast": adamax(0.5), "slow": optax.set_to_zero()}, LABELS),
    ),
    "freeze": (
        fa.chain(ours(), fa.freeze(MASK)),
        lambda: optax.chain(adamax(), optax.freeze(MASK)),
    ),
    "conditionally-pass": (
        fa.conditionally(ours(), odd),
        lambda: optax.conditionally_transform(adamax(), odd),
    ),
    "conditionally-zero": (
        fa.conditionally(ours(), odd, "zero"),
        lambda: optax.conditionally_mask(adamax(), odd),
    ),
    "inject_hyperparams": (
        fa.inject_hyperparams(fa.adamax)(LR, BETAS, EPS),
        lambda: optax.inject_hyperparams(optax.adamax)(LR, *BETAS, EPS),
    ),
    "stateless": (
        fa.stateless(lambda updates, params: {"a": -params["a"], "b": updates["b"]}),
        lambda: optax.stateless(lambda updates, params: {"a": -params["a"], "b": updates["b"]}),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_trajectory_is_that_of_optax(name: str) -> None:
    tx, make = PAIRS[name]
    other, random = make(), np.random.default_rng(0)

    def draw() -> Any:
        return {
            "a": random.standard_normal(5),
            "b": {"c": random.standard_normal((2, 3)), "d": random.standard_normal(())},
        }

    start = draw()
    params = pytree.unflatten(*reversed(tensors(start)))
    theirs = jax.tree.map(jax.numpy.asarray, start)
    state, other_state = tx.init(params), other.init(theirs)
    for _ in range(12):
        grads = draw()
        params, state = fa.step(tx, pytree.unflatten(*reversed(tensors(grads))), state, params)
        updates, other_state = other.update(
            jax.tree.map(jax.numpy.asarray, grads), other_state, theirs
        )
        theirs = optax.apply_updates(theirs, updates)
        for x, y in zip(pytree.tensors(params), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(x.numpy(), np.asarray(y), rtol=1e-9, atol=1e-10)


def tensors(tree: Any) -> tuple[list[torch.Tensor], Any]:
    leaves, spec = pytree.flatten(tree)
    return [torch.as_tensor(x, dtype=torch.float64) for x in leaves], spec
