"""Checkpoints that do not fit: paired by name, refused by name, and a refusal changes nothing."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from wrapped import network, parameters

import functional_adamax as fa
from functional_adamax.compat import Adamax, Optimizer

Make = Callable[..., torch.optim.Optimizer]


def adamaxw(params: Any, **options: Any) -> Optimizer:
    return Optimizer(params, fa.adamaxw, **options)


def momentum(params: Any, **options: Any) -> Optimizer:
    return Optimizer(params, fa.sgd, **{"lr": 0.1, "momentum": 0.9} | options)


both = pytest.mark.parametrize("make", [Adamax, adamaxw], ids=["Adamax", "Optimizer"])


def stepped(optimizer: Any, times: int = 1, values: Any = None) -> Any:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(times):
        for i, p in enumerate(params):
            p.grad = torch.full_like(p, 0.3 if values is None else values[i])
        optimizer.step()
    return optimizer


def saved(optimizer: Any) -> dict[str, Any]:
    return copy.deepcopy(optimizer.state_dict())


# --- names ----------------------------------------------------------------------------------


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


# --- entries that do not fit ----------------------------------------------------------------


FOREIGN: dict[str, Make] = {
    "AdamW": torch.optim.AdamW,
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "RMSprop": torch.optim.RMSprop,
    "lion": lambda params: Optimizer(params, fa.lion),
}


@both
@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_checkpoint_of_another_optimizer_is_refused(make: Make, foreign: str) -> None:
    state = saved(stepped(FOREIGN[foreign](parameters(2, 3)), 2))
    optimizer = make(parameters(2, 3))
    with pytest.raises(ValueError, match=r"missing \[|unknown \["):
        optimizer.load_state_dict(state)
    assert not optimizer.state


def test_a_method_with_a_part_of_the_state_is_refused_too() -> None:
    state = saved(stepped(adamaxw(parameters(2))))
    with pytest.raises(ValueError, match=r"have \['step', 'exp_avg'\]: unknown \['exp_inf'\]"):
        Optimizer(parameters(2), fa.lion).load_state_dict(state)


def test_groups_of_another_optimizer_are_refused_without_state() -> None:
    state = saved(torch.optim.SGD(parameters(2)))
    with pytest.raises(ValueError, match=r"param_groups\[0\].*missing \['betas', 'eps'\]"):
        Adamax(parameters(2)).load_state_dict(state)


BROKEN: dict[str, tuple[str, Any, str]] = {
    "shape": ("exp_avg", torch.ones(5), r"exp_avg of {} .*shape of its state, \(3,\), got \(5,\)"),
    "complex": (
        "exp_inf",
        torch.ones(3) * 1j,
        "exp_inf of {} .* real floating .*got a torch.complex64",
    ),
    "integer": (
        "exp_inf",
        torch.ones(3).long(),
        "exp_inf of {} .* real floating .*got a torch.int64",
    ),
    "list": ("exp_avg", [1.0, 1.0, 1.0], r"exp_avg of {} .* a tensor, got \[1.0"),
    "no moment": ("exp_avg", None, "exp_avg of {} .* a tensor, got None"),
    "word": ("step", "x", "step of {} .* a number, finite and at least 0, got 'x'"),
    "true": ("step", True, "step of {} .* a number, .* got True"),
    "negative": ("step", -1, r"step of {} .* a number, .* got tensor\(-1.\)"),
    "nan": ("step", torch.tensor(float("nan")), r"step of {} .* a number, .* got tensor\(nan\)"),
    "infinite": ("step", float("inf"), r"step of {} .* a number, .* got tensor\(inf\)"),
    "vector": ("step", torch.ones(2), r"step of {} .* a number, .* shape \(2,\)"),
}


@both
@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("named", [False, True])
def test_a_broken_entry_is_refused_by_its_name(make: Make, case: str, named: bool) -> None:
    key, value, words = BROKEN[case]

    def built() -> torch.optim.Optimizer:
        params = parameters(2, 3)
        return make(list(zip("ab", params, strict=True)) if named else params)

    state = saved(stepped(built()))
    state["state"][1][key] = value
    with pytest.raises(ValueError, match=words.format("parameter 'b'" if named else "parameter 1")):
        built().load_state_dict(state)


@both
@pytest.mark.parametrize("key", ["step", "exp_avg", "exp_inf"])
def test_a_missing_key_is_refused(make: Make, key: str) -> None:
    state = saved(stepped(make(parameters(2, 3))))
    del state["state"][1][key]
    with pytest.raises(ValueError, match=rf"entry of parameter 1 .*: missing \['{key}'\]; load"):
        make(parameters(2, 3)).load_state_dict(state)


@both
def test_an_entry_that_is_none(make: Make) -> None:
    state = saved(stepped(make(parameters(2))))
    state["state"][0] = [1.0]
    with pytest.raises(ValueError, match="entry of parameter 0 .* must be a dict, got list"):
        make(parameters(2)).load_state_dict(state)


@both
def test_what_loads_as_before(make: Make) -> None:
    """Parameters without an entry, entries of nobody, other precision, steps as they may be."""
    a, b, c = parameters(2, 2, 2)
    first = stepped(make([a, b, c]))
    state = saved(first)
    del state["state"][1]
    state["state"]["global"] = {"words": ["kept"], "step": -1}
    state["state"][0]["step"] = 1
    state["state"][2]["step"] = torch.tensor([1.0])
    for name in ("exp_avg", "exp_inf"):
        state["state"][2][name] = state["state"][2][name].double()
    again = make([a, b, c])
    again.load_state_dict(state)
    assert b not in again.state
    assert again.state["global"] == {"words": ["kept"], "step": -1}
    stepped(again)
    assert [float(again.state[p]["step"]) for p in (a, b, c)] == [2.0, 1.0, 2.0]
    wide = make is adamaxw  # which keeps what is saved, where torch casts
    assert again.state[c]["exp_avg"].dtype == (torch.float64 if wide else torch.float32)


def test_a_stage_that_was_switched_in_the_saved_run() -> None:
    """Off: its state is still there. On: it is not there yet. Both are what the optimizer makes."""
    run = stepped(momentum(parameters(2)), 2)
    buffer = run.state[run.param_groups[0]["params"][0]]["momentum_buffer"].clone()
    run.param_groups[0]["momentum"] = 0.0
    stepped(run)
    again = momentum(parameters(2))
    again.load_state_dict(saved(run))
    (p,) = again.param_groups[0]["params"]
    assert torch.equal(again.state[p]["momentum_buffer"], buffer)
    with pytest.raises(ValueError, match=r"unknown \['momentum_buffer'\]"):
        momentum(parameters(2), momentum=0.0).load_state_dict(saved(run))

    run = stepped(momentum(parameters(2), momentum=0.0), 2)
    run.param_groups[0]["momentum"] = 0.9
    state = saved(run)
    with pytest.raises(ValueError, match=r"missing \['momentum_buffer'\]"):
        momentum(parameters(2)).load_state_dict(state)
    again = momentum(parameters(2), momentum=0.0)
    again.load_state_dict(state)
    (p,), (q,) = (optimizer.param_groups[0]["params"] for optimizer in (run, again))
    q.data.copy_(p)
    for optimizer in (run, again):
        stepped(optimizer, 2)
    assert torch.equal(p, q)


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


def picky(lr: float = 0.1) -> fa.GradientTransformation:
    """A transform whose ``init`` reads values, as no device without data can."""

    def init(params: Any) -> Any:
        return [None if p is None else p.new_full((), float(p.sum())) for p in params]

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        del params
        return [None if g is None else -lr * g for g in grads], state

    return fa.GradientTransformation(init, update)


def test_a_transform_that_reads_values_at_first() -> None:
    first = stepped(Optimizer(parameters(2, 3), picky), 2)
    assert [float(entry["state"]) for entry in first.state.values()] == [2.0, 3.0]
    again = Optimizer(parameters(2, 3), picky)
    again.load_state_dict(saved(first))
    assert [float(entry["state"]) for entry in stepped(again).state.values()] == [2.0, 3.0]
    state = saved(first)
    state["state"][0] = {"other": torch.ones(())}
    with pytest.raises(ValueError, match=r"missing \['state'\], unknown \['other'\]"):
        again.load_state_dict(state)


def noisy(lr: float = 0.1) -> fa.GradientTransformation:
    """A transform whose first state is random, drawn from torch's own generator."""

    def init(params: Any) -> Any:
        return [None if p is None else torch.randn(p.shape) for p in params]

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        del params
        return [None if g is None else -lr * g for g in grads], state

    return fa.GradientTransformation(init, update)


