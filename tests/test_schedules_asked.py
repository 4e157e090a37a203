"""How often a step asks: every schedule once, whatever the transform and the way to step."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

import pytest
import recipes
import torch
from recipes import RECIPES
from torch import Tensor, nn
from trees import clone

import functional_adamax as fa
from functional_adamax import compat

WAYS = {
    "update": lambda tx, grads, state, params: tx.update(grads, state, params),
    "step": fa.step,
    "donated": lambda *given: fa.step(*given, donate=True),
}
PARAMS = {"w.weight": torch.ones(2, 3, dtype=torch.float64), "b": torch.ones(3).double()}


PLACES = {"schedule_free-schedule": 2}  # where a recipe has one schedule, with a count at each


def with_lr() -> list[str]:
    """Every public function that makes a transform from an ``lr`` that may be a schedule."""
    names = []
    for name in fa.__all__:
        thing = getattr(fa, name)
        if inspect.isfunction(thing) and "lr" in inspect.signature(thing).parameters:
            names.append(name)
    return names


def test_the_functions_with_a_rate_are_found() -> None:
    assert {"adamax", "adamaxw", "adam", "sgd", "scale_by_learning_rate"} <= set(with_lr())


class Counted:
    """A schedule that counts how often it is asked."""

    def __init__(self, value: float = 0.1) -> None:
        self.value, self.counts = value, Counter[int]()

    def __call__(self, count: Tensor) -> Any:
        self.counts[int(count)] += 1
        return self.value * 0.5**count


def asked_in_three_steps(tx: Any, schedules: list[Counted], way: Any) -> None:
    params, state = clone(PARAMS), tx.init(PARAMS)
    grads = {name: torch.full_like(p, 0.3) for name, p in params.items()}
    for schedule in schedules:
        schedule.counts.clear()
    for _ in range(3):
        _, state = way(tx, grads, state, clone(params))
    for schedule in schedules:
        assert schedule.counts == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", with_lr())
def test_a_schedule_is_asked_once_in_a_step(name: str, way: str) -> None:
    schedule = Counted()
    make = getattr(fa, name)
    given = {"inner": fa.sgd(0.1)} if "inner" in inspect.signature(make).parameters else {}
    asked_in_three_steps(make(lr=schedule, **given), [schedule], WAYS[way])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda lr: fa.chain(fa.clip_by_global_norm(1.0), fa.scale_by_learning_rate(lr)),
        lambda lr: fa.masked(fa.adamax(lr), {"w.weight": True, "b": False}),
        lambda lr: fa.apply_if_finite(fa.adamax(lr), 3),
        lambda lr: fa.multi_steps(fa.adamax(lr), 1),
        lambda lr: fa.inject_hyperparams(fa.adamax)(lr),
        lambda lr: fa.inject_hyperparams(fa.adamaxw)(0.1, weight_decay=lr),
    ],
    ids=["chain", "masked", "finite", "multi_steps", "injected", "injected decay"],
)
def test_a_schedule_inside_is_asked_once_in_a_step(wrap: Any, way: str) -> None:
    schedule = Counted()
    asked_in_three_steps(wrap(schedule), [schedule], WAYS[way])


def test_every_scheduled_recipe_asks_once_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Counter[int]()

    def counted(base: Any, count: Tensor) -> Any:
        asked[id(base)] += 1
        return float(base) * 0.5**count

    monkeypatch.setattr(recipes, "decaying", counted)
    compared = []
    for recipe in RECIPES:
        base = torch.tensor(0.1, dtype=torch.float64)
        hyper = recipe.hyper | ({"lr": base} if "lr" in recipe.hyper else {})
        tx = recipe.make(**hyper)
        state, grads = tx.init(PARAMS), clone(PARAMS)
        for way in WAYS.values():
            asked.clear()
            try:
                _, state = way(tx, grads, state, clone(PARAMS))
            except (TypeError, ValueError):  # it needs what is not given here
                assert not asked
                continue
            if asked:
                assert set(asked.values()) == {PLACES.get(recipe.name, 1)}, recipe.name
                compared.append(recipe.name)
    assert {"adamax-schedule", "sgd-schedule", "chain-decoupled"} <= set(compared)
    assert len(set(compared)) >= 7


def test_a_step_that_is_refused_asks_once_too() -> None:
    schedule = Counted()
    tx, w = fa.adam(schedule), torch.ones(3)
    state = tx.init(w)
    with pytest.raises(ValueError, match="must not share memory"):
        fa.step(tx, w, state, w, donate=True)
    assert schedule.counts == {0: 1}


@pytest.mark.parametrize("couple", ["group", "all"])
@pytest.mark.parametrize("name", ["adamax", "adamaxw", "adam", "sgd", "own"])
def test_an_optimizer_asks_a_schedule_once_in_a_step(name: str, couple: str) -> None:
    def own(lr: float = 0.1) -> Any:
        return fa.chain(fa.clip_by_global_norm(1.0), fa.scale(-lr))  # which takes no function

    schedule = Counted()
    groups = [{"params": [nn.Parameter(torch.ones(3))]} for _ in range(2)]
    factory = own if name == "own" else getattr(fa, name)
    optimizer = compat.Optimizer(groups, factory, lr=schedule, couple=couple)
    schedule.counts.clear()
    for i in range(4):
        for group in groups:
            group["params"][0].grad = torch.ones(3)
        optimizer.step()
        assert schedule.counts == dict.fromkeys(range(i + 1), 1)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.1 * 0.5**3)] * 2


def test_a_schedule_that_two_counts_ask_gets_each() -> None:
    def both(lr: Any) -> Any:
        return fa.chain(fa.multi_steps(fa.sgd(lr), 2), fa.scale_by_learning_rate(lr))

    w = nn.Parameter(torch.zeros(1))
    rates = [0.5, 0.25, 0.125, 0.0625]
    optimizer = compat.Optimizer([w], both, lr=lambda count: rates[int(count)])
    found = []
    for _ in range(4):
        w.grad = torch.ones(1)
        before = w.item()
        optimizer.step()
        found.append(w.item() - before)
    assert found == [0.0, rates[0] * rates[1], 0.0, rates[1] * rates[3]]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", ["adamax", "adamaxw", "adam", "lion", "sgd"])
def test_a_step_calls_the_factory_once_for_a_group(
    name: str, groups: int, dtype: torch.dtype, decay: float
) -> None:
    """Where the kernel steps, where it declines (halves with coupled decay), and where none is."""
    made = []

    def factory(lr: float = 0.1, weight_decay: float = decay) -> Any:
        made.append(lr)
        return getattr(fa, name)(lr, weight_decay=weight_decay)

    params = [nn.Parameter(torch.ones(3, dtype=dtype)) for _ in range(groups)]
    optimizer = compat.Optimizer([{"params": [p]} for p in params], factory)
    for _ in range(3):
        made.clear()
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert made == [0.1] * groups


def test_groups_of_one_memory_call_the_factory_once_each() -> None:
    made = []

    def factory(lr: float = 0.1) -> Any:
        made.append(lr)
        return fa.sgd(lr)

    w = torch.ones(3)
    params = [nn.Parameter(w) for _ in range(2)]
    optimizer = compat.Optimizer([{"params": [p]} for p in params], factory)
    made.clear()
    for p in params:
        p.grad = torch.ones(3)
    optimizer.step()
    assert made == [0.1] * 2
    torch.testing.assert_close(w, torch.full((3,), 0.8))  # the second after the first


@pytest.mark.parametrize("value", [None, 0.7], ids=["ruling", "overridden"])
@pytest.mark.parametrize("name", ["adamaxw", "sgd"])
def test_a_scheduled_step_calls_the_factory_once(name: str, value: float | None) -> None:
    made = []

    def factory(lr: Any = 0.1) -> Any:
        made.append(lr)
        return getattr(fa, name)(lr)

    w = nn.Parameter(torch.ones(3))
    optimizer = compat.Optimizer([w], factory, lr=fa.linear_schedule(0.1, 0.0, 10))
    if value is not None:
        optimizer.param_groups[0]["lr"] = value
    for i in range(3):
        made.clear()
        w.grad = torch.ones(3)
        optimizer.step()
        once_more = i == 0 and value is not None  # a value that is new is checked
        assert len(made) == 1 + once_more


def test_what_was_made_for_a_step_serves_that_step_only() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = compat.Optimizer([w], fa.sgd, lr=0.5)
    w.grad = torch.ones(3)
    optimizer.step()
    before = w.detach().clone()
    optimizer.param_groups[0].update(lr=0.0, momentum=0.9)
    assert len(optimizer.functional_state()[1].momentum_buffer) == 1
    optimizer.step()
    assert torch.equal(w, before)
