"""Schedule-free learning against its three sequences, each kept for itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from trees import assert_equal, clone, grads_like, params

import functional_adamax as fa

STEPS = 12


def warmup(count: Any, peak: float = 0.1) -> Any:
    return peak * (count / 4).clamp(max=1.0)


def hump(count: Any) -> Any:
    """A rate that falls too, so that the largest so far is not the last."""
    return 0.004 * (count + 1) * (STEPS - count)


def three(
    start: np.ndarray, grads: list[np.ndarray], rates: list[float], b1: list[float], power: float
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(x, y, z) after each step of SGD, from the equations of the paper."""
    x = y = z = start
    total = largest = 0.0
    rows = []
    for g, lr, beta in zip(grads, rates, b1, strict=True):
        z = z - lr * g
        largest = max(largest, lr)
        weight = largest**power
        total += weight
        c = weight / total if total else 0.0
        x = (1 - c) * x + c * z
        y = beta * x + (1 - beta) * z
        rows.append((x, y, z))
    return rows


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("lr", [0.1, warmup, hump], ids=["constant", "warmup", "hump"])
def test_it_is_the_three_sequences(lr: Any, power: float) -> None:
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal(5), [rng.standard_normal(5) for _ in range(STEPS)]
    rates = [float(lr(torch.tensor(i))) if callable(lr) else lr for i in range(STEPS)]
    tx = fa.schedule_free(fa.sgd(lr), lr, 0.8, power)
    p = torch.tensor(start)
    state = tx.init(p)
    torch.testing.assert_close(fa.schedule_free_eval_params(state, p), p)
    for g, (x, y, z) in zip(grads, three(start, grads, rates, [0.8] * STEPS, power), strict=True):
        p, state = fa.step(tx, torch.tensor(g), state, p)
        np.testing.assert_allclose(p.numpy(), y, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(fa.tree_get(state, "z").numpy(), z, rtol=1e-12, atol=1e-13)
        average = fa.schedule_free_eval_params(state, p)
        np.testing.assert_allclose(average.numpy(), x, rtol=1e-11, atol=1e-12)


def test_the_average_stays_when_b1_changes() -> None:
    rng = np.random.default_rng(1)
    start, grads = rng.standard_normal(3), [rng.standard_normal(3) for _ in range(STEPS)]
    b1 = [0.9 - 0.05 * i for i in range(STEPS)]
    wanted = three(start, grads, [0.1] * STEPS, b1, 2.0)
    p = torch.tensor(start)
    state = fa.schedule_free(fa.sgd(0.1), 0.1, b1[0]).init(p)
    for g, beta, (x, y, _) in zip(grads, b1, wanted, strict=True):
        p, state = fa.step(fa.schedule_free(fa.sgd(0.1), 0.1, beta), torch.tensor(g), state, p)
        np.testing.assert_allclose(p.numpy(), y, rtol=1e-11, atol=1e-12)
        average = fa.schedule_free_eval_params(state, p)
        np.testing.assert_allclose(average.numpy(), x, rtol=1e-11, atol=1e-12)


def test_a_missing_gradient_sits_the_step_out_with_its_weight() -> None:
    tx = fa.schedule_free(fa.adamax(0.1, (0.0, 0.999)), 0.1)
    alone = fa.schedule_free(fa.adamax(0.1, (0.0, 0.999)), 0.1)
    tree: Any = {"a": torch.randn(2), "b": torch.randn(2), "n": torch.tensor(3), "none": None}
    state, other, other_state = tx.init(tree), tree["b"], alone.init(tree["b"])
    assert state.z["n"] == state.b1["none"] == fa.EmptyState()
    for i in range(6):
        grads = {**grads_like(tree), "n": None}
        if i % 2:
            grads["b"] = None
        else:
            other, other_state = fa.step(alone, grads["b"], other_state, other)
        before = clone((grads, state, tree))
        updates, new = tx.update(grads, state, tree)
        assert_equal((grads, state, tree), before)
        assert (updates["b"] is None) == bool(i % 2)
        assert updates["n"] is updates["none"] is None
        if i % 2:
            assert all(getattr(new, k)["b"] is getattr(state, k)["b"] for k in new._fields[:4])
        tree, state = fa.apply_updates(tree, updates), new
    assert torch.equal(tree["b"], other)
    average = fa.schedule_free_eval_params(state, tree)
    assert average["none"] is None
    assert average["n"] is tree["n"]


def test_no_learning_rate_yet_is_no_step_and_no_nan() -> None:
    lr = torch.zeros((), dtype=torch.float64, requires_grad=True)
    tx, p = fa.schedule_free(fa.sgd(lr), lr), torch.ones(2, dtype=torch.float64)
    new, state = fa.step(tx, p, tx.init(p), p)
    assert torch.equal(new, p)
    assert state.weight_sum == 0
    slope = torch.autograd.grad(new.sum(), lr)[0]
    assert slope.isfinite()


def test_z_in_another_dtype() -> None:
    p = torch.ones(1, dtype=torch.bfloat16)
    tx = fa.schedule_free(fa.sgd(1e-4), 1e-4, state_dtype=torch.float32)
    state = tx.init(p)
    for _ in range(100):  # in bfloat16 no step would move it
        p, state = fa.step(tx, torch.ones(1, dtype=torch.bfloat16), state, p)
    assert state.z.dtype == torch.float32
    torch.testing.assert_close(state.z, torch.tensor([0.99]), rtol=1e-5, atol=0)
    assert fa.schedule_free_eval_params(state, p).dtype == torch.bfloat16


def test_complex_leaves_go_by_components() -> None:
    p = torch.randn(3, dtype=torch.complex128)
    q = torch.view_as_real(p)
    rate = torch.rand(3, dtype=torch.float64)
    one = fa.schedule_free(fa.sgd(0.1), {"w": rate}, {"w": 0.8})
    two = fa.schedule_free(fa.sgd(0.1), {"w": rate.unsqueeze(-1)}, {"w": 0.8})
    a, b, x, y = one.init({"w": p}), two.init({"w": q}), {"w": p}, {"w": q}
    assert a.max_lr["w"].shape == (3,)
    for _ in range(4):
        g = torch.randn_like(p)
        x, a = fa.step(one, {"w": g}, a, x)
        y, b = fa.step(two, {"w": torch.view_as_real(g)}, b, y)
    torch.testing.assert_close(torch.view_as_real(x["w"]), y["w"], rtol=1e-13, atol=1e-13)
    got, want = fa.schedule_free_eval_params(a, x), fa.schedule_free_eval_params(b, y)
    torch.testing.assert_close(torch.view_as_real(got["w"]), want["w"], rtol=1e-13, atol=1e-13)


def test_the_average_of_an_ensemble_and_its_derivative() -> None:
    def last(lr: torch.Tensor, b1: torch.Tensor) -> torch.Tensor:
        rate = partial(_scaled, lr)
        tx = fa.chain(fa.identity(), fa.schedule_free(fa.sgd(rate), rate, b1))
        p = torch.ones((), dtype=torch.float64)
        state = tx.init(p)
        for _ in range(4):
            p, state = fa.step(tx, p, state, p)
        return fa.schedule_free_eval_params(state, p)

    lr, b1 = torch.tensor([0.1, 0.3]).double(), torch.tensor([0.5, 0.9]).double()
    got = vmap(grad(last, argnums=(0, 1)))(lr, b1)
    h = 1e-6
    for i, (a, b) in enumerate(zip(lr, b1, strict=True)):
        by_lr = (last(a + h, b) - last(a - h, b)) / (2 * h)
        by_b1 = (last(a, b + h) - last(a, b - h)) / (2 * h)
        torch.testing.assert_close((got[0][i], got[1][i]), (by_lr, by_b1), rtol=1e-7, atol=1e-9)


def _scaled(lr: Any, count: Any) -> Any:
    return lr * (1 + count) / 4


def test_it_ends_nearer_than_the_iterates() -> None:
    """On a noisy quadratic, the average is better than z, without a decay of lr."""
    torch.manual_seed(0)
    tx, p = fa.schedule_free(fa.sgd(0.3), 0.3), torch.full((50,), 5.0)
    state = tx.init(p)
    for _ in range(300):
        p, state = fa.step(tx, p + torch.randn(50), state, p)
    assert fa.schedule_free_eval_params(state, p).norm() < 0.4 * state.z.norm()


def test_errors() -> None:
    inner = fa.sgd(0.1)
    with pytest.raises(ValueError, match=r"lr must be in \[0, inf\), got -1"):
        fa.schedule_free(inner, -1.0)
    with pytest.raises(ValueError, match=r"b1 must be in \[0, 1\), got 1.0"):
        fa.schedule_free(inner, 0.1, 1.0)
    with pytest.raises(ValueError, match=r"b1 must be in \(0, 1\), got 0"):
        fa.schedule_free(inner, 0.1, {"w": 0.0})
    with pytest.raises(ValueError, match=r"weight_lr_power must be in \[0, inf\), got -1"):
        fa.schedule_free(inner, 0.1, weight_lr_power=-1.0)
    with pytest.raises(TypeError, match="state_dtype must be a real floating dtype"):
        fa.schedule_free(inner, 0.1, state_dtype=torch.int64)
    with pytest.raises(TypeError, match=r"inner must be a pair \(init, update\) of functions"):
        fa.schedule_free(fa.sgd, 0.1)  # type: ignore[arg-type]
    tx, tree = fa.schedule_free(fa.scale(-0.1), 0.1), params()
    state = tx.init(tree)
    with pytest.raises(ValueError, match="params must be given to schedule_free, got None: call"):
        tx.update(tree, state)
    with pytest.raises(TypeError, match="must be the ScheduleFreeState that init returned"):
        tx.update(tree, (), tree)
    with pytest.raises(ValueError, match=r"params\['w'\] must fit its state.*\(1,\)"):
        tx.update(tree, state, {**tree, "w": torch.ones(1)})
    with pytest.raises(ValueError, match=r"params\['w'\] must fit its state"):
        fa.schedule_free_eval_params(state, {**tree, "w": torch.ones(1)})
    with pytest.raises(ValueError, match="one schedule_free, got 0 of them"):
        fa.schedule_free_eval_params(fa.adamax().init(tree), tree)
    with pytest.raises(ValueError, match="got 2 of them: pass the state of that transform"):
        fa.schedule_free_eval_params((state, state), tree)
