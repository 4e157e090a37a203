"""Checkpoints between torch.optim.Adamax and compat.Adamax, in mid-run."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from saving import CLASSES, run, through_a_file
from trees import DTYPES
from twins import assert_twins, copies, pair, parameters, same_bits

from functional_adamax.compat import Adamax, state_from_torch

pytestmark = pytest.mark.filterwarnings("ignore:eps=")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", CLASSES)
@pytest.mark.parametrize("target", CLASSES)
def test_resumed_run_is_the_uninterrupted_one(source: str, target: str, dtype: torch.dtype) -> None:
    a = parameters(dtype)
    options = {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1}
    first = CLASSES[source]([{"params": a[:2]}, {"params": a[2:], "lr": 0.1}], **options)
    run([first], [a], 5)
    b = copies(a)
    second = CLASSES[target]([{"params": b[:2]}, {"params": b[2:]}])
    saved = through_a_file(first.state_dict())
    second.load_state_dict(saved)
    assert_twins(first, second)
    assert_plain(saved)
    run([first, second], [a, b], 5)
    assert_twins(first, second)
    back = CLASSES[source]([{"params": a[:2]}, {"params": a[2:]}])
    back.load_state_dict(through_a_file(second.state_dict()))
    for group, other in zip(back.param_groups, first.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in other.items() if k != "params"
        }


def assert_plain(state_dict: dict[str, Any]) -> None:
    for entry in state_dict["state"].values():
        assert list(entry) == ["step", "exp_avg", "exp_inf"]


def test_a_checkpoint_is_key_for_key_torchs() -> None:
    a = parameters(torch.float32)
    b = copies(a)
    theirs, ours = torch.optim.Adamax(a), Adamax(b)
    run([theirs, ours], [a, b], 3)
    assert repr(theirs.state_dict()) == repr(ours.state_dict())


@pytest.mark.parametrize("number", [3, 3.0, np.int64(3)], ids=["int", "float", "numpy"])
def test_an_old_checkpoint_loads(number: float) -> None:
    a = parameters(torch.float32)
    theirs = torch.optim.Adamax(a)
    run([theirs], [a], 3)
    old = copy.deepcopy(theirs.state_dict())
    for name in ("foreach", "maximize", "differentiable", "capturable"):
        del old["param_groups"][0][name]
    for entry in old["state"].values():
        entry["step"] = type(number)(entry["step"])
    b, c = copies(a), copies(a)
    ours, reference = Adamax(b), torch.optim.Adamax(c)
    ours.load_state_dict(copy.deepcopy(old))
    reference.load_state_dict(copy.deepcopy(old))
    assert_twins(reference, ours)
    run([reference, ours], [c, b], 3)
    assert_twins(reference, ours)
    state = state_from_torch(old, list(a))
    assert [float(x) for x in state.step] == [
        float(old["state"].get(i, {"step": 0})["step"]) for i in range(len(a))
    ]


def test_loading_never_shares_tensors() -> None:
    a = parameters(torch.float32)
    first = Adamax(a)
    run([first], [a], 3)
    given = first.state_dict()
    kept = copy.deepcopy(given)
    b = copies(a)
    second = Adamax(b)
    second.load_state_dict(given)
    run([second], [b], 3)
    for key, entry in kept["state"].items():
        for name, value in entry.items():
            assert same_bits(value, first.state_dict()["state"][key][name])
    assert second.state[b[0]]["exp_avg"] is not first.state[a[0]]["exp_avg"]


def test_load_replaces_groups_and_state_and_keeps_foreign_entries() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Adamax([p])
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    nested = {"inner": torch.ones(1, dtype=torch.float64), "text": "kept"}
    saved["state"]["global"] = {"count": torch.tensor(3), "nested": nested}
    saved["unknown"] = 1
    torch_loaded = torch.optim.Adamax([p])
    torch_loaded.load_state_dict(copy.deepcopy(saved))
    groups, state = optimizer.param_groups, optimizer.state
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups is not groups
    assert optimizer.state is not state
    assert optimizer.state["global"]["count"] is not saved["state"]["global"]["count"]
    assert repr(dict(optimizer.state)) == repr(dict(torch_loaded.state))


def test_mismatched_checkpoints_fail_in_torchs_words_and_change_nothing() -> None:
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    for source in (Adamax([{"params": [p]}, {"params": [q]}]), Adamax([p, q])):
        errors = []
        for cls in (torch.optim.Adamax, Adamax):
            optimizer = cls([torch.nn.Parameter(torch.ones(2))])
            with pytest.raises(ValueError, match="loaded state dict") as caught:
                optimizer.load_state_dict(source.state_dict())
            errors.append(str(caught.value))
            assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 0
            assert len(optimizer.param_groups) == 1
        assert errors[0] == errors[1]


def test_loading_in_inference_mode() -> None:
    theirs, ours, a, b = pair(parameters(torch.float32))
    run([theirs, ours], [a, b], 2)
    saved = copy.deepcopy(ours.state_dict())
    with torch.inference_mode():
        ours.load_state_dict(saved)
    run([theirs, ours], [a, b], 2)
    assert_twins(theirs, ours)
