"""Nadamax against NumPy, and its options one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import assert_equal
from twins_methods import run

import functional_adamax as fa


class Oracle:
    """Nadam's moment (Dozat 2016, Algorithm 2, constant mu) over Adamax's norm, in NumPy."""

    def __init__(self, theta, alpha, mu, nu, eps, weight_decay, maximize):
        self.theta = np.array(theta, dtype=np.float64)
        self.alpha, self.mu, self.nu, self.eps = alpha, mu, nu, eps
        self.weight_decay, self.sign = weight_decay, -1 if maximize else 1
        self.m, self.u, self.t = 0 * self.theta, 0 * self.theta, 0

    def step(self, g):
        g = self.sign * g + self.weight_decay * self.theta
        self.t += 1
        g_hat = g / (1 - self.mu**self.t)
        self.m = self.mu * self.m + (1 - self.mu) * g
        m_hat = self.m / (1 - self.mu ** (self.t + 1))
        self.u = np.maximum(self.nu * self.u, np.abs(g) + self.eps)
        self.theta = self.theta - self.alpha * (self.mu * m_hat + (1 - self.mu) * g_hat) / self.u


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    data=st.data(),
    lr=st.floats(1e-4, 1.0),
    betas=st.tuples(st.floats(0.0, 0.999), st.floats(0.0, 0.9999)),
    eps=st.floats(1e-8, 1e-2),
    weight_decay=st.sampled_from([0.0, 0.1]),
    maximize=st.booleans(),
    shape=st.sampled_from([(), (3,), (0, 2)]),
)
def test_it_is_the_formula(
    data: Any, lr: float, betas: Any, eps: float, weight_decay: float, maximize: bool, shape: Any
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    oracle = Oracle(random.normal(size=shape), lr, *betas, eps, weight_decay, maximize)
    tx = fa.nadamax(lr, betas, eps, weight_decay, maximize=maximize)
    p = torch.tensor(oracle.theta)
    state = tx.init(p)
    for present in data.draw(st.lists(st.booleans(), min_size=1, max_size=12)):
        g = random.normal(size=shape) * 10.0 ** random.integers(-3, 3)
        if present:
            oracle.step(g)
        p, state = fa.step(tx, torch.tensor(g) if present else None, state, p)
    assert int(state.step) == oracle.t
    np.testing.assert_allclose(p.numpy(), oracle.theta, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(state.exp_inf.numpy(), oracle.u, rtol=1e-11)


def test_without_momentum_it_is_adamax() -> None:
    p, grads = torch.randn(30), [torch.randn(30) for _ in range(5)]
    want = run(fa.adamax(0.1, (0.0, 0.9), 1e-3), p, grads)
    torch.testing.assert_close(run(fa.nadamax(0.1, (0.0, 0.9), 1e-3), p, grads), want)


def test_its_moments_are_those_of_adamax() -> None:
    p, g = torch.randn(30), torch.randn(30)
    a, b = fa.adamax(weight_decay=0.1), fa.nadamax(weight_decay=0.1)
    (_, x), (_, y) = a.update(g, a.init(p), p), b.update(g, b.init(p), p)
    assert_equal(tuple(x), tuple(y))


def test_it_sees_a_change_of_the_gradient_sooner_than_adamax() -> None:
    grads = [torch.ones(1)] * 5 + [-torch.ones(1)]
    before, after = run(fa.nadamax(0.1), torch.zeros(1), grads[:5]), None
    after = run(fa.nadamax(0.1), torch.zeros(1), grads)
    plain = run(fa.adamax(0.1), torch.zeros(1), grads) - run(
        fa.adamax(0.1), torch.zeros(1), grads[:5]
    )
    assert after - before > plain


def test_complex_leaves_go_by_components() -> None:
    z, g = torch.randn(6, dtype=torch.complex128), torch.randn(6, dtype=torch.complex128)
    tx = fa.nadamax(0.1, weight_decay=0.1)
    want = run(tx, torch.view_as_real(z), [torch.view_as_real(g)] * 3)
    torch.testing.assert_close(torch.view_as_real(run(tx, z, [g] * 3)), want)


def test_parts_in_a_chain_make_the_whole() -> None:
    p, grads = torch.randn(20), [torch.randn(20) for _ in range(5)]
    chain = fa.chain(
        fa.add_decayed_weights(0.1), fa.scale_by_nadamax(), fa.scale_by_learning_rate(0.1)
    )
    want = run(fa.nadamax(0.1, weight_decay=0.1), p, grads)
    torch.testing.assert_close(run(chain, p, grads), want)


def test_numbers_tensors_and_schedules_agree() -> None:
    p, grads = torch.randn(50), [torch.randn(50) for _ in range(5)]
    want = run(fa.nadamax(0.1, (0.8, 0.9), 1e-3, 0.1), p, grads)
    lr, b1, b2, eps, decay = (
        torch.tensor([x], dtype=torch.float64) for x in (0.1, 0.8, 0.9, 1e-3, 0.1)
    )
    assert_equal(run(fa.nadamax(lr, (b1, b2), eps, decay), p, grads), want)
    assert_equal(run(fa.nadamax(lambda count: 0.1, (0.8, 0.9), 1e-3, 0.1), p, grads), want)


def test_eps_that_vanishes_warns_and_state_dtype_cures_it() -> None:
    p = torch.ones(2, dtype=torch.float16)
    with pytest.warns(UserWarning, match="state_dtype=torch.float32") as caught:
        fa.nadamax().init(p)
    assert len(caught) == 1
    tx = fa.nadamax(state_dtype=torch.float32)
    p, state = fa.step(tx, torch.zeros(2, dtype=torch.float16), tx.init(p), p)
    assert_equal(p, torch.ones(2, dtype=torch.float16))
    assert state.exp_inf.dtype == torch.float32


def test_mistakes_are_named() -> None:
    p = {"a": torch.ones(2)}
    with pytest.raises(ValueError, match=r"betas\[0\] must be in \[0, 1\), got 1.2"):
        fa.nadamax(betas=(1.2, 0.9))
    with pytest.raises(TypeError, match="state must be the NadamaxState that init returned"):
        fa.nadamax().update(p, fa.adamax().init(p))
    with pytest.raises(ValueError, match=r"grads\['a'\] must have the shape.*\(2,\).*\(3,\)"):
        fa.nadamax().update({"a": torch.ones(3)}, fa.nadamax().init(p))
