"""What is read of a state dict: that it is of an Adamax, and whose numbers its parameters have."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from wrapped import trained

import functional_adamax as fa
from functional_adamax.compat import hyperparameters_from_torch, state_from_torch, state_to_torch


@pytest.mark.parametrize("entry", [None, [1.0]], ids=str)
def test_an_entry_that_is_no_dict(entry: Any) -> None:
    state_dict, params = trained()
    state_dict["state"][1] = entry
    with pytest.raises(ValueError, match="entry of parameter 1 .* must be a dict, got"):
        state_from_torch(state_dict, params)


def calls(state_dict: Any, params: Any) -> list[Any]:
    state = fa.adamax().init(params)
    return [
        lambda: state_from_torch(state_dict, params),
        lambda: hyperparameters_from_torch(state_dict, params),
        lambda: state_to_torch(state, params, state_dict),
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1], "must be an optimizer, or what its .*, got list"),
        (None, "must be an optimizer, or what its .*, got None"),
        ({"state": {}}, r"state_dict\['param_groups'\] must be a list, got None"),
        ({"param_groups": []}, r"state_dict\['state'\] must be a dict, got None"),
        (
            {"param_groups": [[0]], "state": {}},
            r"\[0\] must be a dict with .* got list",
        ),
        ({"param_groups": [{}], "state": {}}, r"with a list under 'params', got dict"),
    ],
    ids=str,
)
def test_what_is_no_state_dict(given: Any, words: str) -> None:
    for call in calls(given, trained()[1]):
        with pytest.raises(TypeError, match=words):
            call()


def test_parameters_and_entries_that_do_not_belong_together() -> None:
    state_dict, params = trained()
    state_dict["state"]["global"] = {"words": "kept"}  # which is nobody's
    for call in calls(state_dict, params):
        call()
    unknown, twice = copy.deepcopy(state_dict), copy.deepcopy(state_dict)
    unknown["state"][77] = unknown["state"][0]
    twice["param_groups"][0]["params"] = [0, 0, 1, 2]
    missing = copy.deepcopy(state_dict)
    missing["param_groups"][0]["params"].pop()
    for given, words in (
        (unknown, "got one for 77: its parameter is missing"),
        (missing, "got one for 3: its parameter is missing"),
        (twice, "each parameter in its groups once, got 0 twice"),
    ):
        for call in calls(given, params):
            with pytest.raises(ValueError, match=words):
                call()
