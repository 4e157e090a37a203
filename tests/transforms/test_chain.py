"""Chains: in order, by name, with the arguments that each link takes; functions of the updates."""

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


def test_a_chain_hands_on_what_each_link_makes() -> None:
    g = {"w": torch.tensor([0.25, 3.0]), "none": None}
    tx = fa.chain(fa.scale(2.0), fa.clip(1.0), fa.identity())
    state = tx.init(g)
    assert state == (fa.EmptyState(),) * 3
    updates, after = tx.update(g, state)
    assert updates["w"].tolist() == [0.5, 1.0]
    assert updates["none"] is None
    assert after == state


def test_no_links_are_the_identity() -> None:
    g = torch.tensor([torch.nan, -0.0])
    for tx, state in ((fa.chain(), ()), (fa.named_chain(), {}), (fa.identity(), fa.EmptyState())):
        assert tx.init(g) == state
        updates, after = tx.update(g, state)
        assert updates is g
        assert after == state


def test_set_to_zero_has_zeros_of_every_kind() -> None:
    special = [torch.nan, torch.inf, -1.0]
    for dtype in (torch.float16, torch.float64, torch.complex64):
        g = torch.tensor(special).to(dtype)
        assert_equal(fa.set_to_zero().update(g, fa.EmptyState())[0], torch.zeros(3, dtype=dtype))
