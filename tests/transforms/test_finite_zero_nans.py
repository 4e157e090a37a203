"""Gradients whose NaN are zeros."""

from __future__ import annotations

import pytest
import torch

import functional_adamax as fa

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("infinities", [False, True])
def test_zero_nans_is_its_formula(infinities: bool) -> None:
    tree = {"a": torch.zeros(4), "b": torch.zeros(2), "c": torch.zeros(0), "d": None}
    tx = fa.zero_nans(infinities=infinities)
    grads = {
        "a": torch.tensor([NAN, INF, -INF, 2.0]),
        "b": torch.tensor([1.0, INF]),
        "c": torch.zeros(0),
        "d": None,
    }
    got, state = tx.update(grads, tx.init(tree))
    want = torch.tensor([0.0, 0.0, 0.0, 2.0] if infinities else [0.0, INF, -INF, 2.0])
    assert torch.equal(got["a"], want)
    assert torch.equal(got["b"], torch.tensor([1.0, 0.0 if infinities else INF]))
    assert got["d"] is None
    found = {k: bool(x) for k, x in state.found.items() if k != "d"}
    assert found == {"a": True, "b": infinities, "c": False}
    assert state.found["d"] == fa.EmptyState()


def test_zero_nans_takes_a_complex_element_as_one() -> None:
    tx, g = fa.zero_nans(), torch.tensor([complex(NAN, 1), 1 + 2j])
    got, state = tx.update(g, tx.init(g))
    assert torch.equal(got, torch.tensor([0, 1 + 2j]))
    assert state.found


def test_zero_nans_forgets_at_the_next_gradient_but_not_without_one() -> None:
    tx, tree = fa.zero_nans(), [torch.zeros(1), torch.zeros(1)]
    _, state = tx.update([torch.tensor([NAN])] * 2, tx.init(tree))
    _, state = tx.update([torch.ones(1), None], state)
    assert [bool(x) for x in state.found] == [False, True]


def test_zero_nans_stops_derivatives() -> None:
    factor = torch.ones(2, requires_grad=True)
    tx = fa.zero_nans()
    got, _ = tx.update(factor * torch.tensor([1.0, NAN]), tx.init(factor))
    weight = torch.autograd.grad(got.sum() + got[1] ** 2, got)[0]
    assert torch.equal(weight, torch.ones(2))
    got, _ = tx.update(torch.tensor([2.0, NAN]).requires_grad_(), tx.init(factor))
    assert got.isfinite().all()
