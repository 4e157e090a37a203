"""Gradient accumulation."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from trees import (
    DTYPES,
    assert_equal,
    grads_like,
    leaves,
    params,
    tree_map,
    with_gaps,
)

import functional_adamax as fa

INF, NAN = float("inf"), float("nan")


def growing(step: torch.Tensor) -> torch.Tensor:
    return 1 + step


def total(trees: list[Any]) -> Any:
    return tree_map(lambda *xs: sum(xs[1:], xs[0]), *trees)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("every_k", [1, 2, 3, growing], ids=["1", "2", "3", "growing"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_it_is_the_inner_step_on_whole_batches(dtype: Any, every_k: Any, mean: bool) -> None:
    inner = fa.adamaxw(0.1, weight_decay=0.1)
    tx = fa.multi_steps(inner, every_k, mean)
    tree = with_gaps(params(dtype))
    state, inner_state, batch, steps = tx.init(tree), inner.init(tree), [], 0
    for _ in range(8):
        grads = grads_like(tree)
        batch.append(grads)
        updates, state = tx.update(grads, state, tree)
        k = every_k if isinstance(every_k, int) else steps + 1
        if len(batch) == k:
            whole = tree_map(lambda x, k=k: x / (k if mean else 1), total(batch))
            want, inner_state = inner.update(whole, inner_state, tree)
            batch, steps = [], steps + 1
            assert_equal(updates, want)
            assert_equal(state.acc_grads, tx.init(tree).acc_grads)
        else:
            assert_equal(updates, tree_map(torch.zeros_like, grads))
            sums = leaves(state.acc_grads["inner"])
            for x, y in zip(sums, leaves(total(batch)["inner"]), strict=True):
                torch.testing.assert_close(x, y)
        assert_equal(state.inner, inner_state)
        assert (int(state.mini_step), int(state.gradient_step)) == (len(batch), steps)
        tree = fa.apply_updates(tree, updates)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.filterwarnings("ignore:eps=")
def test_every_one_is_the_inner_transform(dtype: torch.dtype) -> None:
    inner, tree = fa.adamax(0.1, weight_decay=0.1), params(dtype)
    tx = fa.multi_steps(inner, 1)
    state, inner_state = tx.init(tree), inner.init(tree)
    for _ in range(3):
        grads = grads_like(tree)
        got, state = tx.update(grads, state, tree)
        want, inner_state = inner.update(grads, inner_state, tree)
        assert_equal((got, state.inner), (want, inner_state))


def test_halves_are_gathered_in_float32() -> None:
    tx, p = fa.multi_steps(fa.scale(1.0), 512), torch.zeros(1, dtype=torch.bfloat16)
    state = tx.init(p)
    assert state.acc_grads.dtype == torch.float32
    for _ in range(512):  # in bfloat16 the sum would stop at 256
        updates, state = tx.update(torch.ones_like(p), state)
    assert updates.dtype == torch.bfloat16
    assert updates == 1


def test_a_missing_gradient_adds_nothing() -> None:
    tx, one = fa.multi_steps(fa.scale(1.0), 2), torch.ones(1)
    state = tx.init([one, one])
    _, state = tx.update([one, None], state)
    updates, state = tx.update([one, one], state)
    assert_equal(updates, [one, one / 2])


def test_a_leaf_without_gradient_when_it_is_due_waits() -> None:
    inner, one = fa.adamax(0.1, weight_decay=0.1), torch.ones(1)
    tx, tree = fa.multi_steps(inner, 2), [one, 2 * one, 3 * one]
    start = tx.init(tree)
    _, state = tx.update([one, one, None], start, tree)
    updates, state = tx.update([one, None, None], state, tree)
    assert updates[0] is not None
    assert updates[1:] == [None, None]
    assert [float(x) for x in state.acc_grads] == [0.0, 1.0, 0.0]
    assert [float(x) for x in state.inner.step] == [1.0, 0.0, 0.0]
    assert int(state.mini_step) == 0
    _, state = tx.update([one, one, None], state, tree)
    updates, state = tx.update([one, one, None], state, tree)
    want, _ = inner.update([None, 1.5 * one, None], start.inner, tree)
    assert_equal(updates[1], want[1])  # (1 + 1 + 1) / 2
    assert updates[2] is None
    for field in ("step", "exp_avg", "exp_inf"):  # the third was never touched
        assert_equal(getattr(state.inner, field)[2], getattr(start.inner, field)[2])


def test_skipped_mini_steps_have_not_been() -> None:
    inner = fa.adamax(0.1)
    plain, tx = fa.multi_steps(inner, 2), fa.multi_steps(inner, 2, skip=fa.skip_not_finite)
    tree = {"w": torch.ones(2), "n": None}
    state, want_state = tx.init(tree), plain.init(tree)
    for i in range(9):
        grads = {"w": torch.randn(2), "n": None}
        if i % 3 == 1:
            grads["w"][0] = NAN if i == 1 else INF
            updates, after = tx.update(grads, state, tree)
            assert_equal(updates, {"w": torch.zeros(2), "n": None})
            assert_equal(after, state)
            continue
        want, want_state = plain.update(grads, want_state, tree)
        got, state = tx.update(grads, state, tree)
        assert_equal((got, state), (want, want_state))


def test_large_updates_are_skipped() -> None:
    skip = partial(fa.skip_large_updates, max_squared_norm=25.0)
    step = torch.tensor(0)
    for g, want in (([3.0, 3.9], False), ([3.0, 4.0], True), ([NAN, 0.0], True), ([INF], True)):
        assert bool(skip([torch.tensor(g), None], step)) is want
        assert bool(skip(torch.tensor(g).to(torch.complex64) * 1j, step)) is want
    tx = fa.multi_steps(fa.scale(1.0), 1, skip=skip)
    state = tx.init(torch.zeros(2))
    assert torch.equal(tx.update(torch.tensor([3.0, 4.0]), state)[0], torch.zeros(2))
    assert torch.equal(tx.update(torch.tensor([3.0, 3.0]), state)[0], torch.tensor([3.0, 3.0]))


def test_a_schedule_inside_counts_steps_not_mini_steps() -> None:
    tx = fa.multi_steps(fa.scale_by_learning_rate(partial(torch.pow, 0.5)), 2)
    state, seen = tx.init(torch.ones(1)), []
    for _ in range(6):
        updates, state = tx.update(torch.ones(1), state)
        seen.append(float(updates))
    assert seen == [0.0, -1.0, 0.0, -0.5, 0.0, -0.25]
    assert int(state.inner.count) == 3


class Recorder:
    """An inner transform that notes the keyword arguments it gets."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def init(self, params: Any) -> fa.EmptyState:
        return fa.EmptyState()

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        self.seen.append(extra)
        return updates, state


