"""The gradient stages against those of optax: trajectories of parameters, in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import functional_adamax as fa

optax = pytest.importorskip("optax", reason="optax is not installed")
jax = pytest.importorskip("jax", reason="jax is not installed")
jnp = jax.numpy

SHAPES = {"b": (4,), "conv": (4, 3, 2, 2), "s": (), "w": (4, 3)}
STEPS = 12


def turned(x: np.ndarray) -> np.ndarray:
    """A weight as jax lays it out: the outputs last."""
    return np.moveaxis(x, 0, -1) if x.ndim > 1 else x


def gradients(bad: dict[int, float], dtype: Any = np.float64) -> list[dict[str, np.ndarray]]:
    """Gradients of all sizes; ``bad`` puts a number into the one of a step."""
    rng = np.random.default_rng(0)
    result = []
    for i in range(STEPS):
        size = 10.0 ** rng.uniform(-2, 1)
        grads = {k: np.asarray(size * rng.standard_normal(s)) for k, s in SHAPES.items()}
        if np.issubdtype(dtype, np.complexfloating):
            grads = {k: x + 1j * rng.standard_normal(x.shape) for k, x in grads.items()}
        if i in bad:
            grads["w"][1, 2] = bad[i]
        result.append(grads)
    return result


def assert_same_trajectory(
    ours: Any,
    theirs: Any,
    bad: dict[int, float] | None = None,
    turn: Any = None,
    dtype: Any = float,
) -> tuple[Any, Any]:
    """Run both and compare the parameters after every step; return the last states."""
    turn = turn or (lambda x: x)
    rng = np.random.default_rng(1)
    start = {k: np.asarray(rng.standard_normal(s)).astype(dtype) for k, s in SHAPES.items()}
    p = {k: torch.tensor(x) for k, x in start.items()}
    q = {k: jnp.asarray(turn(x)) for k, x in start.items()}
    state, other = ours.init(p), theirs.init(q)
    for grads in gradients(bad or {}, dtype):
        p, state = fa.step(ours, {k: torch.tensor(x) for k, x in grads.items()}, state, p)
        updates, other = theirs.update(
            {k: jnp.asarray(turn(x)) for k, x in grads.items()}, other, q
        )
        q = optax.apply_updates(q, updates)
        for k in SHAPES:
            np.testing.assert_allclose(turn(p[k].numpy()), q[k], rtol=1e-6, atol=1e-6)
    return state, other


def ours(*stages: Any) -> Any:
    return fa.chain(*stages, fa.scale_by_adamax((0.9, 0.99), 1e-3), fa.scale(-0.1))


def theirs(*stages: Any) -> Any:
    return optax.chain(*stages, optax.scale_by_adamax(0.9, 0.99, 1e-3), optax.scale(-0.1))


@pytest.mark.parametrize("bound", [0.1, 1.0, 1e3])
@pytest.mark.parametrize("name", ["clip", "clip_by_global_norm", "clip_by_block_rms"])
def test_clipping(name: str, bound: float) -> None:
    mine, other = getattr(fa, name)(bound), getattr(optax, name)(bound)
    assert_same_trajectory(ours(mine), theirs(other))
    assert_same_trajectory(mine, other)  # without Adamax, which forgets the length


@pytest.mark.parametrize("name", ["clip_by_global_norm", "clip_by_block_rms"])
def test_clipping_complex_updates(name: str) -> None:
    mine, other = getattr(fa, name)(0.7), getattr(optax, name)(0.7)
    assert_same_trajectory(mine, other, dtype=complex)


@pytest.mark.parametrize("clipping", [0.01, 0.5, 1e3])
def test_adaptive_clipping(clipping: float) -> None:
    """optax's units are the last axis, as jax lays weights out."""
    mine, other = fa.adaptive_grad_clip(clipping), optax.adaptive_grad_clip(clipping)
    assert_same_trajectory(ours(mine), theirs(other), turn=turned)
    assert_same_trajectory(mine, other, turn=turned)


def test_centralize() -> None:
    assert_same_trajectory(ours(fa.centralize()), theirs(optax.centralize()))
    assert_same_trajectory(fa.centralize(), optax.centralize(), dtype=complex)


def test_zero_nans() -> None:
    bad = {3: np.nan, STEPS - 1: np.nan}
    state, other = assert_same_trajectory(
        ours(fa.zero_nans()), theirs(optax.zero_nans()), bad, dtype=float
    )
    for k in SHAPES:
        assert bool(state[0].found[k]) == bool(other[0].found_nan[k]) == (k == "w")


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_apply_if_finite(n: int) -> None:
    bad = {1: np.nan, 4: np.inf, 5: -np.inf, 8: np.nan, 9: np.nan}
    state, other = assert_same_trajectory(
        fa.apply_if_finite(ours(), n), optax.apply_if_finite(theirs(), n), bad
    )
    assert int(state.notfinite_count) == int(other.notfinite_count)
    assert int(state.total_notfinite) == int(other.total_notfinite) == 5
    assert bool(state.last_finite) == bool(other.last_finite)


def growing(step: Any) -> Any:
    return 1 + step


def multi(every_k: Any, mean: bool = True, skip: Any = None) -> Any:
    return optax.MultiSteps(
        theirs(), every_k, mean, should_skip_update_fn=skip, accumulator_dtype=np.float64
    )


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("every_k", [1, 2, 5, growing], ids=["1", "2", "5", "growing"])
def test_multi_steps(every_k: Any, mean: bool) -> None:
    state, other = assert_same_trajectory(
        fa.multi_steps(ours(), every_k, mean), multi(every_k, mean)
    )
    assert int(state.mini_step) == int(other.mini_step)
    assert int(state.gradient_step) == int(other.gradient_step)
    for k in SHAPES:
        sum_of_theirs = np.asarray(other.acc_grads[k]) * (int(other.mini_step) if mean else 1)
        np.testing.assert_allclose(state.acc_grads[k].numpy(), sum_of_theirs, atol=1e-6)


def test_multi_steps_that_skip() -> None:
    bad = {1: np.nan, 4: np.inf, 5: np.nan}
    state, other = assert_same_trajectory(
        fa.multi_steps(ours(), 3, skip=fa.skip_not_finite),
        multi(3, skip=optax.transforms.skip_not_finite),
        bad,
    )
    assert int(state.gradient_step) == int(other.gradient_step) == (STEPS - 3) // 3
    mine = partial(fa.skip_large_updates, max_squared_norm=100.0)
    skip = partial(optax.transforms.skip_large_updates, max_squared_norm=100.0)
    state, other = assert_same_trajectory(
        fa.multi_steps(ours(), 2, skip=mine), multi(2, skip=skip), bad
    )
    assert 0 < int(state.gradient_step) == int(other.gradient_step) < STEPS // 2


def test_noise_has_the_deviation_of_optax() -> None:
    """Other numbers, from another generator, but the same deviation at every step."""
    n = 40_000
    tx, other = fa.add_noise(0.3, 0.55, seed=0), optax.add_noise(0.3, 0.55, key=0)
    state, other_state = tx.init(torch.zeros(n)), other.init(jnp.zeros(n))
    for _ in range(4):
        mine, state = tx.update(torch.zeros(n), state)
        noise, other_state = other.update(jnp.zeros(n), other_state)
        assert float(mine.std()) == pytest.approx(float(noise.std()), rel=0.02)