def test_learning_the_structure_draws_no_random_numbers() -> None:
    optimizer = Optimizer(parameters(2, 3), noisy)
    torch.manual_seed(3)
    optimizer.step()
    torch.manual_seed(3)
    for entry in optimizer.state.values():
        assert torch.equal(entry["state"], torch.randn(entry["state"].shape))
    before = torch.get_rng_state()
    optimizer.load_state_dict(saved(optimizer))
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)


# --- a load that raises ---------------------------------------------------------------------


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


# --- a state that is one tree ---------------------------------------------------------------


def averaging(lr: float = 0.1) -> fa.GradientTransformation:
    def init(params: Any) -> Any:
        return [None if p is None else torch.zeros_like(p) for p in params]

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        del params
        new = [m if g is None else 0.9 * m + g for m, g in zip(state, grads, strict=True)]
        return [None if g is None else -lr * m for g, m in zip(grads, new, strict=True)], new

    return fa.GradientTransformation(init, update)


def test_a_state_without_fields_has_a_name() -> None:
    first = stepped(Optimizer(parameters(2, 3), averaging))
    state = saved(first)
    assert [list(entry) for entry in state["state"].values()] == [["state"], ["state"]]
    old = copy.deepcopy(state)
    old["state"] = {key: {"": entry["state"]} for key, entry in old["state"].items()}
    for one in (state, old):
        again = Optimizer(parameters(2, 3), averaging)
        again.load_state_dict(one)
        assert repr(again.state_dict()) == repr(state)


