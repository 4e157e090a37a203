"""Lion against its formula, and its options one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trees import assert_equal
from twins_methods import run

import functional_adamax as fa


@pytest.mark.parametrize("maximize", [False, True])
def test_it_is_the_papers_algorithm(maximize: bool) -> None:
    random = np.random.default_rng(0)
    tx = fa.lion(0.05, (0.7, 0.9), 0.1, maximize=maximize)
    p, m, t = random.normal(size=6), np.zeros(6), 0
    ours = torch.tensor(p)
    state = tx.init(ours)
    for i in range(20):
        g = None if i % 4 == 0 else random.normal(size=6)
        if g is not None:
            s, t = (-g if maximize else g), t + 1
            p = p - 0.05 * (np.sign(0.7 * m + 0.3 * s) + 0.1 * p)
            m = 0.9 * m + 0.1 * s
        ours, state = fa.step(tx, None if g is None else torch.tensor(g), state, ours)
        np.testing.assert_allclose(ours.numpy(), p, rtol=1e-13)
        np.testing.assert_allclose(state.exp_avg.numpy(), m, rtol=1e-12, atol=1e-15)
    assert int(state.step) == t


def test_zero_stays_and_nan_is_not_hidden() -> None:
    tx = fa.lion(0.1)
    updates, state = tx.update(torch.tensor([0.0, torch.nan, -2.0]), tx.init(torch.zeros(3)))
    assert updates[0] == 0.0
    assert updates[1].isnan()
    assert updates[2] == pytest.approx(0.1)
    assert state.exp_avg[1].isnan()


def test_a_none_gradient_leaves_its_leaf_alone() -> None:
    tx, tree = fa.lion(weight_decay=0.1), {"a": torch.ones(2), "b": torch.ones(2)}
    state = tx.init(tree)
    updates, after = tx.update({"a": torch.ones(2), "b": None}, state, tree)
    assert updates["b"] is None
    assert after.exp_avg["b"] is state.exp_avg["b"]
    assert after.step["b"] is state.step["b"]


def test_complex_leaves_go_by_components() -> None:
    z, g = torch.randn(6, dtype=torch.complex128), torch.randn(6, dtype=torch.complex128)
    tx = fa.lion(0.1, weight_decay=0.1)
    want = run(tx, torch.view_as_real(z), [torch.view_as_real(g)] * 3)
    torch.testing.assert_close(torch.view_as_real(run(tx, z, [g] * 3)), want)


def test_parts_in_a_chain_make_the_whole() -> None:
    p, grads = torch.randn(20), [torch.randn(20) for _ in range(5)]
    chain = fa.chain(
        fa.scale_by_lion(), fa.add_decayed_weights(0.1), fa.scale_by_learning_rate(0.1)
    )
    want = run(fa.lion(0.1, weight_decay=0.1), p, grads)
    torch.testing.assert_close(run(chain, p, grads), want)


def test_numbers_tensors_and_schedules_agree() -> None:
    p, grads = torch.randn(50), [torch.randn(50) for _ in range(5)]
    want = run(fa.lion(0.1, (0.8, 0.9), 0.1), p, grads)
    lr, b1, b2, decay = (torch.tensor([x], dtype=torch.float64) for x in (0.1, 0.8, 0.9, 0.1))
    assert_equal(run(fa.lion(lr, (b1, b2), decay), p, grads), want)
    assert_equal(run(fa.lion(lambda count: 0.1, (0.8, 0.9), 0.1), p, grads), want)


def test_state_dtype_keeps_what_bfloat16_loses() -> None:
    p = torch.zeros(1, dtype=torch.bfloat16)
    for dtype, same in ((None, True), (torch.float32, False)):
        tx = fa.lion(betas=(0.9, 0.999), state_dtype=dtype)
        state = tx.init(p)._replace(exp_avg=torch.ones(1, dtype=dtype or torch.bfloat16))
        _, after = tx.update(torch.zeros(1, dtype=torch.bfloat16), state)
        assert torch.equal(after.exp_avg, state.exp_avg) == same


def test_mistakes_are_named() -> None:
    p = {"a": torch.ones(2)}
    with pytest.raises(ValueError, match=r"betas\[1\] must be in \[0, 1\), got 1.0"):
        fa.lion(betas=(0.9, 1.0))
    with pytest.raises(TypeError, match="state must be the LionState that init returned"):
        fa.lion().update(p, fa.adam().init(p))
    with pytest.raises(ValueError, match="params must be given for weight decay"):
        fa.lion(weight_decay=0.1).update(p, fa.lion().init(p))
    with pytest.raises(ValueError, match=r"grads\['a'\] must have the shape.*\(2,\).*\(3,\)"):
        fa.lion().update({"a": torch.ones(3)}, fa.lion().init(p))
