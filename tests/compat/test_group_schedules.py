"""Schedules as hyperparameters of a group: what is shown, what is set over them, and who rules."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from scheduled_groups import FALLING, HALF, rates, stepped
from torch import nn
from wrapped import parameters

import functional_adamax as fa
from functional_adamax import compat


def test_the_rate_shown_is_that_of_the_schedule() -> None:
    def plateau(lr: Any) -> Any:
        return fa.chain(fa.reduce_on_plateau(), fa.adamax(lr))

    (w,) = parameters(2)
    optimizer = compat.Optimizer([w], plateau, lr=fa.linear_schedule(1.0, 0.0, 10))
    shown = []
    for _ in range(3):
        optimizer.step(value=torch.tensor(1.0))
        shown.append(optimizer.param_groups[0]["lr"])
    assert shown == pytest.approx([1.0, 0.9, 0.8])


def clipped_decay(wd: float = 0.0, lr: float = 0.1) -> fa.GradientTransformation:
    stages = fa.clip_by_global_norm(1.0), fa.add_decayed_weights(wd)
    return fa.chain(*stages, fa.scale_by_learning_rate(lr))


@pytest.mark.parametrize(
    ("factory", "given"),
    [
        (fa.adamaxw, {"weight_decay": HALF}),
        (fa.adamaxw, {"lr": fa.linear_schedule(0.1, 0.0, 10), "weight_decay": HALF}),
        (fa.adam, {"betas": lambda count: (0.9 - 0.1 * count, 0.999)}),
        (fa.sgd, {"momentum": HALF}),
        (clipped_decay, {"wd": HALF}),
    ],
    ids=["decay", "decay and rate", "betas", "momentum", "own"],
)
@pytest.mark.parametrize("couple", ["group", "all"])
def test_any_hyperparameter_may_be_a_schedule(factory: Any, given: Any, couple: str) -> None:
    (w,), (v,) = parameters(3), parameters(3)
    given = {"lr": 0.1} | given
    optimizer = compat.Optimizer([w], factory, couple=couple, **given)
    reference = compat.Optimizer([v], factory, lr=0.1)
    for i in range(4):
        w.grad = v.grad = torch.full((3,), i - 1.5)
        at = {k: value(torch.tensor(i)) if callable(value) else value for k, value in given.items()}
        reference.param_groups[0].update(at)
        reference.step()
        optimizer.step()
        torch.testing.assert_close(w, v, rtol=1e-6, atol=0.0)
        for name, value in at.items():
            shown = optimizer.param_groups[0][name]
            assert shown == pytest.approx(tuple(map(float, value)) if name == "betas" else value)
    (u,) = parameters(3)
    resumed = compat.Optimizer([u], factory, couple=couple, **given)
    resumed.load_state_dict(optimizer.state_dict())
    u.data.copy_(w.data)
    u.grad = w.grad
    optimizer.step()
    resumed.step()
    assert torch.equal(u, w)


def copied(optimizer: Any, fresh: Any) -> Any:
    return copy.deepcopy(optimizer)


def pickled(optimizer: Any, fresh: Any) -> Any:
    return pickle.loads(pickle.dumps(optimizer))


def resumed(optimizer: Any, fresh: Any) -> Any:
    fresh.load_state_dict(optimizer.state_dict())
    return fresh


@pytest.mark.parametrize("again", [copied, pickled, resumed])
@pytest.mark.parametrize("value", [0.7, None], ids=["set", "scheduled"])
def test_who_rules_is_kept(again: Any, value: float | None) -> None:
    (w,), (v,) = parameters(3), parameters(3)
    optimizer = compat.Optimizer([w], fa.adam, lr=HALF)
    optimizer.step()
    if value is not None:
        optimizer.param_groups[0]["lr"] = value
    v.data.copy_(w.data)
    other = again(optimizer, compat.Optimizer([v], fa.adam, lr=HALF))
    for one in (optimizer, other):
        for _ in range(2):
            one.param_groups[0]["params"][0].grad = torch.ones(3)
            one.step()
    assert torch.equal(w, other.param_groups[0]["params"][0])
    assert optimizer.param_groups[0] | {"params": 0} == other.param_groups[0] | {"params": 0}
    assert optimizer.param_groups[0]["lr"] == (value or 0.125)


def test_a_schedule_in_one_group_and_a_number_in_the_other() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [{"params": [a], "wd": HALF}, {"params": [b], "wd": 1.0}]
    optimizer = compat.Optimizer(groups, clipped_decay)
    a.grad, b.grad = torch.zeros(1), torch.zeros(1)
    optimizer.step()
    optimizer.step()
    assert a.item() == pytest.approx(0.95 * 0.975)
    assert b.item() == pytest.approx(0.9 * 0.9)


def test_a_value_set_in_the_group_rules_over_a_schedule() -> None:
    (w,) = parameters(1)
    optimizer = compat.Optimizer([w], fa.sgd, lr=fa.linear_schedule(1.0, 0.0, 4))
    values = [w.item()]
    for i in range(4):
        shown = optimizer.param_groups[0]["lr"]
        if i == 1:
            optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        if i == 1:
            assert optimizer.param_groups[0]["lr"] == 0.0
            optimizer.param_groups[0]["lr"] = shown
        values.append(w.item())
    steps = [a - b for a, b in pairwise(values)]
    assert steps == pytest.approx([1.0, 0.0, 0.5, 0.25])


@pytest.mark.parametrize("again", [copied, pickled, resumed])
def test_a_value_set_before_the_first_step_is_kept(again: Any) -> None:
    optimizer = compat.Optimizer(parameters(3), fa.adam, lr=HALF)
    optimizer.param_groups[0]["lr"] = 0.7
    other = again(optimizer, compat.Optimizer(parameters(3), fa.adam, lr=HALF))
    assert rates(stepped(other, 2)) == rates(stepped(optimizer, 2)) == [0.7]


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (float("nan"), ValueError, r"lr must be in \[0, inf\), got nan"),
        (-0.5, ValueError, r"lr must be in \[0, inf\), got -0.5"),
        ("a", TypeError, "lr must be a real number or a real tensor, got 'a'"),
        (None, TypeError, "lr must be a real number or a real tensor, got None"),
    ],
)
def test_a_value_set_over_a_schedule_is_checked(value: Any, error: Any, words: str) -> None:
    optimizer = stepped(compat.Optimizer(parameters(3), fa.adam, lr=FALLING))
    optimizer.param_groups[0]["lr"] = value
    before = optimizer.param_groups[0]["params"][0].detach().clone()
    with pytest.raises(error, match=words):
        stepped(optimizer)
    assert torch.equal(optimizer.param_groups[0]["params"][0], before)


def test_other_values_and_schedules_may_be_set() -> None:
    optimizer = stepped(compat.Optimizer(parameters(3), fa.adam, betas=lambda n: (0.9, 0.99)))
    group = optimizer.param_groups[0]
    group["betas"] = [0.5, 0.9]
    assert stepped(optimizer).param_groups[0]["betas"] == [0.5, 0.9]
    group["betas"] = lambda count: (0.1 * count, 0.9)
    stepped(optimizer)
    assert group["betas"] == (pytest.approx(0.2), 0.9)
    tree = compat.Optimizer([("w", parameters(3)[0])], fa.sgd, lr=lambda count: {"w": 0.1})
    tree.param_groups[0]["lr"]["w"] = 0.0
    assert stepped(tree).param_groups[0]["params"][0].eq(1).all()


@pytest.mark.parametrize("momenta", [(0.9, 0.9, 0.0, 0.0), (0.0, 0.0, 0.9, 0.9)])
@pytest.mark.parametrize("factory", [fa.sgd, fa.rmsprop])
def test_a_schedule_through_zero(factory: Any, momenta: tuple[float, ...]) -> None:
    scheduled = compat.Optimizer(parameters(3), factory, lr=0.1, momentum=lambda n: momenta[int(n)])
    reference = compat.Optimizer(parameters(3), factory, lr=0.1, momentum=1e-30)
    for momentum in momenta:
        reference.param_groups[0]["momentum"] = momentum or 1e-30
        stepped(scheduled)
        stepped(reference)
    found, wanted = (x.param_groups[0]["params"][0] for x in (scheduled, reference))
    torch.testing.assert_close(found, wanted)


def test_coupled_groups_differ_in_values_and_schedules() -> None:
    def clipped(lr: Any, max_norm: float = 1.0) -> Any:
        return fa.chain(fa.clip_by_global_norm(max_norm), fa.sgd(lr))

    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [{"params": [a]}, {"params": [b]}]
    optimizer = compat.Optimizer(groups, clipped, lr=FALLING, couple="all")

    def moved() -> list[float]:
        before = a.item(), b.item()
        a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
        optimizer.step()
        pairs = zip(before, (a.item(), b.item()), (0.6, 0.8), strict=True)
        return [(x - y) / share for x, y, share in pairs]  # the rates that were used

    assert moved() == pytest.approx([0.1, 0.1])
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.5, 0.6
    assert moved() == pytest.approx([0.5, 0.6])
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["scheduled_lr"]
    assert moved() == pytest.approx([0.098, 0.6])
    optimizer.param_groups[1]["lr"] = fa.linear_schedule(0.5, 0.0, 100)
    assert moved() == pytest.approx([0.097, 0.485])


def test_rates_that_are_tensors_or_nan() -> None:
    rate = torch.tensor([0.1, 0.2, 0.3])
    optimizer = stepped(compat.Optimizer(parameters(3), fa.sgd, lr=lambda count: rate))
    (p,) = optimizer.param_groups[0]["params"]
    before = p.detach().clone()
    optimizer.param_groups[0]["lr"].zero_()
    stepped(optimizer)
    assert torch.equal(p, before)
    assert rate.all()
    gap = compat.Optimizer(parameters(3), fa.sgd, lr=lambda n: float("nan") if n == 1 else 0.1)
    assert rates(stepped(gap, 3)) == [0.1]


@pytest.mark.parametrize("couple", ["group", "all"])
@pytest.mark.parametrize("name", ["adamax", "adamaxw", "adam", "sgd"])
@pytest.mark.parametrize(
    "schedule", [FALLING, lambda count: 0.1 / (1 + int(count))], ids=["ours", "reads the count"]
)
def test_parameters_without_memory_keep_the_rate_shown(
    schedule: Any, name: str, couple: str
) -> None:
    """On the device "meta" nobody knows the count, so no schedule is asked."""
    params = [nn.Parameter(torch.ones(3, device="meta")) for _ in range(2)]
    groups = [{"params": [params[0]]}, {"params": [params[1]], "lr": HALF}]
    optimizer = compat.Optimizer(groups, getattr(fa, name), lr=schedule, couple=couple)
    stepped(optimizer, 3)
    assert rates(optimizer) == [0.1, 0.5]
    assert {x.device.type for x in optimizer.state[params[0]].values()} == {"meta"}
    assert all(p.is_meta and p.shape == (3,) for p in params)
