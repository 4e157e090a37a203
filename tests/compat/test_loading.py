"""Checkpoints paired by name, and a load that raises changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from saving import Make, both, momentum, saved, stepped
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from wrapped import network, parameters

import functional_adamax as fa
from functional_adamax.compat import Optimizer


@both
def test_parameters_are_paired_by_name(make: Make) -> None:
    a, b, c = parameters(2, 2, 3)
    first = make([{"params": [("a", a), ("b", b)]}, {"params": [("c", c)], "lr": 0.5}])
    stepped(first, 2, [1.0, 100.0, 7.0])
    again = make([{"params": [("b", b), ("a", a)]}, {"params": [("c", c)]}])
    again.load_state_dict(saved(first))
    for p in (a, b, c):
        assert all(torch.equal(again.state[p][k], x) for k, x in first.state[p].items())
    assert [group["param_names"] for group in again.param_groups] == [["b", "a"], ["c"]]
    assert [group["lr"] for group in again.param_groups] == [2e-3, 0.5]
    back = make([{"params": [("a", a), ("b", b)]}, {"params": [("c", c)]}])
    back.load_state_dict(saved(again))
    assert torch.equal(back.state[a]["exp_inf"], first.state[a]["exp_inf"])


def test_a_mask_by_name_still_acts_on_its_parameter() -> None:
    recipe = fa.chain(
        fa.masked(fa.add_decayed_weights(0.5), fa.by_path(lambda name: name == "weight")),
        fa.trace(0.9),
        fa.scale(-0.1),
    )
    results = []
    for order in (("weight", "bias"), ("bias", "weight")):
        named = dict(zip(("weight", "bias"), parameters(2, 2), strict=True))
        first = stepped(Optimizer(named.items(), recipe), 1, [0.0, 1.0])
        again = Optimizer([(name, named[name]) for name in order], recipe)
        again.load_state_dict(saved(first))
        named["weight"].grad, named["bias"].grad = torch.zeros(2), torch.ones(2)
        again.step()
        results.append([named[name].detach() for name in ("weight", "bias")])
    assert all(map(torch.equal, *results))


@both
def test_other_names_are_refused(make: Make) -> None:
    a, b, c = parameters(2, 2, 2)
    state = saved(stepped(make([{"params": [("a", a)]}, {"params": [("b", b), ("c", c)]}])))
    for groups, group, missing, unexpected in (
        ([["a"], ["b", "d"]], 1, "d", "c"),
        ([["b"], ["a", "c"]], 0, "b", "a"),  # of the other group
    ):
        params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
        named = [zip(names, params[i : i + 2], strict=False) for i, names in enumerate(groups)]
        optimizer = make([{"params": list(pairs)} for pairs in named])
        with pytest.raises(
            ValueError,
            match=rf"param_groups\[{group}\]\['param_names'\] of the state dict must be .*"
            rf"'{missing}' is missing and '{unexpected}' is unexpected; rename them there, or "
            "delete 'param_names' there",
        ):
            optimizer.load_state_dict(state)
    for saved_group in state["param_groups"]:
        del saved_group["param_names"]
    optimizer.load_state_dict(state)  # by position
    assert [group["param_names"] for group in optimizer.param_groups] == groups


@both
def test_names_that_come_twice_keep_their_places(make: Make) -> None:
    params = parameters(2, 2, 2, 2)
    names = ["weight", "bias", "weight", "bias"]
    first = stepped(make(list(zip(names, params, strict=True))), 1, [1.0, 2.0, 3.0, 4.0])
    again = make(list(zip(names, params, strict=True)))
    again.load_state_dict(saved(first))
    assert [again.state[p]["exp_inf"][0].item() for p in params] == pytest.approx([1, 2, 3, 4])
    other = make(list(zip(["weight", "weight", "bias", "bias"], params, strict=True)))
    with pytest.raises(ValueError, match="'weight' comes twice, in another order"):
        other.load_state_dict(saved(first))


@both
def test_without_names_on_one_side_the_position_counts(make: Make) -> None:
    a, b = parameters(2, 2)
    for first, again in (([("a", a), ("b", b)], [b, a]), ([a, b], [("b", b), ("a", a)])):
        optimizer = make(again)
        optimizer.load_state_dict(saved(stepped(make(first), 1, [1.0, 100.0])))
        assert optimizer.state[b]["exp_inf"][0] == pytest.approx(1.0)


@both
@pytest.mark.parametrize("named", ["as the module", "otherwise"])
def test_names_of_distributed_checkpoints_in_another_order(make: Make, named: str) -> None:
    """The helpers bring parameters into order, and leave the names of the group as saved."""
    prefix = "" if named == "as the module" else "my."

    def built(net: nn.Module, backwards: bool) -> torch.optim.Optimizer:
        params = [(prefix + name, p) for name, p in net.named_parameters()]
        return make(params[::-1] if backwards else params)

    net, twin = network(), network()
    first = stepped(built(net, False), 2, [1.0, 2.0, 3.0, 4.0])
    again = built(twin, True)
    set_optimizer_state_dict(twin, again, copy.deepcopy(get_optimizer_state_dict(net, first)))
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(first.state[p]["exp_inf"], again.state[q]["exp_inf"])
    names = [prefix + name for name, _ in twin.named_parameters()]
    assert again.param_groups[0]["param_names"] == names[::-1]


def test_groups_that_make_no_transform_can_be_repaired_by_a_load() -> None:
    optimizer = stepped(momentum(parameters(2)))
    state = saved(optimizer)
    optimizer.param_groups[0]["lr"] = float("nan")
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.1
    optimizer.param_groups[0]["lr"] = float("nan")
    del state["state"][0]["momentum_buffer"]
    state["state"][0]["other"] = torch.ones(2)
    with pytest.raises(ValueError, match=r"unknown \['other'\]"):
        optimizer.load_state_dict(state)


def refuse(*_: Any) -> None:
    raise RuntimeError("hook")


def broken_loads(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    step, shape, names = (copy.deepcopy(state) for _ in range(3))
    step["state"][1]["step"] = "x"
    shape["state"][1]["exp_avg"] = torch.ones(7)
    names["param_groups"][0]["param_names"] = ["a", "z"]
    group = copy.deepcopy(state)
    group["param_groups"][0]["params"] = [0]
    return {"step": step, "shape": shape, "names": names, "group": group}


@both
@pytest.mark.parametrize("why", ["step", "shape", "names", "group", "pre hook", "post hook"])
def test_a_load_that_raises_changes_nothing(make: Make, why: str) -> None:
    params = parameters(2, 3)
    optimizer = stepped(make(list(zip("ab", params, strict=True)), lr=0.1))
    state = saved(optimizer)
    state["param_groups"][0]["lr"] = 7.0
    if why == "pre hook":
        optimizer.register_load_state_dict_pre_hook(refuse)
    elif why == "post hook":
        optimizer.register_load_state_dict_post_hook(refuse)
    else:
        state = broken_loads(optimizer, state)[why]
    before = saved(optimizer)
    groups, entries, hooks = (
        optimizer.param_groups,
        optimizer.state,
        list(optimizer._optimizer_load_state_dict_pre_hooks),
    )
    with pytest.raises((ValueError, RuntimeError)):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups is groups
    assert optimizer.state is entries
    assert list(optimizer._optimizer_load_state_dict_pre_hooks) == hooks
    after = optimizer.state_dict()
    assert repr(after) == repr(before)
    twin = make(list(zip("ab", [nn.Parameter(p.detach().clone()) for p in params], strict=True)))
    twin.load_state_dict(before)
    for one in (optimizer, twin):
        stepped(one)
    for p, q in zip(params, twin.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)
