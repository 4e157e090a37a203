"""Transforms of transforms: masks, labels, conditions, and state by name."""

from __future__ import annotations

import pickle
from functools import partial
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


def test_named_chain_is_chain() -> None:
    params = tree()
    parts = {"clip": fa.clip(0.5), "direction": fa.scale_by_adamax(), "rate": fa.scale(-0.1)}
    one, two = fa.named_chain(*parts.items()), fa.chain(*parts.values())
    state, other = one.init(params), two.init(params)
    for _ in range(3):
        grads = like(params)
        updates, state = one.update(grads, state, params)
        wanted, other = two.update(grads, other, params)
        assert_equal(updates, wanted)
    assert list(state) == list(parts)
    assert_equal(tuple(state.values()), other)
    with pytest.raises(ValueError, match="'a' twice"):
        fa.named_chain(("a", fa.identity()), ("a", fa.identity()))
    with pytest.raises(TypeError, match=r"links\[0\] must be \(name, transform\)"):
        fa.named_chain(fa.identity())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="with the keys"):
        one.update(grads, {"clip": ()}, params)


def test_extra_arguments_reach_the_links_that_want_them() -> None:
    seen = []

    def wants(updates: Any, state: Any, params: Any = None, *, value: Any = None) -> Any:
        seen.append(value)
        return updates, state

    def plain(updates: Any, state: Any, params: Any = None) -> Any:
        return updates, state

    tx = fa.chain(
        fa.adamax(),
        fa.GradientTransformation(lambda params: (), wants),
        fa.masked(fa.GradientTransformation(lambda params: (), plain), True),
    )
    params = torch.ones(2)
    tx.update(params, tx.init(params), params, value=7, other=3)
    assert seen == [7]
    pair = fa.GradientTransformation(lambda params: (), plain)
    wrappers = (fa.apply_if_finite(pair, 3), fa.multi_steps(pair, 2), fa.cautious(pair), pair)
    for wrapped in wrappers:
        fa.step(wrapped, params, wrapped.init(params), params, value=7)


def test_conditionally_takes_or_leaves() -> None:
    tx = fa.conditionally(fa.adamax(0.1), lambda count: count >= 2)
    params = torch.ones(3)
    state = tx.init(params)
    for i in range(4):
        grads = torch.full((3,), float("nan")) if i < 2 else torch.ones(3)
        updates, state = tx.update(grads, state, params)
        assert torch.equal(updates.isnan(), grads.isnan())
    assert state.inner.step == 2
    assert torch.equal(state.inner.exp_inf, torch.ones(3) + 1e-8)
    with pytest.raises(ValueError, match="'pass' or 'zero'"):
        fa.conditionally(fa.identity(), bool, "skip")
    with pytest.raises(TypeError, match="function of the count"):
        fa.conditionally(fa.identity(), 3)  # type: ignore[arg-type]


def test_state_by_name() -> None:
    params = {"w": torch.ones(2), "none": None}
    tx = fa.named_chain(("direction", fa.scale_by_adamax()), ("trace", fa.trace(0.9)))
    _, state = tx.update(params, tx.init(params))
    assert fa.tree_get(state, "exp_inf")["w"][0] == 1 + 1e-8
    assert [path for path, _ in fa.tree_get_all(state, "exp_avg")] == ["state['direction'].exp_avg"]
    zeroed = fa.tree_set(state, exp_avg={"w": torch.zeros(2), "none": fa.EmptyState()})
    assert not zeroed["direction"].exp_avg["w"].any()
    assert state["direction"].exp_avg["w"].any()
    with pytest.raises(KeyError, match="must be the name of a field"):
        fa.tree_get(state, "momentum")
    with pytest.raises(KeyError, match=r"state\[0\]\.step, state\[1\]\.step"):
        fa.tree_get((state["direction"], state["direction"]), "step")
    doubled = fa.tree_map_params(lambda x, p: x.double() if x.dim() else x, state, params)
    assert doubled["direction"].exp_avg["w"].dtype == torch.float64
    assert doubled["direction"].exp_avg["none"] == fa.EmptyState()
    added = fa.tree_map_params(lambda x, p, q: x + q, state, params, params)
    assert torch.equal(added["trace"].trace["w"], state["trace"].trace["w"] + 1)


def test_reset_of_a_part() -> None:
    params = tree()
    tx = fa.partition({"slow": fa.adamax(0.01), "fast": fa.adamax(0.5)}, fa.by_path(label))
    _, state = tx.update(like(params), tx.init(params), params)
    again = fa.reset(tx, state, params, "slow")
    assert_equal(again["slow"], tx.init(params)["slow"])
    assert_equal(again["fast"], state["fast"])
    assert_equal(fa.reset(tx, state, params), tx.init(params))


def scaled(factor: float, updates: Any, params: Any) -> Any:
    return pytree.tree_map(lambda u: None if u is None else factor * u, updates)


def test_stateless() -> None:
    params = tree()
    tx = fa.stateless(partial(scaled, 3.0))
    assert tx.init(params) == fa.EmptyState()
    assert_equal(tx.update(params, tx.init(params))[0], scaled(3.0, params, None))
    assert pickle.loads(pickle.dumps(tx)) == tx
    with pytest.raises(TypeError, match="function must be callable"):
        fa.stateless(3)  # type: ignore[arg-type]


def test_none_in_a_mask_beside_a_parameter_that_is_none() -> None:
    params = {"w": torch.ones(2), "b": None}
    tx = fa.masked(fa.scale(2.0), {"w": True, "b": None})
    assert tx.update(params, tx.init(params))[0]["w"][0] == 2
    labelled = fa.partition({"x": fa.scale(3.0)}, {"w": "x", "b": None})
    assert labelled.update(params, labelled.init(params))[0]["w"][0] == 3


def test_a_single_tensor_and_the_values_that_are_its_own() -> None:
    params = torch.ones(2)
    state = fa.adamax(fa.constant_schedule(0.1)).init(params)
    state = fa.tree_map_params(lambda x, p: x + p, state, params)
    assert state.count == 0
    assert torch.equal(state.inner.exp_avg, params)
