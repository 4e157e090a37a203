"""Hyperparameters of several groups: as they are set, coupled, and put into one tree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from trees import assert_equal
from wrapped import RATE, loss, network, parameters, recipe, train

import functional_adamax as fa
from functional_adamax import compat
from functional_adamax.compat import _values


def test_our_schedules_and_those_of_torch_drive_it_alike() -> None:
    one, two = network(), network()
    ours = compat.Optimizer(one.named_parameters(), recipe, lr=RATE)
    theirs = compat.Optimizer(two.named_parameters(), recipe, lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, lambda k: float(RATE(k)))
    assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"] == float(RATE(0))
    for i in range(10):
        assert scheduler.get_last_lr() == [pytest.approx(float(RATE(i)), rel=1e-12)]
        a, b = train(one, ours, range(i, i + 1)), train(two, theirs, range(i, i + 1), scheduler)
        assert_equal(a, b)
        assert ours.param_groups[0]["lr"] == pytest.approx(float(RATE(i)), rel=1e-12)
    theirs.param_groups[0]["lr"] = 0.0
    assert_equal(b, train(two, theirs, range(1)))
    injected = fa.inject_hyperparams(recipe)(lr=0.1)
    state = fa.set_hyperparams(injected.init(torch.ones(2)), lr=0.0)
    assert not injected.update(torch.ones(2), state, torch.ones(2))[0].any()


def test_groups_are_obeyed() -> None:
    model, alone = network(), network()
    first, second = model[0].parameters(), model[2].parameters()
    optimizer = compat.wrap(fa.adamaxw)(
        [{"params": first, "lr": 0.2, "betas": (0.5, 0.9)}, {"params": second}], lr=0.01
    )
    twins = [
        compat.wrap(fa.adamaxw)(alone[0].parameters(), lr=0.2, betas=(0.5, 0.9)),
        compat.wrap(fa.adamaxw)(alone[2].parameters(), lr=0.01),
    ]
    for i in range(4):
        if i == 2:
            optimizer.param_groups[1]["lr"] = twins[1].param_groups[0]["lr"] = 0.5
        got = train(model, optimizer, range(i, i + 1))
        for twin in twins:
            twin.zero_grad()
        loss(alone, i).backward()
        for twin in twins:
            twin.step()
        assert_equal(got, [p.detach() for p in alone.parameters()])


@pytest.mark.parametrize("couple", ["group", "all"])
def test_couplings_reach_as_far_as_asked(couple: str) -> None:
    def clipped(lr: Any = 0.1) -> Any:
        return fa.chain(fa.clip_by_global_norm(1.0), fa.scale_by_learning_rate(lr))

    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = compat.Optimizer(
        [{"params": [a], "lr": 1.0}, {"params": [b], "lr": 2.0}], clipped, couple=couple
    )
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer.step()
    wanted = (-1.0, -2.0) if couple == "group" else (-0.6, -1.6)
    assert (a.item(), b.item()) == pytest.approx(wanted, rel=1e-6)


def test_a_frozen_group_beside_a_schedule() -> None:
    w, v = parameters(2, 2)
    v.grad = None
    rate = fa.linear_schedule(0.1, 0.0, 10)
    optimizer = compat.Optimizer([{"params": [w]}, {"params": [v]}], fa.adamax, lr=rate)
    optimizer.step()
    assert w[0] < 1
    assert v[0] == 1


def test_a_refused_group_leaves_no_trace() -> None:
    w, v = parameters(2, 2)
    optimizer = compat.Optimizer([w], fa.adamax, lr=0.1)
    with pytest.raises(ValueError, match="lr must be in"):
        optimizer.add_param_group({"params": [v], "lr": -1.0})
    assert len(optimizer.param_groups) == 1
    optimizer.step()


@pytest.mark.parametrize("momenta", [(0.9, 0.0, 0.9), (0.0, 0.9)])
def test_a_stage_is_switched_on_and_off(momenta: tuple[float, ...]) -> None:
    (w,), (v,) = parameters(2), parameters(2)
    optimizer = compat.Optimizer([w], fa.sgd, lr=0.1, momentum=momenta[0])
    reference = torch.optim.SGD([v], lr=0.1, momentum=momenta[0])
    for momentum in momenta[:-1]:
        optimizer.param_groups[0]["momentum"] = reference.param_groups[0]["momentum"] = momentum
        optimizer.step()
        reference.step()
        torch.testing.assert_close(w, v)
    optimizer.param_groups[0]["momentum"] = momenta[-1]
    before = w.detach().clone()
    optimizer.step()
    assert (w < before).all()
    assert optimizer.state[w]["momentum_buffer"].any()


def test_a_mask_is_no_schedule() -> None:
    def adamw(lr: Any, mask: Any) -> Any:
        decay = fa.masked(fa.add_decayed_weights(0.5), mask)
        return fa.chain(decay, fa.scale_by_learning_rate(lr))

    mask = fa.by_path(lambda name: "bias" not in name)
    params = {"weight": torch.ones(1), "bias": torch.ones(1)}
    zeros = {"weight": torch.zeros(1), "bias": torch.zeros(1)}
    tx = fa.inject_hyperparams(adamw)(1.0, mask)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert updates == {"weight": torch.tensor([-0.5]), "bias": torch.zeros(1)}
    pairs = [(k, nn.Parameter(p)) for k, p in params.items()]
    optimizer = compat.Optimizer(pairs, adamw, lr=1.0, mask=mask)
    for _, p in pairs:
        p.grad = torch.zeros(1)
    optimizer.step()
    assert [p.item() for _, p in pairs] == [0.5, 1.0]


def test_a_rate_just_below_zero_is_zero() -> None:
    group = {"lr": -1e-17, "eps": -1e-17, "betas": (0.9, 0.99)}
    assert _values.held(group, "lr") == 0.0
    assert _values.held(group, "eps") == -1e-17
    for value in (-1e-11, 0.1, torch.tensor(-1e-17), None):
        assert _values.held({"lr": value}, "lr") is value


def test_values_are_a_tree_by_name_where_all_have_names() -> None:
    groups = [{"param_names": ["a", "b"]}, {"param_names": ["a", "1.a"]}]
    found = _values.tree_of(groups, [[1, 2], [3, 4]])
    assert found == {"a": 1, "b": 2, "2.a": 3, "1.a": 4}
    assert list(found.values()) == [1, 2, 3, 4]
    assert _values.tree_of([groups[0], {}], [[1, 2], [3]]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([0.1], 0.1),
        ([0.1, 0.1], 0.1),
        ([0.1, 0.2], [0.1, 0.2, 0.2]),
        ([(0.9, 0.99), (0.9, 0.999)], (0.9, [0.99, 0.999, 0.999])),
        ([None, None], None),
        ([True, True], True),
    ],
)
def test_one_hyperparameter_for_several_groups(rows: list[Any], wanted: Any) -> None:
    groups = [{"params": [0]}, {"params": [0, 0]}]
    assert _values.joined(groups[: len(rows)], "x", rows) == wanted


@pytest.mark.parametrize("rows", [[True, False], [None, 0.1], ["a", "b"], [(1, 2), (1, 2, 3)]])
def test_groups_that_differ_in_more_than_numbers(rows: list[Any]) -> None:
    groups = [{"params": [0]}, {"params": [0]}]
    with pytest.raises(ValueError, match="groups may differ in numbers only, got for x: .*; give"):
        _values.joined(groups, "x", rows)


def test_advice_is_given_once_and_about_parameters_only() -> None:
    cure = "give the parameters of a module, module.parameters() or named_parameters()"
    module = nn.Linear(1, 1)
    outer, inner = _values.advice_on([module]), _values.advice_on(module)
    with pytest.raises(TypeError) as caught, outer, inner:
        raise TypeError("not iterable")
    assert str(caught.value) == f"not iterable: {cure}"
    wanted = r"of a dict by name give the pairs, params.items\(\)"
    with pytest.raises(TypeError, match=wanted), _values.advice_on({"w": torch.ones(1)}):
        raise TypeError("words")
    error = TypeError("words")
    with pytest.raises(TypeError) as caught, _values.advice_on([torch.ones(1)]):
        raise error
    assert caught.value is error
