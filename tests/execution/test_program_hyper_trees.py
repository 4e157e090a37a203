"""Trees of hyperparameters: the numbers of the leaves enter one program, and may change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optree
import pytest
import torch
from torch import Tensor

import functional_adamax as fa
from functional_adamax._execution.program import machine, whole
from functional_adamax.compat import Optimizer

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")

SHAPES = {"a": (5,), "b": (3, 2), "c": (), "d": (70,)}
A, B = {"a": 0.1, "b": 0.2, "c": 0.0, "d": 0.1}, {"a": 0.0, "b": 0.5, "c": 0.25, "d": 1}
Make = Callable[..., fa.GradientTransformation]
MAKE: dict[str, Make] = {
    "decay": lambda x, y: fa.chain(
        fa.clip_by_global_norm(1.0), fa.scale_by_adamax(), fa.add_decayed_weights(x), fa.scale(-0.1)
    ),
    "rates": lambda x, y: fa.chain(
        fa.scale_by_lion(), fa.add_decayed_weights(y), fa.scale_by_learning_rate(x)
    ),
    "betas": lambda x, y: fa.chain(fa.scale_by_adamax((x, 0.9)), fa.scale(-0.1)),
    "method": lambda x, y: fa.chain(
        fa.clip(1.0), fa.adamaxw({k: z + 0.5 for k, z in x.items()}, weight_decay=y)
    ),
    "masked": lambda x, y: fa.masked(
        fa.chain(fa.clip(y), fa.trace(x)), {"a": True, "b": True, "c": False, "d": True}
    ),
    "partition": lambda x, y: fa.partition(
        {"one": fa.chain(fa.scale(x), fa.scale_by_sign()), "two": fa.sgd(y)},
        {"a": "one", "b": "two", "c": "two", "d": "one"},
    ),
    "guard": lambda x, y: fa.apply_if_finite(fa.sgd(x, momentum=0.9), 2),
}


def made(dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.randn(shape, dtype=dtype) for name, shape in SHAPES.items()}


def assert_equal(x: Any, y: Any) -> None:
    found, wanted = (optree.tree_leaves(z) for z in (x, y))
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MAKE)
def test_trees_have_the_bits_of_the_rule(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = made(dtype)
    first = MAKE[name](A, B)
    ours, rule = ((optree.tree_map(torch.clone, params), first.init(params)) for _ in range(2))
    assert {x.executor for x in fa.explain(first, params, state=ours[1]).leaves} <= {"program"}
    whole.forget()
    for i in range(4):
        tx = MAKE[name](
            *({k: x * (1 - 0.1 * i) if x != 1 else x for k, x in y.items()} for y in (A, B))
        )
        grads = made(dtype) | ({"b": None} if i == 2 else {})
        ours = fa.step(tx, grads, ours[1], ours[0], donate=i % 2 == 0)
        with monkeypatch.context() as patch:
            patch.setattr(machine, "_machine", None)
            rule = fa.step(tx, grads, rule[1], rule[0])
        assert_equal(ours, rule)
    assert len(whole._entries) <= 2 * (2 if name in ("method", "masked", "partition") else 1)


def test_a_rate_for_each_of_many_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    params = [torch.randn(4) for _ in range(50)]
    rates = [0.1 * 0.9**i for i in range(50)]
    tx = fa.chain(fa.scale_by_adamax(), fa.scale_by_learning_rate(rates))
    state, grads = tx.init(params), [torch.randn(4) for _ in params]
    assert {x.executor for x in fa.explain(tx, params).leaves} == {"program"}
    found = fa.step(tx, grads, state, params)
    monkeypatch.setattr(machine, "_machine", None)
    assert_equal(found, fa.step(tx, grads, state, params))


def test_a_tree_that_is_changed_in_place() -> None:
    factors = {"a": 2.0, "b": 3.0}
    tx, g = fa.chain(fa.scale(factors), fa.scale(0.5)), {"a": torch.ones(2), "b": torch.ones(1)}
    assert tx.update(g, tx.init(g))[0]["a"].tolist() == [1.0, 1.0]
    factors["a"] = 4.0
    assert tx.update(g, tx.init(g))[0]["a"].tolist() == [2.0, 2.0]


def test_a_prefix_and_numbers_that_are_none() -> None:
    params = {"x": {"a": torch.ones(2), "b": torch.ones(3)}, "y": torch.ones(1), "n": None}
    tx = fa.chain(fa.scale({"x": 2.0, "y": 0.0, "n": None}), fa.scale(0.5))
    grads = optree.tree_map(torch.ones_like, params)
    assert {x.executor for x in fa.explain(tx, params).leaves} == {"program", "none"}
    updates, _ = tx.update(grads, tx.init(params), params)
    assert [updates["x"]["b"].tolist(), updates["y"].tolist()] == [[1.0] * 3, [0.0]]


def test_zeros_are_told_apart_by_their_sign() -> None:
    g = {"a": torch.ones(2), "b": torch.ones(2)}
    for zero in (0.0, -0.0):
        tx = fa.chain(fa.scale({"a": zero, "b": 1.0}), fa.scale(1.0))
        updates, _ = tx.update(g, tx.init(g))
        assert str(updates["a"][0].item()) == str(zero)
        tx = fa.chain(fa.scale(zero), fa.scale(0.5))
        assert str(tx.update(g, tx.init(g))[0]["a"][0].item()) == str(zero)


def test_a_product_with_zero_does_not_stand_for_other_zeros() -> None:
    """Its sign is that of a number, which may be another one in the next step."""

    @dataclass(frozen=True, eq=False, repr=False)
    class Shifted(fa.Stage):
        rate: float

        def rule(self, x: fa.LeafUpdate) -> Tensor:
            zero = x.h["rate"] * 0.0
            return torch.where(x.u < 0, 0.0, x.u * zero)

    g = torch.tensor([-1.0, 1.0])
    for rate in (0.5, -0.5):
        tx = fa.chain(Shifted(rate).pair(), fa.scale(2.0))
        updates, _ = tx.update(g, tx.init(g))
        assert [str(x) for x in updates.tolist()] == ["0.0", str(rate * 0.0)]


def test_what_is_no_number_is_left_to_the_rule() -> None:
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    tx = fa.chain(fa.scale({"a": torch.tensor([1.0, 2.0]), "b": 0.5}), fa.scale(2.0))
    assert {x.executor for x in fa.explain(tx, params).leaves} == {"as written"}
    updates, _ = tx.update(params, tx.init(params))
    assert updates["a"].tolist() == [2.0, 4.0]


def recipe(lr: float = 0.1, decay: float = 0.0) -> fa.GradientTransformation:
    return fa.chain(
        fa.clip_by_global_norm(1.0),
        fa.scale_by_adamax(),
        fa.add_decayed_weights(decay),
        fa.scale_by_learning_rate(lr),
    )


def test_groups_that_are_coupled_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [torch.randn(3), torch.randn(70), torch.randn(2, 2)]

    def optimizer() -> Optimizer:
        ps = [x.clone() for x in values]
        groups = [{"params": ps[:2], "decay": 0.1}, {"params": ps[2:], "lr": 0.2}]
        return Optimizer(groups, recipe, couple="all")

    taken: list[int] = []
    real = machine.overwrite
    monkeypatch.setattr(machine, "overwrite", lambda x: taken.append(1) or real(x))
    ours, rule = optimizer(), optimizer()
    for i in range(5):
        grads = [torch.randn_like(x) for x in values]
        for one in (ours, rule):
            ps = [p for group in one.param_groups for p in group["params"]]
            for p, g in zip(ps, grads, strict=True):
                p.grad = g
            for group in one.param_groups:
                group["lr"] = 0.1 / (1 + i) + 0.01 * len(group["params"])
        ours.step()
        with monkeypatch.context() as patch:
            patch.setattr(machine, "_machine", None)
            rule.step()
        for x, y in zip(ours.param_groups, rule.param_groups, strict=True):
            assert_equal(x["params"], y["params"])
    assert len(taken) == 4
