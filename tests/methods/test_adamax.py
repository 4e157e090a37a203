"""Adamax itself: against NumPy, against torch, and its options one by one."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from torch.func import grad, vmap
from trees import DTYPES, assert_equal, params, with_gaps

import functional_adamax as fa

exact = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)
rates = st.floats(1e-4, 1.0)
decays = st.floats(0.0, 0.9999)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    data=st.data(),
    lr=rates,
    betas=st.tuples(decays, decays),
    eps=st.floats(1e-8, 1e-2),
    weight_decay=st.sampled_from([0.0, 0.01, 0.5]),
    maximize=st.booleans(),
    shape=st.sampled_from([(), (1,), (3,), (2, 3), (0, 2)]),
)
def test_it_is_the_papers_algorithm(
    data: Any, lr: float, betas: Any, eps: float, weight_decay: float, maximize: bool, shape: Any
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    start = random.normal(size=shape)
    oracle = Oracle(start, lr, *betas, eps, weight_decay, maximize)
    tx = fa.adamax(lr, betas, eps, weight_decay, maximize=maximize)
    p = torch.tensor(start)
    state = tx.init(p)
    for present in data.draw(st.lists(st.booleans(), min_size=1, max_size=12)):
        g = random.normal(size=shape) * 10.0 ** random.integers(-6, 6) if present else None
        oracle.step(g)
        p, state = fa.step(tx, None if g is None else torch.tensor(g), state, p)
    assert int(state.step) == oracle.t
    np.testing.assert_allclose(p.numpy(), oracle.theta, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(state.exp_avg.numpy(), oracle.m, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(state.exp_inf.numpy(), oracle.u, rtol=1e-12)


def test_decoupled_decay_is_the_step_and_a_shrinkage() -> None:
    p = torch.randn(5, dtype=torch.float64)
    g = torch.randn(5, dtype=torch.float64)
    plain, decayed = fa.adamax(0.1), fa.adamaxw(0.1, weight_decay=0.5)
    want = plain.update(g, plain.init(p), p)[0] - 0.1 * 0.5 * p
    got, state = decayed.update(g, decayed.init(p), p)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
    assert_equal(state, plain.update(g, plain.init(p), p)[1])  # the moments see no decay
    ascending = fa.adamaxw(0.1, weight_decay=0.5, maximize=True)
    want = -plain.update(g, plain.init(p), p)[0] - 0.1 * 0.5 * p
    torch.testing.assert_close(ascending.update(g, ascending.init(p), p)[0], want)


@pytest.mark.filterwarnings("ignore:eps=")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("when", ["never", "first", "middle", "always"])
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["number", "tensor"])
def test_the_pure_pair_has_torchs_bits(
    dtype: torch.dtype, weight_decay: float, when: str, tensor_lr: bool
) -> None:
    """Also when gradients are missing: the leaf goes on exactly as torch's does."""
    source = {"z": torch.randn(257, 3, dtype=dtype), "a": torch.randn((), dtype=dtype)}
    lr = torch.tensor(0.01) if tensor_lr else 0.01
    theirs = {name: torch.nn.Parameter(x.clone()) for name, x in source.items()}
    optimizer = torch.optim.Adamax(theirs.values(), lr=lr, weight_decay=weight_decay)
    tx = fa.adamax(lr, weight_decay=weight_decay)
    tree, state = source, tx.init(source)
    for i in range(30):
        grads: dict[str, Any] = {name: torch.randn_like(x) for name, x in source.items()}
        if when == "always" or (when == "first" and i == 0) or (when == "middle" and i % 7 == 3):
            grads["a"] = None
        for name, p in theirs.items():
            p.grad = None if grads[name] is None else grads[name].clone()
        optimizer.step()
        updates, state = tx.update(grads, state, tree)
        tree = fa.apply_updates(tree, updates)
        for name, p in theirs.items():
            exact(tree[name], p.detach())
            for field, value in optimizer.state.get(p, {}).items():
                exact(getattr(state, field)[name].to(value.dtype), value)
    assert float(state.step["a"]) == {"never": 30, "first": 29, "middle": 26, "always": 0}[when]


def test_a_leaf_without_a_gradient_keeps_everything() -> None:
    tx = fa.adamax(weight_decay=0.1)
    tree = {"a": torch.ones(2), "b": torch.ones(2)}
    _, state = tx.update({"a": torch.ones(2), "b": torch.ones(2)}, tx.init(tree), tree)
    updates, after = tx.update({"a": torch.ones(2), "b": None}, state, tree)
    assert updates["b"] is None
    for field in fa.AdamaxState._fields:
        assert getattr(after, field)["b"] is getattr(state, field)["b"]
    assert fa.apply_updates(tree, updates)["b"] is tree["b"]


def test_no_graph_grows_over_a_hundred_steps() -> None:
    model = torch.nn.Linear(3, 1)
    tree = {name: p.detach() for name, p in model.named_parameters()}
    tx = fa.adamax()
    state = tx.init(tree)
    x = torch.randn(8, 3)

    def loss(tree: Any) -> torch.Tensor:
        return torch.func.functional_call(model, tree, x).square().mean()

    for _ in range(100):
        tree, state = fa.step(tx, grad(loss)(tree), state, tree)
    tensors = [*tree.values(), *(x for field in state for x in field.values())]
    assert all(x.grad_fn is None and not x.requires_grad for x in tensors)


