"""Lookahead against two nested loops with separate slow and fast weights."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import vmap
from trees import assert_equal, clone, grads_like, params, with_gaps

import functional_adamax as fa

K, ALPHA = 3, 0.4


def run(tx: Any, grads: list[Any], tree: Any) -> tuple[list[Any], list[Any]]:
    """Return the parameters and the states after each step."""
    points, states = [], [tx.init(tree)]
    for g in grads:
        tree, state = fa.step(tx, g, states[-1], tree)
        points.append(tree)
        states.append(state)
    return points, states[1:]


def test_it_is_the_two_loops_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    slow = rng.standard_normal(4)
    momentum = np.zeros(4)
    start, grads, wanted = torch.tensor(slow), [], []
    for _ in range(4):  # Algorithm 1, with SGD with momentum inside
        fast = slow.copy()
        for i in range(K):
            g = rng.standard_normal(4)
            grads.append(torch.tensor(g))
            momentum = 0.9 * momentum + g
            fast = fast - 0.1 * momentum
            if i == K - 1:
                slow = slow + ALPHA * (fast - slow)
            wanted.append((slow if i == K - 1 else fast, slow))
    points, states = run(fa.lookahead(fa.sgd(0.1, 0.9), K, ALPHA), grads, start)
    for p, state, (fast, slow) in zip(points, states, wanted, strict=True):
        np.testing.assert_allclose(p.numpy(), fast, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(state.slow.numpy(), slow, rtol=1e-12, atol=1e-14)
    assert states[-1].count == 4 * K


@pytest.mark.parametrize("reset", [False, True])
def test_a_reset_makes_the_state_of_init(reset: bool) -> None:
    inner = fa.chain(fa.scale_by_adamax(), fa.params_ema(0.9), fa.scale(-0.1))
    tx = fa.lookahead(inner, K, ALPHA, reset_state=reset)
    tree = with_gaps(params())
    points, states = run(tx, [grads_like(tree) for _ in range(2 * K)], tree)
    for i, (point, state) in enumerate(zip(points, states, strict=True), start=1):
        if i % K == 0 and reset:
            torch.testing.assert_close(
                state.inner[1].average["inner"]["w"], point["inner"]["w"], rtol=1e-12, atol=1e-13
            )
            assert_equal(state.inner[0], inner.init(point)[0])
        else:
            assert state.inner[0].step["inner"]["w"] == (i % K if reset else i)


def test_the_ends_of_the_way() -> None:
    tree = {"w": torch.randn(3, dtype=torch.float64)}
    grads = [grads_like(tree) for _ in range(2 * K)]
    whole = run(fa.lookahead(fa.adamax(0.1), K, 1.0), grads, tree)[0]
    alone = run(fa.adamax(0.1), grads, tree)[0]
    for x, y in zip(whole, alone, strict=True):
        torch.testing.assert_close(x["w"], y["w"], rtol=1e-13, atol=1e-14)
    back = run(fa.lookahead(fa.adamax(0.1), K, 0.0), grads, tree)[0]
    torch.testing.assert_close(back[K - 1], tree, rtol=1e-13, atol=1e-14)
    assert not torch.equal(back[K - 2]["w"], tree["w"])


def test_a_missing_gradient_leaves_its_leaf_as_it_is() -> None:
    tx = fa.lookahead(fa.sgd(1.0), 1, 0.5)
    tree = {"a": torch.ones(2), "b": torch.ones(2), "n": torch.tensor(3), "none": None}
    state = tx.init(tree)
    assert state.slow["n"] == state.slow["none"] == fa.EmptyState()
    grads = {"a": torch.ones(2), "b": None, "n": None, "none": None}
    before = clone((grads, state, tree))
    updates, new = tx.update(grads, state, tree)
    assert updates["b"] is updates["n"] is updates["none"] is None
    assert new.slow["b"] is state.slow["b"]
    assert torch.equal(updates["a"], torch.full((2,), -0.5))
    assert_equal((grads, state, tree), before)


def test_what_is_not_taken_leaves_no_trace() -> None:
    tx = fa.lookahead(fa.identity(), 2, 0.5)
    p = torch.zeros(2, requires_grad=True)
    state = tx.init(p)
    bad = torch.tensor([torch.nan, torch.inf])
    _, state = tx.update(bad, state, p)
    assert not state.slow.any()
    new, state = fa.step(tx, torch.ones(2), state, p)
    assert torch.equal(new, torch.full((2,), 0.5))
    assert torch.equal(torch.autograd.grad(new.sum(), p)[0], torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_fast_is_slow_after_a_synchronisation(dtype: torch.dtype) -> None:
    tree = params(dtype)
    points, states = run(
        fa.lookahead(fa.sgd(0.1), 2, 0.5), [grads_like(tree) for _ in range(4)], tree
    )
    for point, state in zip(points[1::2], states[1::2], strict=True):
        torch.testing.assert_close(state.slow["w"], point["w"], rtol=1e-6, atol=1e-7)


def test_each_leaf_and_each_member_has_its_own_step_size() -> None:
    def last(size: torch.Tensor) -> Any:
        tx = fa.lookahead(fa.sgd(1.0), 1, {"a": size, "b": 1.0})
        tree = {"a": torch.zeros(2), "b": torch.zeros(2)}
        return fa.step(tx, {"a": -torch.ones(2), "b": -torch.ones(2)}, tx.init(tree), tree)[0]

    got = vmap(last)(torch.tensor([0.25, 0.5]))
    assert got["a"][:, 0].tolist() == [0.25, 0.5]
    assert got["b"][:, 0].tolist() == [1.0, 1.0]


def test_errors_and_repr() -> None:
    with pytest.raises(ValueError, match=r"sync_period must be an int in \[1, inf\), got 0"):
        fa.lookahead(fa.sgd(0.1), 0, 0.5)
    with pytest.raises(ValueError, match=r"slow_step_size must be in \[0, inf\), got -1"):
        fa.lookahead(fa.sgd(0.1), 5, -1.0)
    with pytest.raises(TypeError, match=r"inner must be a pair \(init, update\) of functions"):
        fa.lookahead(fa.sgd, 5, 0.5)  # type: ignore[arg-type]
    tx, tree = fa.lookahead(fa.scale(-1.0), 5, 0.5), {"w": torch.ones(2)}
    state = tx.init(tree)
    with pytest.raises(ValueError, match=r"params must be given to lookahead, got None: call"):
        tx.update(tree, state)
    with pytest.raises(TypeError, match="state must be the LookaheadState that init returned"):
        tx.update(tree, (), tree)
    with pytest.raises(ValueError, match=r"params\['w'\] must fit its state.*\(3,\)"):
        tx.update(tree, state, {"w": torch.ones(3)})
    with pytest.raises(ValueError, match=r"updates must have the structure.*\['w'\] is missing"):
        tx.update({}, state, tree)
    assert repr(tx) == (
        "lookahead(inner=scale(factor=-1.0), sync_period=5, slow_step_size=0.5, reset_state=False)"
    )
    assert pickle.loads(pickle.dumps(tx)) == tx
