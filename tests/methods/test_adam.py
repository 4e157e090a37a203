"""Adam and AdamW against torch and NumPy, and their options one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from trees import assert_equal
from twins_methods import COMPLEX, EXACT, assert_same_state, assert_twins, run

import functional_adamax as fa
from functional_adamax._core.numerics import root

BY_ROOTS = {torch.float32: 5, torch.complex64: 5}
"""Roundings by which a step may differ from torch's eager form, whose float32 root is not IEEE's.

The roots differ by one; the quotient, with its own roundings, by two; and an update may be twice as
long as the larger of the old and the new parameter, which is rounded once more.
"""
OPTIONS = [
    {},
    {"amsgrad": True},
    {"weight_decay": 0.1},
    {"betas": (0.5, 0.9), "eps": 1e-3, "maximize": True},
    {"weight_decay": 0.1, "maximize": True, "amsgrad": True},
]


@pytest.mark.parametrize("dtype", EXACT + COMPLEX, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_adam_is_torchs_to_a_rounding_of_the_root(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    tx, ulps = fa.adam(0.1, **options), BY_ROOTS.get(dtype, 0)
    assert_twins(torch.optim.Adam, {"lr": 0.1, **options}, tx, dtype, ulps=ulps)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_twin_is_torchs_fused_form(options: dict[str, Any], decoupled: bool) -> None:
    """To the bit, where vector registers are full: what is left over torch rounds otherwise.

    With decoupled decay to 2 roundings, because torch shrinks the parameter first.
    """
    make = fa.adamw if decoupled else fa.adam
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    p, tx = torch.randn(4096), make(0.1, **options)
    state, twin = tx.init(p), torch.nn.Parameter(p.clone())
    optimizer = kind([twin], 0.1, fused=True, **options)
    for _ in range(30):
        twin.grad = torch.randn_like(twin) * 3
        before = p
        p, state = fa.step(tx, twin.grad, state, p)
        optimizer.step()
        new = twin.detach().clone()
        unit = torch.finfo(p.dtype).eps * torch.maximum(before.abs(), new.abs())
        assert ((p - new).abs() <= (2 * unit if decoupled else 0)).all()
        p = new
        assert_same_state(optimizer, {"p": twin}, type(state)(*({"p": x} for x in state)))


def test_the_root_is_the_nearest_float() -> None:
    x = torch.randn(100_003).exp() ** 8
    np.testing.assert_array_equal(root(x).numpy(), np.sqrt(x.numpy()))
    special = torch.tensor([0.0, -0.0, 1e-45, torch.inf, torch.nan, -1.0])
    np.testing.assert_array_equal(root(special)[:4].numpy(), np.sqrt(special[:4].numpy()))
    assert root(special)[4:].isnan().all()


@pytest.mark.parametrize("dtype", EXACT + COMPLEX, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_adamw_is_torchs_to_two_ulp_beside_the_root(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    tx, ulps = fa.adamw(0.1, **options), max(2, BY_ROOTS.get(dtype, 0))
    assert_twins(torch.optim.AdamW, {"lr": 0.1, **options}, tx, dtype, ulps=ulps)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_a_tensor_learning_rate_is_that_of_torch(dtype: torch.dtype) -> None:
    lr = torch.tensor(0.1)
    assert_twins(torch.optim.Adam, {"lr": lr}, fa.adam(lr), dtype, ulps=BY_ROOTS.get(dtype, 0))


def test_the_bits_last_for_two_thousand_steps() -> None:
    """The root of the bias correction, taken by sqrt, would differ in one of 200 to 2000 steps."""
    p = torch.randn(7, dtype=torch.float64)
    twin = torch.nn.Parameter(p.clone())
    optimizer = torch.optim.Adam([twin], 0.01, (0.9, 0.99))
    tx = fa.adam(0.01, (0.9, 0.99))
    state = tx.init(p)
    for _ in range(2000):
        twin.grad = torch.randn_like(p)
        p, state = fa.step(tx, twin.grad, state, p)
        optimizer.step()
    assert_equal(p, twin.detach())


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_it_is_the_formula(amsgrad: bool, decoupled: bool) -> None:
    random = np.random.default_rng(0)
    lr, b1, b2, eps, decay = 0.05, 0.8, 0.9, 1e-3, 0.1
    make = fa.adamw if decoupled else fa.adam
    tx = make(lr, (b1, b2), eps, decay, amsgrad)
    p = random.normal(size=6)
    m, v, top, t = np.zeros(6), np.zeros(6), np.zeros(6), 0
    ours = torch.tensor(p)
    state = tx.init(ours)
    for i in range(20):
        g = None if i % 4 == 0 else random.normal(size=6) * 10.0 ** random.integers(-3, 3)
        if g is not None:
            c = g if decoupled else g + decay * p
            t += 1
            m, v = b1 * m + (1 - b1) * c, b2 * v + (1 - b2) * c**2
            top = np.maximum(top, v) if amsgrad else v
            step = lr * (m / (1 - b1**t)) / (np.sqrt(top / (1 - b2**t)) + eps)
            p = p - step - (lr * decay * p if decoupled else 0)
        ours, state = fa.step(tx, None if g is None else torch.tensor(g), state, ours)
        np.testing.assert_allclose(ours.numpy(), p, rtol=1e-11, atol=1e-11)
    assert int(state.step) == t


def test_without_amsgrad_there_is_no_maximum() -> None:
    assert fa.adam().init({"a": torch.ones(2)}).max_exp_avg_sq == fa.EmptyState()


@pytest.mark.parametrize("make", [fa.adam, fa.adamw], ids=["adam", "adamw"])
def test_a_first_gradient_of_none_or_zero_moves_nothing(make: Any) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tx, p = make(weight_decay=0.0, amsgrad=True), torch.ones(3, dtype=dtype)
        state = tx.init(p)
        updates, same = tx.update(None, state, p)
        assert updates is None
        assert same.exp_avg is state.exp_avg
        assert same.step is state.step
        p, state = fa.step(tx, torch.zeros(3, dtype=dtype), state, p)
        assert_equal(p, torch.ones(3, dtype=dtype))


def test_derivatives_are_finite_where_a_gradient_has_always_been_zero() -> None:
    p = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    tx = fa.adam(0.1, eps=1e-2)
    state, q = tx.init(p), p
    for _ in range(3):
        q, state = fa.step(tx, scale * q, state, q)
    by_p, by_scale = torch.autograd.grad(q.sum(), [p, scale])
    assert by_p.isfinite().all()
    assert by_scale.isfinite().all()
    assert by_p[0] == 1.0
    # near zero Adam's first step is -lr * g / eps: so is the derivative there
    g = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(tx.update(g, tx.init(g))[0], g)
    assert float(slope) == pytest.approx(-0.1 / 1e-2)


def test_trees_without_leaves_or_without_state() -> None:
    tx = fa.adam(weight_decay=0.1)
    assert tx.update({}, tx.init({}), {})[0] == {}
    tree = {"none": None, "count": torch.tensor(3)}
    state = tx.init(tree)
    assert state.step["none"] == state.exp_avg["count"] == fa.EmptyState()
    updates, after = tx.update({"none": None, "count": None}, state, tree)
    assert updates == {"none": None, "count": None}
    assert after == state
    with pytest.raises(TypeError, match=r"grads\['count'\] must be None"):
        tx.update({"none": None, "count": torch.ones(())}, state, tree)


def test_half_precision_stays_near_torch() -> None:
    p, grads = torch.randn(50).to(torch.bfloat16), torch.randn(20, 50).to(torch.bfloat16)
    twin = torch.nn.Parameter(p.clone())
    optimizer = torch.optim.Adam([twin], 0.1)
    for twin.grad in grads:
        optimizer.step()
    got = run(fa.adam(0.1), p, list(grads))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, twin.detach(), rtol=0.05, atol=0.05)


def test_parts_in_a_chain_make_the_whole() -> None:
    grads = [torch.randn(20, dtype=torch.float64) for _ in range(5)]
    p = torch.randn(20, dtype=torch.float64)
    coupled = fa.chain(
        fa.add_decayed_weights(0.1),
        fa.scale_by_adam(amsgrad=True),
        fa.scale_by_learning_rate(0.1),
    )
    decoupled = fa.chain(
        fa.scale_by_adam(), fa.add_decayed_weights(0.1), fa.scale_by_learning_rate(0.1)
    )
    whole = fa.adam(0.1, weight_decay=0.1, amsgrad=True)
    torch.testing.assert_close(run(coupled, p, grads), run(whole, p, grads), rtol=1e-14, atol=0)
    whole = fa.adamw(0.1, weight_decay=0.1)
    torch.testing.assert_close(run(decoupled, p, grads), run(whole, p, grads), rtol=1e-13, atol=0)


def test_numbers_tensors_trees_and_schedules_agree() -> None:
    p, grads = torch.randn(50), [torch.randn(50) for _ in range(5)]
    want = run(fa.adam(0.1, (0.8, 0.9), 1e-3, 0.1), p, grads)

    def tensor(x: float) -> torch.Tensor:
        return torch.tensor([x], dtype=torch.float64)

    tensors = fa.adam(tensor(0.1), (tensor(0.8), tensor(0.9)), tensor(1e-3), tensor(0.1))
    assert_equal(run(tensors, p, grads), want)
    each = torch.full((50,), 0.1, dtype=torch.float64)
    assert_equal(run(fa.adam(each, (0.8, 0.9), 1e-3, each), p, grads), want)
    assert_equal(run(fa.adam(lambda count: 0.1, (0.8, 0.9), 1e-3, 0.1), p, grads), want)


def test_state_dtype_is_the_dtype_of_the_arithmetic() -> None:
    p, g = torch.randn(9).to(torch.bfloat16), torch.randn(9).to(torch.bfloat16)
    tx, wide = fa.adam(0.1, state_dtype=torch.float32), fa.adam(0.1)
    updates, state = tx.update(g, tx.init(p), p)
    assert_equal(updates, wide.update(g.float(), wide.init(p.float()))[0])
    assert state.exp_avg_sq.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, r"lr must be in \[0, inf\), got -1.0"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be in \[0, 1\), got 1.0"),
        ({"betas": 0.9}, TypeError, "betas must be a pair"),
        ({"eps": "small"}, TypeError, "eps must be a real number or a real tensor"),
        ({"state_dtype": torch.int32}, TypeError, "state_dtype must be a real floating dtype"),
    ],
)
def test_bad_options_are_named(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fa.adam(**options)


def test_bad_trees_are_named() -> None:
    p, tx = {"a": torch.ones(2)}, fa.adam(weight_decay=0.1)
    with pytest.raises(ValueError, match="params must be given for weight decay"):
        tx.update(p, tx.init(p))
    with pytest.raises(TypeError, match="must be the AdamState that init returned, got SgdState"):
        tx.update(p, fa.sgd(0.1).init(p), p)
    with pytest.raises(ValueError, match=r"grads.*\['b'\] is unexpected"):
        tx.update({"a": torch.ones(2), "b": torch.ones(2)}, tx.init(p), p)
    with pytest.raises(ValueError, match=r"state.max_exp_avg_sq must have the structure"):
        fa.adam(amsgrad=True).update(p, tx.init(p))
    broken = tx.init(p)._replace(exp_avg_sq={"a": torch.ones(3)})
    with pytest.raises(ValueError, match=r"state.exp_avg_sq\['a'\] must fit state.exp_avg"):
        tx.update(p, broken, p)