def test_extra_arguments_reach_the_inner_transform() -> None:
    inner = Recorder()
    tx = fa.multi_steps(fa.GradientTransformation(inner.init, inner.update), 2)
    tx.update(torch.ones(1), tx.init(torch.ones(1)), loss=3)
    assert inner.seen == [{"loss": 3}]


def test_it_wraps_and_is_wrapped() -> None:
    tx = fa.multi_steps(fa.apply_if_finite(fa.adamax(0.1), 2), 2, skip=fa.skip_not_finite)
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert tx != fa.multi_steps(fa.apply_if_finite(fa.adamax(0.1), 2), 2)
    assert repr(tx).startswith("multi_steps(inner=apply_if_finite(inner=adamax(")
    outer = fa.chain(fa.clip_by_global_norm(1.0), tx)
    tree = params()
    state = outer.init(tree)
    for _ in range(2):
        updates, state = outer.update(grads_like(tree), state, tree)
    assert all(x.isfinite().all() for x in leaves(updates))


def test_empty_trees_and_missing_params() -> None:
    for tree in ({}, None, [None]):
        tx = fa.multi_steps(fa.adamax(0.1), 2)
        assert tx.update(tree, tx.init(tree))[0] == tree


def test_functions_of_the_user_that_say_something_else() -> None:
    params = torch.ones(2)

    def run(tx: fa.GradientTransformation) -> Any:
        return tx.update(params, tx.init(params), params)

    assert run(fa.multi_steps(fa.sgd(0.1), 1, skip=lambda *_: False))[0][0] == pytest.approx(-0.1)
    fine = fa.conditionally(fa.sgd(0.1), lambda n: np.bool_(True))
    assert run(fine)[0][0] == pytest.approx(-0.1)
    assert not run(fa.multi_steps(fa.sgd(0.1), lambda n: np.int64(2)))[0].any()
    whole = torch.tensor([2**24 + 1])
    kept = fa.conditionally(fa.identity(), lambda n: n < 1)
    assert torch.equal(kept.update(whole, kept.init(whole))[0], whole)
    for tx, words in (
        (fa.multi_steps(fa.sgd(0.1), 1, skip=lambda *_: 1), "skip must return a bool, .* got int"),
        (fa.conditionally(fa.sgd(0.1), lambda n: n % 2), "condition must return .* torch.int64"),
        (fa.conditionally(fa.sgd(0.1), lambda n: None), "condition must return .* got None"),
        (fa.conditionally(fa.sgd(0.1), lambda n: n > params), "condition .* of shape \\(2,\\)"),
        (fa.multi_steps(fa.sgd(0.1), lambda n: None), "every_k must be an integer"),
    ):
        with pytest.raises(TypeError, match=words):
            run(tx)
    with pytest.raises(ValueError, match="every_k must be at least 1, got 0"):
        run(fa.multi_steps(fa.sgd(0.1), lambda n: 0))
    with pytest.raises(TypeError, match="function must be one of the names of leaves, got 'w'"):
        fa.by_path("w")  # type: ignore[arg-type]


def test_errors_say_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"inner must be a pair .*, got 3"):
        fa.multi_steps(3, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every_k must be at least 1, got 0"):
        fa.multi_steps(fa.identity(), 0)
    for bad in (1.5, True, "2"):
        with pytest.raises(TypeError, match=r"every_k must be an integer, or a function .*, got"):
            fa.multi_steps(fa.identity(), bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"skip must be a function .*, got True"):
        fa.multi_steps(fa.identity(), 2, skip=True)  # type: ignore[arg-type]
    tx = fa.multi_steps(fa.identity(), 2)
    state = tx.init({"w": torch.ones(2), "n": None})
    with pytest.raises(TypeError, match="must be the MultiStepsState that init returned, got"):
        tx.update(torch.ones(1), fa.EmptyState())
    with pytest.raises(ValueError, match=r"updates must have the structure .*\['n'\] is missing"):
        tx.update({"w": torch.ones(2)}, state)
    with pytest.raises(TypeError, match=r"updates\['n'\] must be None, because its parameter"):
        tx.update({"w": None, "n": torch.ones(1)}, state)
    with pytest.raises(ValueError, match=r"updates\['w'\] must have the shape .*\(2,\), got \(3,"):
        tx.update({"w": torch.ones(3), "n": None}, state)
