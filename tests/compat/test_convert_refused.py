"""State dicts and functional states that are refused, by the name of what does not fit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from wrapped import trained

from functional_adamax.compat import (
    Adamax,
    hyperparameters_from_torch,
    state_from_torch,
    state_to_torch,
)

NAN = float("nan")


ENTRIES: dict[str, tuple[str, Any, str]] = {
    "nan": ("step", NAN, "step of parameter 1 .* a number, finite and at least 0, got nan"),
    "nan tensor": ("step", torch.tensor(NAN), r"step of parameter 1 .* got tensor\(nan\)"),
    "negative": ("step", -5, "step of parameter 1 .* got -5"),
    "word": ("step", "7", "step of parameter 1 .* got '7'"),
    "vector": ("step", torch.ones(3), r"step of parameter 1 .* of shape \(3,\)"),
    "list": ("exp_avg", [1.0], r"exp_avg of parameter 1 .* a tensor, got \[1.0\]"),
    "none": ("exp_avg", None, "exp_avg of parameter 1 .* a tensor, got None"),
    "complex": ("exp_inf", torch.ones(5) * 1j, "exp_inf of parameter 1 .* real .*complex64"),
    "integer": ("exp_inf", torch.ones(5).int(), "exp_inf of parameter 1 .* real .*int32"),
    "shape": ("exp_inf", torch.ones(9), r"exp_inf of parameter 1 .* of params\['0.bias'\], \(5,"),
    "unknown": ("other", torch.ones(5), r"entry of parameter 1 .*: unknown \['other'\]"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_a_broken_entry(case: str) -> None:
    key, value, words = ENTRIES[case]
    state_dict, params = trained()
    state_from_torch(state_dict, params)
    state_dict["state"][1][key] = value
    with pytest.raises(ValueError, match=words + ".*; if it belongs to another parameter, give"):
        state_from_torch(state_dict, params)


def test_a_real_moment_of_a_complex_parameter() -> None:
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = Adamax([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["state"][0]["exp_avg"] = torch.ones(2)
    with pytest.raises(ValueError, match="exp_avg of parameter 0 .* must be a complex tensor"):
        state_from_torch(state_dict, p.detach())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "betas",
            (0.9, 0.9, 0.9),
            r"betas in the state dict must be two numbers, got \(0.9, 0",
        ),
        ("betas", 0.9, "betas in the state dict must be two numbers, got 0.9"),
        ("betas", (0.9, "x"), r"betas\[1\] in the state dict must be a number .* got 'x'"),
        ("lr", "0.1", "lr in the state dict must be a number .* got '0.1'"),
        ("eps", torch.ones(2), "eps in the state dict must be a number .* got tensor"),
    ],
    ids=str,
)
def test_hyperparameters_that_are_none(name: str, value: Any, words: str) -> None:
    state_dict, params = trained()
    state_dict["param_groups"][0][name] = value
    with pytest.raises(ValueError, match=words):
        hyperparameters_from_torch(state_dict, params)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("exp_avg", torch.ones(9), r"exp_avg of state at params\['0.bias'\] .* got \(9,\)"),
        ("exp_inf", torch.ones(5) * 1j, r"exp_inf of state at params\['0.bias'\] .*complex64"),
        ("step", torch.tensor(NAN), r"step of state at params\['0.bias'\] .* got tensor\(nan\)"),
    ],
    ids=["shape", "complex", "step"],
)
def test_a_functional_state_that_is_not_one_of_the_params(
    field: str, value: torch.Tensor, words: str
) -> None:
    state_dict, params = trained()
    state = state_from_torch(state_dict, params)
    state_to_torch(state, params, state_dict)
    broken = state._replace(**{field: {**getattr(state, field), "0.bias": value}})
    with pytest.raises(ValueError, match=words + ".*; give the state of these params"):
        state_to_torch(broken, params, state_dict)


pytestmark = pytest.mark.filterwarnings("ignore:eps=")
