"""What is in a state, found and changed by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trees import assert_equal

import functional_adamax as fa
from functional_adamax._core import pytree


def tree() -> dict[str, Any]:
    return {"fc": {"weight": torch.randn(2, 3), "bias": torch.randn(3)}, "gain": torch.randn(())}


def like(params: Any) -> Any:
    return pytree.tree_map(lambda x: None if x is None else torch.randn_like(x), params)


def label(name: str) -> str:
    return "slow" if "fc" in name else "fast"


def test_state_by_name() -> None:
    params = {"w": torch.ones(2), "none": None}
    tx = fa.named_chain(("direction", fa.scale_by_adamax()), ("trace", fa.trace(0.9)))
    _, state = tx.update(params, tx.init(params))
    assert fa.tree_get(state, "exp_inf")["w"][0] == 1 + 1e-8
    assert [path for path, _ in fa.tree_get_all(state, "exp_avg")] == ["state['direction'].exp_avg"]
    zeroed = fa.tree_set(state, exp_avg={"w": torch.zeros(2), "none": fa.EmptyState()})
    assert not zeroed["direction"].exp_avg["w"].any()
    assert state["direction"].exp_avg["w"].any()
    with pytest.raises(KeyError, match="must be the name of a field"):
        fa.tree_get(state, "momentum")
    with pytest.raises(KeyError, match=r"state\[0\]\.step, state\[1\]\.step"):
        fa.tree_get((state["direction"], state["direction"]), "step")
    doubled = fa.tree_map_params(lambda x, p: x.double() if x.dim() else x, state, params)
    assert doubled["direction"].exp_avg["w"].dtype == torch.float64
    assert doubled["direction"].exp_avg["none"] == fa.EmptyState()
    added = fa.tree_map_params(lambda x, p, q: x + q, state, params, params)
    assert torch.equal(added["trace"].trace["w"], state["trace"].trace["w"] + 1)


def test_reset_of_a_part() -> None:
    params = tree()
    tx = fa.partition({"slow": fa.adamax(0.01), "fast": fa.adamax(0.5)}, fa.by_path(label))
    _, state = tx.update(like(params), tx.init(params), params)
    again = fa.reset(tx, state, params, "slow")
    assert_equal(again["slow"], tx.init(params)["slow"])
    assert_equal(again["fast"], state["fast"])
    assert_equal(fa.reset(tx, state, params), tx.init(params))


def test_a_single_tensor_and_the_values_that_are_its_own() -> None:
    params = torch.ones(2)
    state = fa.adamax(fa.constant_schedule(0.1)).init(params)
    state = fa.tree_map_params(lambda x, p: x + p, state, params)
    assert state.count == 0
    assert torch.equal(state.inner.exp_avg, params)
