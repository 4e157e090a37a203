"""Masks and labels: a transform sees its own leaves, and None in place of the others."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from trees import assert_equal

import functional_adamax as fa
from functional_adamax._core import pytree


def tree() -> dict[str, Any]:
    return {"fc": {"weight": torch.randn(2, 3), "bias": torch.randn(3)}, "gain": torch.randn(())}


def like(params: Any) -> Any:
    return pytree.tree_map(lambda x: None if x is None else torch.randn_like(x), params)


def not_bias(name: str) -> bool:
    return not name.endswith("bias")


MASKS = {
    "tree": {"fc": {"weight": True, "bias": False}, "gain": True},
    "by path": fa.by_path(not_bias),
    "function": lambda params: {"fc": {"weight": True, "bias": False}, "gain": True},
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masked_is_the_transform_on_a_part(mask: Any) -> None:
    params = tree()
    tx = fa.masked(fa.chain(fa.clip_by_global_norm(1.0), fa.adamax(0.1, weight_decay=0.1)), mask)
    part = fa.chain(fa.clip_by_global_norm(1.0), fa.adamax(0.1, weight_decay=0.1))
    inside = {"weight": params["fc"]["weight"], "gain": params["gain"]}
    state, wanted_state = tx.init(params), part.init(inside)
    for _ in range(3):
        grads = like(params)
        updates, state = tx.update(grads, state, params)
        given = {"weight": grads["fc"]["weight"], "gain": grads["gain"]}
        wanted, wanted_state = part.update(given, wanted_state, inside)
        assert updates["fc"]["bias"] is grads["fc"]["bias"]
        assert torch.equal(updates["fc"]["weight"], wanted["weight"])
        assert torch.equal(updates["gain"], wanted["gain"])
    assert state[1].exp_avg["fc"]["bias"] == fa.EmptyState()


@pytest.mark.parametrize("kind", ["masked", "partition"])
def test_a_part_sees_none_in_place_of_what_is_not_its_own(kind: str) -> None:
    seen = []

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        seen.append((updates, params))
        return updates, state

    spy = fa.GradientTransformation(lambda params: seen.append((params,)), update)
    where = {"fc": {"bias": False, "weight": True}, "gain": False}
    labels = {"fc": {"bias": "rest", "weight": "own"}, "gain": "rest"}
    parts = fa.partition({"own": spy, "rest": fa.identity()}, labels)
    tx, params = fa.masked(spy, where) if kind == "masked" else parts, tree()
    grads = like(params)
    tx.update(grads, tx.init(params), params)
    given = [
        {"fc": {"bias": None, "weight": x["fc"]["weight"]}, "gain": None} for x in (params, grads)
    ]
    assert_equal(seen, [(given[0],), (given[1], given[0])])


def test_a_mask_may_be_a_prefix_and_work_without_params() -> None:
    params = tree()
    tx = fa.masked(fa.scale(2.0), {"fc": True, "gain": False})
    updates, _ = tx.update(params, tx.init(params))
    assert torch.equal(updates["fc"]["bias"], 2 * params["fc"]["bias"])
    assert torch.equal(updates["gain"], params["gain"])
    ordered = pytree.spread({"gain": 1, "fc": {"bias": 2, "weight": 3}}, params, "labels")
    assert ordered == [2, 3, 1]


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        ({"fc": True}, ValueError, r"mask must have the structure of params.*mask\['gain'\]"),
        ({"fc": True, "gain": 1}, TypeError, r"mask\['gain'\] must be a bool, got 1"),
    ],
)
def test_masks_that_do_not_fit(mask: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fa.masked(fa.scale(2.0), mask).init(tree())


def label(name: str) -> str:
    return "slow" if "fc" in name else "fast"


def test_partition() -> None:
    params = tree()
    tx = fa.partition({"slow": fa.adamax(0.01), "fast": fa.adamax(0.5)}, fa.by_path(label))
    state = tx.init(params)
    grads = like(params)
    updates, state = tx.update(grads, state, params)
    for name, lr in (("fc", 0.01), ("gain", 0.5)):
        alone = fa.adamax(lr)
        wanted, _ = alone.update(grads[name], alone.init(params[name]))
        assert_equal(updates[name], wanted)
    assert state["slow"].exp_avg["gain"] == fa.EmptyState()
    assert state["fast"].exp_avg["fc"]["weight"] == fa.EmptyState()
    assert pickle.loads(pickle.dumps(tx)) == tx
    frozen = fa.partition({"slow": fa.set_to_zero(), "fast": fa.adamax(0.5)}, fa.by_path(label))
    assert len(pytree.tensors(frozen.init(params))) == 3  # the state of the gain alone
    assert not frozen.update(grads, frozen.init(params), params)[0]["fc"]["bias"].any()


def test_partition_names_the_leaf_without_a_transform() -> None:
    tx = fa.partition({"slow": fa.adamax()}, fa.by_path(label))
    with pytest.raises(ValueError, match=r"labels\['gain'\] must be one of \['slow'\], got 'fast'"):
        tx.init(tree())
    with pytest.raises(TypeError, match=r"transforms\['slow'\] must be a pair"):
        fa.partition({"slow": 3}, "slow")  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="the keys"):
        fa.partition({"a": fa.scale(1.0)}, "a").update(tree(), (), tree())


def test_freeze() -> None:
    params = tree()
    tx = fa.chain(fa.adamax(0.1), fa.freeze({"fc": {"weight": False, "bias": True}, "gain": False}))
    grads = like(params)
    grads["gain"] = None
    updates, _ = tx.update(grads, tx.init(params), params)
    assert not updates["fc"]["bias"].any()
    assert updates["fc"]["weight"].all()
    assert updates["gain"] is None


def test_none_in_a_mask_beside_a_parameter_that_is_none() -> None:
    params = {"w": torch.ones(2), "b": None}
    tx = fa.masked(fa.scale(2.0), {"w": True, "b": None})
    assert tx.update(params, tx.init(params))[0]["w"][0] == 2
    labelled = fa.partition({"x": fa.scale(3.0)}, {"w": "x", "b": None})
    assert labelled.update(params, labelled.init(params))[0]["w"][0] == 3