def test_complex_leaves_go_by_components() -> None:
    z = torch.randn(6, dtype=torch.complex128)
    g = torch.randn(6, dtype=torch.complex128)
    tx = fa.adamax(0.1, weight_decay=0.1)
    got, state = fa.step(tx, g, tx.init(z), z)
    want, real = fa.step(
        tx, torch.view_as_real(g), tx.init(torch.view_as_real(z)), torch.view_as_real(z)
    )
    torch.testing.assert_close(torch.view_as_real(got), want)
    torch.testing.assert_close(torch.view_as_real(state.exp_inf), real.exp_inf)
    assert state.exp_avg.is_complex()
    lazy = g.conj().resolve_conj().conj()  # a conjugate view with the values of g
    assert lazy.is_conj()
    assert_equal(fa.step(tx, lazy, tx.init(z), z), (got, state))
    assert_equal(fa.step(tx, lazy, tx.init(z), z.clone(), donate=True), (got, state))


def test_state_dtype_is_the_dtype_of_the_arithmetic() -> None:
    p = torch.randn(100).to(torch.bfloat16)
    g = torch.randn(100).to(torch.bfloat16)
    tx = fa.adamax(0.1, weight_decay=0.1, state_dtype=torch.float32)
    updates, state = tx.update(g, tx.init(p), p)
    wide = fa.adamax(0.1, weight_decay=0.1)
    want, _ = wide.update(g.float(), wide.init(p.float()), p.float())
    assert_equal(updates, want)
    assert state.exp_avg.dtype == torch.float32
    assert_equal(fa.apply_updates(p, updates), (p.float() + want).to(torch.bfloat16))


def test_a_gradient_of_another_dtype_is_cast() -> None:
    tx, p, g = fa.adamax(), torch.randn(3), torch.randn(3, dtype=torch.float64)
    assert_equal(fa.step(tx, g, tx.init(p), p), fa.step(tx, g.float(), tx.init(p), p))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_eps_that_vanishes_warns_once_and_names_the_cure(dtype: torch.dtype) -> None:
    tree = {"a": torch.ones(2, dtype=dtype), "b": torch.ones(2, dtype=dtype)}
    with pytest.warns(UserWarning, match="state_dtype=torch.float32") as caught:
        fa.adamax(eps=1e-8 if dtype == torch.float16 else 1e-45).init(tree)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    fa.adamax(eps=1e-8, state_dtype=torch.float32).init(tree)
    fa.adamax(eps=1e-3).init(tree)
    fa.adamax(eps=0.0).init(tree)  # zero by the caller's own choice


def test_float32_state_decays_where_bfloat16_cannot() -> None:
    p = torch.ones(1, dtype=torch.bfloat16)
    for state_dtype, want in ((None, 1.0), (torch.float32, 0.999**500)):
        tx = fa.adamax(state_dtype=state_dtype)
        state = tx.init(p)
        for g in [1.0] + [1e-3] * 500:
            _, state = tx.update(torch.tensor([g], dtype=torch.bfloat16), state)
        assert state.exp_inf.item() == pytest.approx(want, rel=1e-3)


def test_parts_in_a_chain_make_the_whole_to_two_ulp() -> None:
    whole = fa.adamax(0.1, weight_decay=0.01)
    parts = fa.chain(
        fa.add_decayed_weights(0.01), fa.scale_by_adamax(), fa.scale_by_learning_rate(0.1)
    )
    for dtype in (torch.float32, torch.float64):
        p = torch.randn(1000, dtype=dtype)
        a, b = whole.init(p), parts.init(p)
        for _ in range(5):
            g = torch.randn(1000, dtype=dtype)
            x, a = whole.update(g, a, p)
            y, b = parts.update(g, b, p)
            assert ((x - y).abs() <= 2 * torch.finfo(dtype).eps * x.abs()).all()
            assert_equal(a, b[1])


def test_inside_func_grad_and_vmap_of_grad() -> None:
    tx = fa.adamax(0.1)

    def after_two_steps(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        def loss(w: torch.Tensor) -> torch.Tensor:
            return ((w * x - 1) ** 2).sum()

        state = tx.init(w)
        for _ in range(2):
            w, state = fa.step(tx, grad(loss)(w), state, w)
        return loss(w)

    w = torch.randn(4, 3, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    got = vmap(grad(after_two_steps))(w, x)
    for i in range(4):
        torch.testing.assert_close(got[i], grad(after_two_steps)(w[i], x[i]))


def test_three_steps_of_a_parabola() -> None:
    """f(p) = sum(p^2), p0 = (1, 2), lr = 0.1; values that optax gives in float32."""
    p0 = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    tx, p = fa.adamax(lr), p0
    state = tx.init(p)
    for _ in range(3):
        p, state = fa.step(tx, 2 * p, state, p)
    meta, rate = torch.autograd.grad((p**2).sum(), [p0, lr])
    assert meta.tolist() == pytest.approx([1.4086683, 3.4018064], abs=5e-7)
    assert rate.item() == pytest.approx(-13.5628, abs=5e-5)


def test_the_state_has_a_place_for_every_leaf() -> None:
    tree = with_gaps(params())
    state = fa.adamax().init(tree)
    assert state.step["none"] == state.exp_avg["count"] == fa.EmptyState()
    assert state.exp_avg["inner"]["w"].shape == (4, 3)
    assert state.step["inner"]["w"].dtype == torch.float64
    assert state.step["inner"]["w"].shape == ()


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_parameter_missing_beside_its_state_is_named(donate: bool, weight_decay: float) -> None:
    params = {"w": torch.ones(4), "b": torch.ones(3)}
    tx = fa.adamax(weight_decay=weight_decay)
    grads = {"w": torch.ones(4), "b": torch.ones(3)}
    state, broken = tx.init(params), {**params, "b": None}
    with pytest.raises(ValueError, match=r"params\['b'\] must fit its state"):
        tx.update(grads, state, broken)
    with pytest.raises(ValueError, match=r"params\['b'\] must fit its state"):
        fa.step(tx, grads, state, broken, donate=donate)
