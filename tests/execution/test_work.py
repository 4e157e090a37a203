"""The record of work: its checks, its leaves, and results in their places."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax._execution.work import Work, leaves_of


def work(tx: fa.GradientTransformation, grads: Any, state: Any, params: Any = None) -> Work:
    made: Work = tx.update.transform.work(grads, state, params)  # type: ignore[attr-defined]
    return made


PARAMS = {"a": torch.ones(2), "b": torch.ones(3), "n": None}
GRADS = {"a": torch.full((2,), 2.0), "b": None, "n": None}


def test_columns_have_an_item_for_each_leaf() -> None:
    tx = fa.adamax(0.1, weight_decay=0.5, maximize=True)
    state = tx.init(PARAMS)
    x = work(tx, GRADS, state, PARAMS)
    assert x.p == [PARAMS["a"], PARAMS["b"], None]
    assert x.g == [GRADS["a"], None, None]
    assert x.t[0] is state.step["a"]
    assert list(x.moments) == ["exp_avg", "exp_inf"]
    assert x.moments["exp_inf"][2] == fa.EmptyState()
    assert x.stepped() == [0]
    assert x.hyper is None
    x.check()
    assert x.hyper is not None
    assert x.hyper["weight_decay"] == [0.5] * 3
    once = x.hyper
    x.check()
    assert x.hyper is once, "what is checked is not checked again"


def test_a_leaf_has_all_that_its_step_needs() -> None:
    lr = {"a": torch.tensor([0.1, 0.2]), "b": 0.3, "n": 0.0}
    tx = fa.adamaxw(lr, state_dtype=torch.float64, maximize=True)
    x = work(tx, GRADS, tx.init(PARAMS), PARAMS)
    x.check()
    assert x.elementwise() == {0}
    found = x.leaf(0)
    assert found.p is PARAMS["a"]
    assert found.g is GRADS["a"]
    assert found.hyper["lr"] is lr["a"]
    assert (found.dtype, found.maximize, found.decoupled) == (torch.float64, True, True)
    (of_adamax,) = leaves_of(x, [0]).values()
    assert of_adamax.p is found.p
    assert of_adamax.m is found.moments["exp_avg"]
    assert of_adamax.lr is lr["a"]
    assert (of_adamax.maximize, of_adamax.decoupled, of_adamax.floor) == (True, True, None)


def test_leaves_of_adamax_are_those_of_no_other_rule() -> None:
    tx = fa.adam(0.1)
    assert leaves_of(work(tx, GRADS, tx.init(PARAMS), PARAMS), [0]) == {}
    tx = fa.adamax(0.1)
    x = work(tx, {**GRADS, "a": torch.ones(5)}, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="must have the shape of its parameter"):
        leaves_of(x, [0])


def test_results_are_put_in_their_places() -> None:
    tx = fa.adamax(0.1)
    state = tx.init(PARAMS)
    x = work(tx, GRADS, state, PARAMS)
    row = [torch.full((2,), float(i)) for i in range(4)]
    for add in (False, True):
        first, t, m, u = x.columns({0: row}, add)
        assert [first[0], t[0], m[0], u[0]] == row
        assert first[1] is (PARAMS["b"] if add else None)
        assert t[1] is state.step["b"]
        assert u[2] == fa.EmptyState()
    assert x.t[0] is state.step["a"], "the work itself is as it was"


def test_without_moments_the_parameter_is_what_fits() -> None:
    tx = fa.sgd(0.1)
    x = work(tx, GRADS, tx.init(PARAMS), PARAMS)
    assert x.moments == {}
    assert x.like()[:2] == [PARAMS["a"], PARAMS["b"]]
    y = work(tx, GRADS, tx.init(PARAMS))
    assert y.like()[0] is GRADS["a"]
    y.check()
    assert y.leaf(0).dtype == torch.float32
