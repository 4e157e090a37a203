"""The walk over the leaves: what the rule of a stage sees, and what is kept of each leaf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

import functional_adamax as fa
from functional_adamax import compat
from functional_adamax._core import checks
from functional_adamax._execution.program import machine
from functional_adamax._transforms.stage import LeafUpdate, Stage, StatefulStage

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
class Count(StatefulStage):
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


class AverageState(NamedTuple):
    seen: Any
    average: Any


@dataclass(frozen=True, eq=False, repr=False)
class Average(StatefulStage):
    """An average, drawn to the parameters; ``fitting`` and ``hyper`` are those of the class."""

    needs_params: ClassVar[bool] = True

    decay: Any = 0.9
    state: ClassVar[type[Any]] = AverageState

    def start(self, p: Tensor) -> Sequence[Tensor]:
        return [torch.zeros((), dtype=torch.float64), torch.zeros_like(p)]

    def once(self, updates: list[Tensor]) -> dict[str, Any]:
        return {"count": len(updates)}

    def rule(self, x: LeafUpdate) -> tuple[Tensor, dict[str, Any]]:
        average = torch.lerp(x.u, x.kept["average"], x.h["decay"])
        return average - 0.1 * x.p, {"average": average, "seen": x.kept["seen"] + 1}


def test_a_stage_with_a_state_of_ones_own() -> None:
    tx = Average({"a": 0.5, "b": 0.0, "n": 0.0}).pair()
    params = {"a": torch.ones(2), "b": torch.ones(1), "n": torch.tensor(1)}
    grads = {"a": torch.tensor([2.0, 4.0]), "b": None, "n": None}
    updates, state = tx.update(grads, tx.init(params), params)
    assert torch.equal(updates["a"], torch.tensor([0.9, 1.9]))
    assert updates["b"] is None
    assert (state.seen["a"], state.seen["b"], state.seen["n"]) == (1, 0, fa.EmptyState())
    with pytest.raises(ValueError, match="params must be given for average"):
        tx.update(grads, state)
    assert tx.update({"a": None, "b": None, "n": None}, state)[0]["a"] is None
    with pytest.raises(ValueError, match=r"state.average\['a'\] must be a tensor of shape \(2,\)"):
        tx.update(grads, state._replace(average={"a": None, "b": None, "n": None}), params)
    with pytest.raises(ValueError, match=r"updates\['a'\] must have the shape"):
        tx.update(grads | {"a": torch.ones(3)}, state, params)


def test_a_number_alone_may_be_kept_of_a_leaf() -> None:
    @dataclass(frozen=True, eq=False, repr=False)
    class Fading(StatefulStage):
        state: ClassVar[type[Any]] = NamedTuple("FadingState", [("seen", Any)])

        def start(self, p: Tensor) -> Sequence[Tensor]:
            return [torch.zeros((), dtype=torch.float64)]

        def rule(self, x: LeafUpdate) -> tuple[Tensor, dict[str, Any]]:
            seen = x.kept["seen"] + 1
            return x.u / seen.to(x.u.dtype), {"seen": seen}

    tx, g = Fading().pair(), torch.tensor([2.0, 4.0])
    state = tx.init(g)
    for i in range(1, 4):
        updates, state = tx.update(g, state)
        assert torch.equal(updates, g / i)
    assert tx.update(None, state)[1].seen is state.seen


@pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")
def test_a_stage_with_a_state_is_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    tx = fa.chain(fa.clip_by_global_norm(1.0), Average().pair(), fa.scale(-0.1))
    params = {"a": torch.randn(3, 2), "b": torch.randn(5)}
    assert {x.executor for x in fa.explain(tx, params).leaves} == {"program"}
    found, wanted = ((params, tx.init(params)) for _ in range(2))
    for _ in range(5):
        grads = {name: torch.randn_like(x) for name, x in params.items()}
        found = fa.step(tx, grads, found[1], found[0])
        with monkeypatch.context() as patch:
            patch.setattr(machine, "_machine", None)
            wanted = fa.step(tx, grads, wanted[1], wanted[0])
        for name in params:
            assert torch.equal(found[0][name], wanted[0][name])
            assert torch.equal(found[1][1].average[name], wanted[1][1].average[name])


def test_a_stage_with_a_state_in_an_optimizer() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = compat.Optimizer([p], fa.chain(Average().pair(), fa.scale(-0.1)))
    for _ in range(2):
        p.grad = torch.ones(3)
        optimizer.step()
    assert optimizer.state[p]["seen"] == 2
    assert optimizer.state[p]["average"].shape == (3,)