# --- memory ---------------------------------------------------------------------------------


PEAKS = """
import re, sys
from pathlib import Path
import torch
import functional_adamax as fa
from functional_adamax.compat import Adamax, Optimizer

def make(params):
    return Adamax(params) if sys.argv[1] == "Adamax" else Optimizer(params, fa.adamaxw)

def build(size):
    params = [torch.nn.Parameter(torch.zeros(size)) for _ in range(8)]
    for p in params:
        p.grad = torch.ones_like(p)
    n = 8 // int(sys.argv[2])
    return [{"params": params[i : i + n]} for i in range(0, 8, n)]

def run(groups):
    peaks = []
    def note():
        status = Path("/proc/self/status").read_text()  # ru_maxrss begins with the parent's
        peaks.append(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024)
    first, second = make(groups), make(groups)
    note()
    first.step()
    note()
    second.load_state_dict(first.state_dict())
    note()
    second.step()
    second.functional_state()
    note()
    return [b - a for a, b in zip(peaks, peaks[1:])]

run(build(8))  # which imports what torch imports late
print(*run(build(2**22)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("groups", ["1", "4"])
@pytest.mark.parametrize("name", ["Adamax", "Optimizer"])
def test_a_first_step_needs_the_memory_of_the_state_and_no_more(name: str, groups: str) -> None:
    command = [sys.executable, "-c", PEAKS, name, groups]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, load, after = map(float, done.stdout.split())
    size = 8 * 2**22 * 4 / 2**20
    state = 2 * size
    assert 0.95 * state < first < state + 0.05 * size
    assert 0.95 * state < load < state + 0.05 * size
    assert after < 0.05 * size
