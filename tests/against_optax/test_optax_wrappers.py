"""Lookahead, schedule-free learning and SAM against those of optax, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import functional_adamax as fa

optax = pytest.importorskip("optax", reason="optax is not installed")
jax = pytest.importorskip("jax", reason="jax is not installed")
jnp = jax.numpy

SHAPES = {"b": (4,), "s": (), "w": (4, 3)}
STEPS = 14
LR = 0.05


def numbers(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: np.asarray(rng.standard_normal(s)) for k, s in SHAPES.items()}


def ours(tree: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(x) for k, x in tree.items()}


def theirs(tree: dict[str, np.ndarray]) -> Any:
    return {k: jnp.asarray(x) for k, x in tree.items()}


def close(mine: Any, other: Any) -> None:
    for k in SHAPES:
        np.testing.assert_allclose(mine[k].numpy(), other[k], rtol=1e-6, atol=1e-6)


def sgd(lr: Any = LR) -> tuple[Any, Any]:
    return fa.sgd(lr), optax.sgd(lr)


def adam(lr: Any = LR) -> tuple[Any, Any]:
    return fa.adam(lr, (0.0, 0.99), 1e-3), optax.adam(lr, 0.0, 0.99, 1e-3)


def adamax(lr: Any = LR) -> tuple[Any, Any]:
    return fa.adamax(lr, (0.8, 0.99), 1e-3), optax.adamax(lr, 0.8, 0.99, 1e-3)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(("period", "size"), [(1, 0.5), (3, 0.4), (5, 1.0)])
@pytest.mark.parametrize("base", [sgd, adam, adamax], ids=lambda f: f.__name__)
def test_lookahead(base: Any, period: int, size: float, reset: bool) -> None:
    mine, other = base()
    tx, ty = fa.lookahead(mine, period, size, reset), optax.lookahead(other, period, size, reset)
    p, q = ours(numbers(0)), optax.LookaheadParams.init_synced(theirs(numbers(0)))
    state, other_state = tx.init(p), ty.init(q)
    for i in range(STEPS):
        p, state = fa.step(tx, ours(numbers(i + 1)), state, p)
        updates, other_state = ty.update(theirs(numbers(i + 1)), other_state, q)
        q = optax.apply_updates(q, updates)
        close(p, q.fast)
        close(state.slow, q.slow)
        assert int(state.count) % period == int(other_state.steps_since_sync)


def warmup(count: Any) -> Any:
    return LR * (count + 1) / 20


def shifted(count: Any) -> Any:
    """optax asks for the learning rate of the weights one step ahead of that of its base."""
    return warmup(count - 1)


@pytest.mark.parametrize("power", [2.0, 1.0, 0.0])
@pytest.mark.parametrize("b1", [0.9, 0.5])
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("base", [sgd, adam], ids=lambda f: f.__name__)
def test_schedule_free(base: Any, scheduled: bool, b1: float, power: float) -> None:
    mine, other = base(warmup if scheduled else LR)
    tx = fa.schedule_free(mine, warmup if scheduled else LR, b1, power)
    ty = optax.contrib.schedule_free(other, shifted if scheduled else LR, b1, power)
    p, q = ours(numbers(0)), theirs(numbers(0))
    state, other_state = tx.init(p), ty.init(q)
    for i in range(STEPS):
        p, state = fa.step(tx, ours(numbers(i + 1)), state, p)
        updates, other_state = ty.update(theirs(numbers(i + 1)), other_state, q)
        q = optax.apply_updates(q, updates)
        close(p, q)
        close(fa.tree_get(state, "z"), other_state.z)
        close(
            fa.schedule_free_eval_params(state, p),
            optax.contrib.schedule_free_eval_params(other_state, q),
        )
    weights = fa.tree_get(state, "weight_sum")["w"]
    assert float(weights) == pytest.approx(float(other_state.weight_sum), rel=1e-6)


@pytest.mark.parametrize("base", [sgd, adamax], ids=lambda f: f.__name__)
def test_sam(base: Any) -> None:
    mine, other = base()
    tx = fa.sam(mine, rho=0.3)
    uphill = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
    ty = optax.contrib.sam(other, uphill, sync_period=2, opaque_mode=True)
    p, q = ours(numbers(0)), theirs(numbers(0))
    state, other_state = tx.init(p), ty.init(q)
    for _ in range(STEPS):
        grads = {k: x.cos() * x for k, x in p.items()}
        p, state = fa.step(
            tx, grads, state, p, grad_fn=lambda t: {k: x.cos() * x for k, x in t.items()}
        )
        grads = {k: jnp.cos(x) * x for k, x in q.items()}
        updates, other_state = ty.update(
            grads, other_state, q, grad_fn=lambda t, i: {k: jnp.cos(x) * x for k, x in t.items()}
        )
        q = optax.apply_updates(q, updates)
        close(p, q)
