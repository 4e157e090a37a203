"""Odd counters, and rates that lie in what a step writes: torch's bits and its errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from twins import same_bits

import functional_adamax as fa
from functional_adamax._execution.native import kernel
from functional_adamax.compat import Adamax


def assert_same_bits(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert all(same_bits(x, y) for x, y in zip(got, wanted, strict=True))


def rate_in_a_parameter(params: list[Tensor], optimizer: Any) -> Tensor:
    return params[0].data[:1]


def rate_in_a_counter(params: list[Tensor], optimizer: Any) -> Tensor:
    return optimizer.state[params[0]]["step"]


def rate_in_a_moment(params: list[Tensor], optimizer: Any) -> Tensor:
    return optimizer.state[params[1]]["exp_inf"].view(-1)[:1]


@pytest.mark.parametrize("groups", ["one group", "two groups"])
@pytest.mark.parametrize("place", [rate_in_a_parameter, rate_in_a_counter, rate_in_a_moment])
def test_a_rate_that_is_memory_of_the_step_changes_while_it_steps_as_in_torch(
    place: Callable[[list[Tensor], Any], Tensor], groups: str
) -> None:
    def outcome(cls: Any) -> list[Tensor]:
        params = [torch.nn.Parameter(torch.tensor([0.1, x])) for x in (1.0, 2.0, 3.0)]
        given = [{"params": [p]} for p in params] if groups == "two groups" else params
        optimizer = cls(given, lr=torch.tensor(0.1))
        for i in range(4):
            for p in params:
                p.grad = torch.ones_like(p)
            if i == 1:
                for group in optimizer.param_groups:
                    group["lr"] = place(params, optimizer)
            optimizer.step()
        return [*params, *(x for p in params for x in optimizer.state[p].values())]

    assert_same_bits(outcome(Adamax), outcome(torch.optim.Adamax))


COUNTERS = [-5.0, -1.0, 0.0, math.nan, math.inf, 2.0**24]


@pytest.mark.parametrize("native", [True, False], ids=["kernel", "torch"])
@pytest.mark.parametrize("foreach", [None, True])
@pytest.mark.parametrize("t", COUNTERS)
def test_odd_counters_do_what_they_do_in_torch(
    t: float, foreach: bool | None, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that other parameters are stepped, or none is where torch raises."""
    if not native:
        monkeypatch.setattr(kernel, "_native", None)

    def outcome(cls: Any) -> tuple[Any, list[Tensor], list[Tensor]]:
        params = [torch.nn.Parameter(torch.ones(n)) for n in (2, 3, 4)]
        optimizer = cls([{"params": params[:2]}, {"params": params[2:]}], lr=0.1, foreach=foreach)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.state[params[1]]["step"].fill_(t)
        tensors = [*params, *(x for p in params for x in optimizer.state[p].values())]
        before = [x.detach().clone() for x in tensors]
        try:
            optimizer.step()
        except ZeroDivisionError as error:
            return str(error), tensors, before
        return None, tensors, before

    (ours, results, before), (theirs, wanted, _) = outcome(Adamax), outcome(torch.optim.Adamax)
    assert ours == theirs
    assert_same_bits(results, before if theirs else wanted)
    if theirs is None:
        assert not torch.equal(results[0], before[0])


@pytest.mark.parametrize("native", [True, False], ids=["kernel", "torch"])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64)])
@pytest.mark.parametrize("t", COUNTERS)
def test_donated_steps_from_odd_counters_have_the_bits_of_the_rule(
    t: float, lr: Any, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tx = fa.adamax(lr)
    g = [torch.full((3,), 0.5), torch.full((2,), -2.0)]
    params, state = fa.step(tx, g, tx.init([x * 2 for x in g]), [torch.ones(3), torch.ones(2)])
    state.step[0].fill_(t)
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "_native", None)
        wanted = fa.step(tx, g, state, params)
    if not native:
        monkeypatch.setattr(kernel, "_native", None)
    given = [x.clone() for x in params], fa.AdamaxState(*([x.clone() for x in y] for y in state))
    for donate in (False, True):
        new, after = fa.step(tx, g, given[1], given[0], donate=donate)
        got = [*new, *(x for y in after for x in y)]
        assert_same_bits(got, [*wanted[0], *(x for y in wanted[1] for x in y)])
        assert not torch.equal(new[1], params[1])
