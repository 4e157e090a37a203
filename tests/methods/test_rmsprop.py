"""RMSprop against torch and NumPy, and its options one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from trees import assert_equal
from twins_methods import COMPLEX, EXACT, assert_twins, run

import functional_adamax as fa

BY_ROOTS = {torch.float32: 4, torch.complex64: 4}
"""Roundings by which a step may differ from torch's, whose float32 root is not IEEE's: see Adam."""
OPTIONS = [
    {},
    {"centered": True},
    {"weight_decay": 0.1, "alpha": 0.5, "eps": 1e-3},
    {"weight_decay": 0.1, "centered": True, "maximize": True},
]


@pytest.mark.parametrize("dtype", EXACT + COMPLEX, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_torchs_to_a_rounding_of_the_root(options: Any, dtype: torch.dtype) -> None:
    tx, ulps = fa.rmsprop(0.1, **options), BY_ROOTS.get(dtype, 0)
    assert_twins(torch.optim.RMSprop, {"lr": 0.1, **options}, tx, dtype, ulps=ulps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_momentum_it_is_torchs_to_two_ulp(options: Any, dtype: torch.dtype) -> None:
    options = {"momentum": 0.9, **options}
    tx = fa.rmsprop(0.1, **options)
    assert_twins(torch.optim.RMSprop, {"lr": 0.1, **options}, tx, dtype, ulps=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_momentum_buffers_gather_the_roundings_of_roots(
    options: Any, dtype: torch.dtype
) -> None:
    options = {"momentum": 0.9, **options}
    p, tx = torch.randn(1000, dtype=dtype), fa.rmsprop(0.1, **options)
    state, twin = tx.init(p), torch.nn.Parameter(p.clone())
    optimizer = torch.optim.RMSprop([twin], 0.1, **options)
    for _ in range(30):
        twin.grad = torch.randn_like(twin) * 3
        p, state = fa.step(tx, twin.grad, state, p)
        optimizer.step()
        p = twin.detach().clone()
        theirs = optimizer.state[twin]["momentum_buffer"]
        unit = torch.finfo(dtype).eps * theirs.abs().max()
        assert (state.momentum_buffer - theirs).abs().max() <= 4 * unit


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_it_is_the_formula(centered: bool, momentum: float) -> None:
    random = np.random.default_rng(0)
    tx = fa.rmsprop(0.05, 0.8, 1e-3, 0.1, momentum, centered)
    p = random.normal(size=6)
    v, m, b, t = np.zeros(6), np.zeros(6), np.zeros(6), 0
    ours = torch.tensor(p)
    state = tx.init(ours)
    for i in range(20):
        g = None if i % 4 == 0 else random.normal(size=6)
        if g is not None:
            c, t = g + 0.1 * p, t + 1
            v, m = 0.8 * v + 0.2 * c**2, 0.8 * m + 0.2 * c
            b = momentum * b + c / (np.sqrt(v - (m**2 if centered else 0)) + 1e-3)
            p = p - 0.05 * b
        ours, state = fa.step(tx, None if g is None else torch.tensor(g), state, ours)
        np.testing.assert_allclose(ours.numpy(), p, rtol=1e-11, atol=1e-11)
    assert int(state.step) == t


def test_what_is_not_asked_for_is_not_kept() -> None:
    p = {"a": torch.ones(2)}
    plain = fa.rmsprop().init(p)
    assert plain.momentum_buffer == plain.grad_avg == fa.EmptyState()
    full = fa.rmsprop(momentum=0.9, centered=True).init(p)
    assert full.momentum_buffer["a"].shape == full.grad_avg["a"].shape == (2,)


@pytest.mark.parametrize("options", [{}, {"centered": True}, {"momentum": 0.9}], ids=str)
def test_a_first_gradient_of_none_or_zero_moves_nothing(options: dict[str, Any]) -> None:
    tx, p = fa.rmsprop(**options), torch.ones(3)
    state = tx.init(p)
    updates, same = tx.update(None, state)
    assert updates is None
    assert same.square_avg is state.square_avg
    p, state = fa.step(tx, torch.zeros(3), state, p)
    assert_equal(p, torch.ones(3))
    assert float(state.step) == 1


@pytest.mark.parametrize("centered", [False, True])
def test_derivatives_are_finite_where_a_gradient_has_always_been_zero(centered: bool) -> None:
    g = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    tx = fa.rmsprop(0.1, eps=1e-2, momentum=0.5, centered=centered)
    state, p = tx.init(g), torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        p, state = fa.step(tx, g, state, p)
    (slope,) = torch.autograd.grad(p.sum(), g)
    assert slope.isfinite().all()
    assert float(slope[0]) == pytest.approx(-0.1 / 1e-2 * (1 + 1.5 + 1.75))


def test_parts_in_a_chain_make_the_whole() -> None:
    p, grads = torch.randn(20), [torch.randn(20) for _ in range(5)]
    chain = fa.chain(fa.scale_by_rms(0.9, centered=True), fa.scale_by_learning_rate(0.1))
    want = run(fa.rmsprop(0.1, 0.9, centered=True), p, grads)
    torch.testing.assert_close(run(chain, p, grads), want)


def test_numbers_tensors_and_schedules_agree() -> None:
    p, grads = torch.randn(50), [torch.randn(50) for _ in range(5)]
    want = run(fa.rmsprop(0.1, 0.9, 1e-3, 0.1, 0.5, True), p, grads)
    values = [torch.tensor([x], dtype=torch.float64) for x in (0.1, 0.9, 1e-3, 0.1, 0.5)]
    assert_equal(run(fa.rmsprop(*values, True), p, grads), want)
    assert_equal(run(fa.rmsprop(lambda count: 0.1, 0.9, 1e-3, 0.1, 0.5, True), p, grads), want)


def test_state_dtype_is_the_dtype_of_the_moments() -> None:
    p = torch.randn(9).to(torch.float16)
    state = fa.rmsprop(momentum=0.9, state_dtype=torch.float32).init(p)
    assert state.square_avg.dtype == state.momentum_buffer.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.0}, r"alpha must be in \[0, 1\), got 1.0"),
        ({"eps": -1e-8}, r"eps must be in \[0, inf\)"),
        ({"momentum": -0.5}, r"momentum must be in \[0, inf\), got -0.5"),
        ({"weight_decay": -0.5}, "weight_decay must be in"),
        ({"lr": -0.5}, "lr must be in"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fa.rmsprop(**options)


def test_bad_trees_are_named() -> None:
    p = {"a": torch.ones(2)}
    tx = fa.rmsprop()
    with pytest.raises(TypeError, match="must be the RmspropState that init returned"):
        tx.update(p, fa.adam().init(p))
    with pytest.raises(ValueError, match=r"grads\['a'\] must have the shape.*\(2,\).*\(3,\)"):
        tx.update({"a": torch.ones(3)}, tx.init(p))
    with pytest.raises(ValueError, match="state.grad_avg must have the structure of state.step"):
        fa.rmsprop(centered=True).update(p, tx.init(p))
