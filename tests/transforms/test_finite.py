"""Updates that are rejected where they are not finite."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch.func import vmap
from trees import (
    DTYPES,
    assert_equal,
    clone,
    grads_like,
    leaves,
    member,
    params,
    stack,
    tree_map,
    with_gaps,
)

import functional_adamax as fa

INF, NAN = float("inf"), float("nan")


class Recorder:
    """An inner transform that notes the keyword arguments it gets."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def init(self, params: Any) -> fa.EmptyState:
        return fa.EmptyState()

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        self.seen.append(extra)
        return updates, state


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [INF, -INF, NAN])
@pytest.mark.filterwarnings("ignore:eps=")
def test_a_bad_update_changes_no_bit(dtype: torch.dtype, bad: float) -> None:
    inner = fa.adamax(0.1)
    tx, tree = fa.apply_if_finite(inner, 3), with_gaps(params(dtype))
    state = tx.init(tree)
    good = [grads_like(tree) for _ in range(2)]
    want, state = tx.update(good[0], state, tree)
    assert_equal(want, inner.update(good[0], inner.init(tree), tree)[0])

    worse = clone(good[1])
    worse["inner"]["layers"][0].left[1] = complex(1.0, bad) if dtype.is_complex else bad
    updates, after = tx.update(worse, state, tree)
    assert_equal(updates, tree_map(lambda x: x * 0, want))
    assert_equal(after.inner, state.inner)
    assert (int(after.notfinite_count), int(after.total_notfinite)) == (1, 1)
    assert not after.last_finite
    assert_equal(fa.step(tx, worse, state, tree)[0], tree)

    again, last = tx.update(good[1], after, tree)
    assert_equal(again, inner.update(good[1], state.inner, tree)[0])
    assert (int(last.notfinite_count), int(last.total_notfinite)) == (0, 1)
    assert last.last_finite


@pytest.mark.parametrize("n", [0, 1, 3])
def test_after_so_many_it_gives_up(n: int) -> None:
    tx, tree = fa.apply_if_finite(fa.scale(1.0), n), torch.zeros(2)
    state = tx.init(tree)
    for i in range(n):
        updates, state = tx.update(torch.tensor([NAN, 1.0]), state)
        assert torch.equal(updates, torch.zeros(2)), i
    for i in range(2):
        updates, state = tx.update(torch.tensor([NAN, 1.0]), state)
        assert updates[0].isnan()
        assert updates[1] == 1
        assert int(state.notfinite_count) == n + 1 + i
    updates, state = tx.update(torch.ones(2), state)
    assert torch.equal(updates, torch.ones(2))
    assert int(state.notfinite_count) == 0
    assert int(state.total_notfinite) == n + 2


def test_missing_gradients_count_as_finite() -> None:
    tx, tree = fa.apply_if_finite(fa.adamax(0.1), 2), [torch.ones(2), torch.ones(2), None]
    state = tx.init(tree)
    updates, after = tx.update([None, None, None], state, tree)
    assert updates == [None] * 3
    assert_equal(after, state)
    updates, after = tx.update([None, torch.tensor([NAN, 0.0]), None], state, tree)
    assert updates[0] is None
    assert torch.equal(updates[1], torch.zeros(2))
    assert_equal(after.inner, state.inner)
    assert fa.apply_if_finite(fa.identity(), 2).update({}, state)[0] == {}


def test_each_member_is_judged_alone() -> None:
    tx = fa.apply_if_finite(fa.adamax(0.1), 1)
    trees = [params() for _ in range(3)]
    gradients = [[grads_like(trees[0]) for _ in trees] for _ in range(4)]
    for step in (0, 1):
        gradients[step][1]["w"][0, 0] = NAN
    states = [tx.init(tree) for tree in trees]
    tree, state = stack(trees), vmap(tx.init)(stack(trees))
    for grads in gradients:
        got, state = vmap(tx.update)(stack(grads), state, tree)
        for i in range(3):
            want, states[i] = tx.update(grads[i], states[i], trees[i])
            one = leaves((member(got, i), member(state, i)))
            for x, y in zip(one, leaves((want, states[i])), strict=True):
                torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert [bool(x) for x in state.last_finite] == [True] * 3
    assert state.inner.exp_avg["w"][[0, 2]].isfinite().all()
    assert state.inner.exp_avg["w"][1].isnan().any()  # the second in a row was accepted


