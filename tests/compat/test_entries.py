"""What is saved of a parameter is what a transform keeps of it, or is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from saving import Make, adamaxw, both, momentum, saved, stepped
from wrapped import parameters

import functional_adamax as fa
from functional_adamax.compat import Adamax, Optimizer, _entries

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


KEPT = {"step": torch.zeros(()), "exp_avg": torch.zeros(3), "other": None}
FINE = {"step": 2, "exp_avg": torch.ones(3).half()}


def said_of(entry: Any, spare: Any = ("other",), hyperparameters: Any = ("lr",)) -> str | None:
    return _entries.misfit(entry, KEPT, "parameter 1", "its state", spare, hyperparameters)


@pytest.mark.parametrize("step", [0, 2.5, np.int64(3), torch.tensor(4), torch.tensor([5.0])])
def test_an_entry_that_fits(step: Any) -> None:
    assert said_of(FINE | {"step": step}) is None


@pytest.mark.parametrize("name", ["count", "0.count", "inner.lr", "lr.0", "stepped"])
def test_what_schedules_left_may_stay(name: str) -> None:
    assert said_of(FINE | {name: torch.zeros(())}) is None


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (3, "the entry of parameter 1 must be a dict, got int"),
        (
            {"step": 1},
            "the entry of parameter 1 must have ['step', 'exp_avg', 'other']: missing ['",
        ),
        (
            FINE | {"eps": 1},
            "the entry of parameter 1 must have ['step', 'exp_avg', 'other']: unkn",
        ),
        (
            FINE | {"step": -0.5},
            "step of parameter 1 must be a number, finite and at least 0, got -",
        ),
        (
            FINE | {"step": True},
            "step of parameter 1 must be a number, finite and at least 0, got T",
        ),
        (
            FINE | {"step": 1j},
            "step of parameter 1 must be a number, finite and at least 0, got 1j",
        ),
        (FINE | {"exp_avg": 1.0}, "exp_avg of parameter 1 must be a tensor, got 1.0"),
        (
            FINE | {"exp_avg": torch.ones(4)},
            "exp_avg of parameter 1 must have the shape of its state, (3,), got (4,)",
        ),
        (
            FINE | {"exp_avg": torch.ones(3).bool()},
            "exp_avg of parameter 1 must be a real floating tensor, got a torch.bool tensor",
        ),
    ],
)
def test_an_entry_that_does_not_fit_is_told(entry: Any, said: str) -> None:
    found = said_of(entry)
    assert found is not None
    assert found.startswith(said)


def test_parameters_are_called_by_name_or_number() -> None:
    a, b, c = parameters(1, 1, 1)
    groups = [{"params": [a], "param_names": ["w"]}, {"params": [b, c], "param_names": ["x"]}]
    assert _entries.titles_of(groups) == {
        a: "parameter 'w' in the state dict",
        b: "parameter 1 in the state dict",
        c: "parameter 2 in the state dict",
    }
    assert [_entries.is_step(x) for x in ("step", "0.step", "steps", "count")] == [True, True, 0, 0]
