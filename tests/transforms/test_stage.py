"""The walk over the leaves: what the rule of a stage sees, and what is kept of each leaf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

import functional_adamax as fa
from functional_adamax._core import checks
from functional_adamax._transforms.stage import Keeping, LeafUpdate, Stage

SEEN: list[LeafUpdate] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()


@dataclass(frozen=True, eq=False, repr=False)
class Share(Stage):
    """Each update over the sum of all of them, times a factor."""

    name: ClassVar[str] = "share"

    factor: Any = 1.0

    def once(self, updates: list[Tensor]) -> dict[str, Any]:
        return {"total": sum(u.sum() for u in updates)}

    def rule(self, x: LeafUpdate) -> Tensor:
        SEEN.append(x)
        return x.h["factor"] * x.u / x.h["total"]


@dataclass(frozen=True, eq=False, repr=False)
class Loose(Share):
    strict: ClassVar[bool] = False


class CountState(NamedTuple):
    step: Any
    last: Any


@dataclass(frozen=True, eq=False, repr=False)
class Count(Keeping):
    """How many updates a leaf has seen, and the last of them."""

    name: ClassVar[str] = "count"
    state: ClassVar[type[Any]] = CountState

    def start(self, p: Tensor) -> Sequence[Tensor]:
        return [torch.zeros(()), torch.zeros_like(p)]

    def rule(self, x: LeafUpdate) -> tuple[Tensor, dict[str, Any]]:
        SEEN.append(x)
        return x.kept["last"], {"step": x.kept["step"] + 1, "last": x.u}

    def fitting(self, spec: Any, kept: dict[str, list[Any]], updates: list[Any]) -> list[Any]:
        checks.scalars(spec, kept["step"], kept["last"], "state.step")
        return kept["last"]


def test_a_rule_sees_each_update_once_with_what_is_computed_for_all() -> None:
    tree = {"a": torch.tensor([1.0, 2.0]), "b": None, "c": torch.tensor(5.0)}
    updates, state = Share({"a": 2.0, "b": 1.0, "c": 4.0}).pair().update(tree, fa.EmptyState())
    assert [x.u for x in SEEN] == [tree["a"], tree["c"]]
    assert [(x.h["factor"], x.h["total"].item()) for x in SEEN] == [(2.0, 8.0), (4.0, 8.0)]
    assert updates["a"].tolist() == [0.25, 0.5]
    assert updates["b"] is None
    assert updates["c"] == 2.5
    assert state == fa.EmptyState()


def test_a_strict_stage_refuses_what_can_be_no_gradient() -> None:
    sparse = torch.tensor([1.0, 3.0]).to_sparse()
    with pytest.raises(RuntimeError, match="updates: share does not support sparse gradients"):
        Share().pair().update(sparse, fa.EmptyState())
    assert not SEEN
    assert Loose().pair().update(sparse, fa.EmptyState())[0].to_dense().tolist() == [0.25, 0.75]


def test_what_is_kept_goes_with_its_leaf() -> None:
    tx = Count().pair()
    params = {"a": torch.zeros(2), "b": torch.zeros(1), "n": torch.tensor(1), "none": None}
    state = tx.init(params)
    assert state.step["n"] == state.last["none"] == fa.EmptyState()
    grads = {"a": torch.ones(2), "b": None, "n": None, "none": None}
    first, after = tx.update(grads, state)
    assert first["a"].tolist() == [0.0, 0.0]
    assert (after.step["a"], after.step["b"]) == (1.0, 0.0)
    assert torch.equal(after.last["a"], torch.ones(2))
    assert after.last["b"] is state.last["b"], "a leaf without an update keeps what it has"
    assert len(SEEN) == 1
    assert tx.update(grads, after)[0]["a"] is grads["a"]


def test_a_state_of_another_stage_and_trees_that_do_not_fit() -> None:
    tx = Count().pair()
    state = tx.init({"a": torch.zeros(2)})
    with pytest.raises(TypeError, match="must be the CountState that init returned, got tuple"):
        tx.update({"a": None}, ())
    with pytest.raises(ValueError, match=r"state.step must have the structure of state.last"):
        tx.update({"a": None}, state._replace(step={}))
    with pytest.raises(ValueError, match="updates must have the structure of the params that"):
        tx.update({"b": None}, state)
    with pytest.raises(ValueError, match=r"state.step\['a'\] must be a tensor of shape \(\)"):
        tx.update({"a": None}, state._replace(step={"a": torch.zeros(2)}))
