"""A transform that is applied on some calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import functional_adamax as fa


def test_conditionally_takes_or_leaves() -> None:
    tx = fa.conditionally(fa.adamax(0.1), lambda count: count >= 2)
    params = torch.ones(3)
    state = tx.init(params)
    for i in range(4):
        grads = torch.full((3,), float("nan")) if i < 2 else torch.ones(3)
        updates, state = tx.update(grads, state, params)
        assert torch.equal(updates.isnan(), grads.isnan())
    assert state.inner.step == 2
    assert torch.equal(state.inner.exp_inf, torch.ones(3) + 1e-8)
    with pytest.raises(ValueError, match="'pass' or 'zero'"):
        fa.conditionally(fa.identity(), bool, "skip")
    with pytest.raises(TypeError, match="function of the count"):
        fa.conditionally(fa.identity(), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("otherwise", "wanted"), [("pass", [1.0, 5.0]), ("zero", [0.0, 5.0])])
def test_what_becomes_of_updates_where_it_is_not_applied(otherwise: Any, wanted: Any) -> None:
    tx = fa.conditionally(fa.scale(5.0), lambda count: count == 1, otherwise)
    state, found = tx.init(torch.ones(1)), []
    for _ in range(2):
        updates, state = tx.update(torch.ones(1), state)
        found.append(updates.item())
    assert found == wanted
    assert (state.count, state.count.dtype) == (2, torch.int64)


def test_the_condition_may_differ_between_members() -> None:
    tx = fa.conditionally(fa.trace(0.5), lambda count: count % 2 == 0)
    counts = torch.tensor([0, 1])
    state = torch.func.vmap(tx.init)(torch.zeros(2, 3))._replace(count=counts)
    updates, state = torch.func.vmap(tx.update)(torch.ones(2, 3), state)
    assert updates.tolist() == [[1.0] * 3] * 2
    assert state.inner.trace.tolist() == [[1.0] * 3, [0.0] * 3]


def test_what_is_not_taken_reaches_no_derivative() -> None:
    tx = fa.conditionally(fa.stateless(lambda u, p: u.log()), lambda count: False)
    slope = torch.func.grad(lambda u: tx.update(u, tx.init(u))[0].sum())(torch.zeros(2))
    assert slope.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("said", [1.0, None, torch.tensor([True]), torch.tensor(1)], ids=repr)
def test_a_condition_must_say_yes_or_no(said: Any) -> None:
    tx = fa.conditionally(fa.identity(), lambda count: said)
    with pytest.raises(TypeError, match="condition must return a bool, or a bool tensor"):
        tx.update(torch.ones(1), tx.init(torch.ones(1)))
