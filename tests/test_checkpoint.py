"""What ``from_state_dict`` refuses: values of another kind than the state has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import functional_adamax as fa

PARAMS = {"w": torch.ones(3), "z": torch.ones(2, dtype=torch.complex64)}


def transform() -> fa.GradientTransformation:
    return fa.multi_steps(fa.adamax(0.1), 2)


def flat() -> tuple[Any, dict[str, Any]]:
    like = transform().init(PARAMS)
    return like, fa.to_state_dict(like)


@pytest.mark.parametrize(
    ("key", "leaf", "value", "words"),
    [
        ("exp_avg", "w", torch.ones(3) * 1j, "a real floating tensor.* got a torch.complex64"),
        ("exp_avg", "w", torch.ones(3).long(), "a real floating tensor.* got a torch.int64"),
        ("exp_avg", "w", torch.ones(3).bool(), "a real floating tensor.* got a torch.bool"),
        ("exp_avg", "z", torch.ones(2), "a complex tensor.* got a torch.float32"),
        ("step", "w", torch.tensor(3), "a real floating tensor.* got a torch.int64"),
        ("step", "w", 3.0, r"a tensor of shape \(\), got float"),
    ],
    ids=["complex", "integer", "boolean", "real", "step", "number"],
)
def test_a_leaf_of_another_kind(key: str, leaf: str, value: Any, words: str) -> None:
    like, saved = flat()
    (inner,) = (saved[name] for name in saved if name.startswith("inner"))
    inner[key][leaf] = value
    with pytest.raises(ValueError, match=rf"\['{key}'\]\['{leaf}'\] must be {words}"):
        fa.from_state_dict(like, saved)


def test_a_counter_that_is_no_integer() -> None:
    like, saved = flat()
    saved["mini_step"] = torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"\['mini_step'\] must be an integer tensor.*float32"):
        fa.from_state_dict(like, saved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_another_precision_is_kept(dtype: torch.dtype) -> None:
    like = fa.adamax().init(PARAMS)
    saved = fa.to_state_dict(like)
    saved["exp_avg"]["w"] = saved["exp_avg"]["w"].to(dtype)
    assert fa.from_state_dict(like, saved).exp_avg["w"].dtype == dtype


@pytest.mark.parametrize("given", [[1], None, 3.0, torch.ones(1)], ids=str)
def test_what_is_no_dict(given: Any) -> None:
    with pytest.raises(ValueError, match="state_dict must be a dict, got"):
        fa.from_state_dict(fa.adamax().init(PARAMS), given)
