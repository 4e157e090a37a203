"""Pickles keep loading, whatever has moved in the package since they were written.

``data/pickles.xz`` holds, as pickles by name, the transforms of the recipes with a state and
parameters after one step, factories, and optimizers after one step.
"""

from __future__ import annotations

import lzma
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import RECIPES
from trees import assert_equal, leaves

import functional_adamax as fa
from functional_adamax.compat import Optimizer

SAVED: dict[str, bytes] = pickle.loads(
    lzma.decompress((Path(__file__).parent / "data/pickles.xz").read_bytes())
)
RECIPE = {str(recipe): recipe for recipe in RECIPES}
GRADS = {
    "w": torch.tensor([[0.5, -3.0]], dtype=torch.float64),
    "b": torch.tensor(1.0, dtype=torch.float64),
}


def named(kind: str) -> list[str]:
    return [name for name in SAVED if name.startswith(kind)]


@pytest.mark.parametrize("name", [name for name in SAVED if name in RECIPE])
def test_transforms_and_states(name: str) -> None:
    tx, state, params = pickle.loads(SAVED[name])
    now = RECIPE[name].default()
    assert tx == now
    assert repr(tx) == repr(now)
    fresh = now.init(params)
    assert [type(x) for x in leaves(state)] == [type(x) for x in leaves(fresh)]
    assert_equal(fa.step(tx, GRADS, state, params), fa.step(now, GRADS, state, params))


@pytest.mark.parametrize("name", named("factory "))
def test_factories(name: str) -> None:
    assert pickle.loads(SAVED[name]) is getattr(fa, name.removeprefix("factory "))


@pytest.mark.parametrize("name", named("optimizer "))
def test_optimizers(name: str) -> None:
    optimizer: Any = pickle.loads(SAVED[name])
    assert isinstance(optimizer, Optimizer)
    (w,) = optimizer.param_groups[0]["params"]
    before, step = w.detach().clone(), optimizer.state[w]["step"].item()
    w.grad = GRADS["w"]
    optimizer.step()
    assert not torch.equal(w.detach(), before)
    assert optimizer.state[w]["step"].item() == step + 1


def test_all_kinds_are_there() -> None:
    assert len(named("factory ")) == 12
    assert len(named("optimizer ")) == 4
    assert len([name for name in SAVED if name in RECIPE]) > 70
