"""What ``from_state_dict`` refuses, and flat dicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from trees import assert_equal

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


def recipe() -> tuple[fa.GradientTransformation, Any]:
    """A transform whose state has numbers, nothing, masks and trees in it, and parameters."""
    schedule = fa.cosine_decay_schedule(0.1, 10)
    labels = {"a": "slow", "b.c": ["fast", "fixed"]}
    tx = fa.partition(
        {"slow": fa.adamax(schedule), "fast": fa.lion(0.1), "fixed": fa.set_to_zero()}, labels
    )
    params = {"a": torch.randn(3), "b.c": [torch.randn(2).bfloat16(), torch.randn(())]}
    return fa.multi_steps(fa.chain(fa.clip_by_global_norm(1.0), tx), 2), params


def test_a_run_goes_on_from_safetensors(tmp_path: Any) -> None:
    tx, params = recipe()
    state = tx.init(params)
    for _ in range(3):
        params, state = fa.step(tx, params, state, params)
    save_file(fa.to_state_dict((params, state), sep="/"), tmp_path / "state.safetensors")
    tx, start = recipe()
    loaded = load_file(tmp_path / "state.safetensors")
    again = fa.from_state_dict((start, tx.init(start)), loaded, sep="/")
    assert_equal(again, (params, state))
    assert_equal(fa.step(tx, again[0], again[1], again[0]), fa.step(tx, params, state, params))


def test_flat_names_are_the_keys_joined() -> None:
    tx, params = recipe()
    saved = fa.to_state_dict((params, fa.adamax().init(params)), sep="/")
    names = {"a", "b.c/0", "b.c/1"}
    fields = {f"1/{field}/{x}" for field in ("step", "exp_avg", "exp_inf") for x in names}
    assert set(saved) == {f"0/{x}" for x in names} | fields
    assert saved["0/b.c/1"] is params["b.c"][1]


def test_flat_names_that_are_wrong() -> None:
    params = {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}
    with pytest.raises(
        ValueError, match=r"two tensors are called 'a.b': give another sep than '.'"
    ):
        fa.to_state_dict(params, sep=".")
    saved = fa.to_state_dict(params, sep="/")
    assert_equal(fa.from_state_dict(params, saved, sep="/"), params)
    with pytest.raises(ValueError, match=r"\['more'\] is unexpected"):
        fa.from_state_dict(params, {**saved, "more": torch.ones(1)}, sep="/")
    with pytest.raises(ValueError, match=r"\['a/b'\] is missing"):
        fa.from_state_dict(params, {"a.b": torch.ones(1)}, sep="/")
    with pytest.raises(ValueError, match=r"\['a'\]\['b'\] must be a tensor of shape \(1,\)"):
        fa.from_state_dict(params, {**saved, "a/b": torch.ones(2)}, sep="/")
    with pytest.raises(ValueError, match="state_dict must be a dict, got list"):
        fa.from_state_dict(params, [], sep="/")