def root(g: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    """A stage whose derivative is infinite at zero."""
    return g / (g * g).sqrt(), state


ROOT = fa.GradientTransformation(fa.identity().init, root)


@pytest.mark.parametrize("inner", [fa.adamax(0.1, eps=0.0), ROOT], ids=["adamax", "root"])
@pytest.mark.parametrize("bad", [INF, NAN])
def test_what_was_rejected_reaches_no_derivative(inner: Any, bad: float) -> None:
    tx = fa.apply_if_finite(inner, 3)
    p = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def unrolled(p: Any, middle: float) -> Any:
        q, state = p, tx.init(p)
        for i in range(3):
            add = torch.tensor([middle if i == 1 else 0.0, 0.0], dtype=torch.float64)
            updates, state = tx.update(q * q + add, state, q)
            q = q + 0.1 * updates
        return q

    value = unrolled(p, bad)
    (derivative,) = torch.autograd.grad(value.square().sum(), p, create_graph=True)
    assert derivative.isfinite().all()
    (second,) = torch.autograd.grad(derivative.sum(), p)
    assert second.isfinite().all()
    _, tangent = torch.func.jvp(lambda p: unrolled(p, bad), (p,), (torch.ones_like(p),))
    assert tangent.isfinite().all()

    state, q = tx.init(p), p  # the same without the bad step
    for _ in range(2):
        updates, state = tx.update(q * q, state, q)
        q = q + 0.1 * updates
    assert torch.equal(value, q)
    assert torch.equal(derivative, torch.autograd.grad(q.square().sum(), p)[0])


@pytest.mark.parametrize("factory", [fa.adam, fa.adamax], ids=["root", "quotient"])
def test_a_rejected_first_step_reaches_no_derivative_of_a_hyperparameter(factory: Any) -> None:
    """Without moments and without eps, roots and quotients have none at a gradient of zero."""
    b2 = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    tx = fa.apply_if_finite(factory(0.1, (0.9, b2), 0.0), 3)
    p = torch.ones(1, dtype=torch.float64)

    def end(grads: list[float]) -> torch.Tensor:
        q, state = p, tx.init(p)
        for g in grads:
            updates, state = tx.update(torch.full_like(p, g), state, q)
            q = q + updates
        return q.sum()

    (found,) = torch.autograd.grad(end([NAN, 2.0, 0.5]), b2)
    (wanted,) = torch.autograd.grad(end([2.0, 0.5]), b2)
    assert found == wanted != 0


def test_compiled_is_eager_with_bad_updates() -> None:
    torch._dynamo.reset()
    tx, tree = fa.apply_if_finite(fa.adamax(0.1), 1), {"w": torch.randn(4, 3)}
    compiled = torch.compile(tx.update, fullgraph=True)
    state = tx.init(tree)
    for bad in (0.0, NAN, 0.0, INF, NAN):
        grads = {"w": torch.randn(4, 3)}
        grads["w"][0, 0] += bad
        want, want_state = tx.update(grads, state, tree)
        got, state = compiled(grads, state, tree)
        for x, y in zip(leaves((got, state)), leaves((want, want_state)), strict=True):
            torch.testing.assert_close(x, y, equal_nan=True)


def test_extra_arguments_reach_the_inner_transform() -> None:
    inner = Recorder()
    tx = fa.apply_if_finite(fa.GradientTransformation(inner.init, inner.update), 2)
    tx.update(torch.ones(1), tx.init(torch.ones(1)), loss=3)
    assert inner.seen == [{"loss": 3}]


def test_it_wraps_a_chain_and_prints() -> None:
    tx = fa.apply_if_finite(fa.chain(fa.clip(1.0), fa.adamax(partial_lr)), 2)
    assert repr(tx).startswith("apply_if_finite(inner=chain(clip(max_value=1.0), adamax(")
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert fa.apply_if_finite(fa.clip(1.0), 2) != fa.apply_if_finite(fa.clip(1.0), 3)
    tree = torch.ones(2)
    state = tx.init(tree)
    _, state = tx.update(torch.tensor([NAN, 1.0]), state, tree)
    assert int(state.inner[1].count) == 0  # the schedule did not move
    _, state = tx.update(torch.ones(2), state, tree)
    assert int(state.inner[1].count) == 1


def partial_lr(count: torch.Tensor) -> torch.Tensor:
    return 0.1 * 0.5**count


def test_errors_say_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"inner must be a pair .*, got 3"):
        fa.apply_if_finite(3, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_consecutive_errors must be an integer, got 1.5"):
        fa.apply_if_finite(fa.identity(), 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_consecutive_errors must be at least 0, got -1"):
        fa.apply_if_finite(fa.identity(), -1)
    with pytest.raises(TypeError, match="must be the ApplyIfFiniteState that init returned"):
        fa.apply_if_finite(fa.identity(), 1).update(torch.ones(1), fa.EmptyState())
    with pytest.raises(TypeError, match="must be the ZeroNansState that init returned"):
        fa.zero_nans().update(torch.ones(1), fa.EmptyState())
    tx = fa.zero_nans()
    state = tx.init({"w": torch.ones(1), "n": None})
    with pytest.raises(ValueError, match=r"updates must have the structure .*\['n'\] is missing"):
        tx.update({"w": torch.ones(1)}, state)
    with pytest.raises(TypeError, match=r"updates\['n'\] must be None, because its parameter"):
        tx.update({"w": None, "n": torch.ones(1)}, state)
    with pytest.raises(RuntimeError, match=r"updates\['w'\]: zero_nans does not support sparse"):
        tx.update({"w": torch.ones(1).to_sparse(), "n": None}, state)
