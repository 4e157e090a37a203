"""Steps that are programs take the memory of the new state, and no more."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peaks import peak_of
from torch import Tensor

import functional_adamax as fa
from functional_adamax._core import pytree
from functional_adamax._execution.program import machine
from functional_adamax.compat import Optimizer

SHAPES = (512, 512), (512, 512), (256, 1024), (1024,)
SIZE = sum(4 * torch.Size(shape).numel() for shape in SHAPES)  # of the parameters, in bytes
SPARE = 0.05 * SIZE


def recipe() -> fa.GradientTransformation:
    return fa.chain(
        fa.clip_by_global_norm(1.0),
        fa.scale_by_adamax(),
        fa.add_decayed_weights(0.1),
        fa.scale_by_learning_rate(0.1),
    )


RECIPES = {
    "chain": recipe(),
    "partition": fa.partition({"a": recipe(), "b": recipe()}, ["a", "b", "a", "b"]),
    "multi_steps": fa.multi_steps(recipe(), 3),
    "params_ema": fa.chain(recipe(), fa.params_ema(0.9)),
}
MOMENTS = {"chain": 2, "partition": 2, "multi_steps": 3, "params_ema": 3}  # trees in the state

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")
every = pytest.mark.parametrize("name", RECIPES)


def start() -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and gradients."""
    p, g = ([torch.randn(shape) for shape in SHAPES] for _ in range(2))
    return p, g


def repeated(step: Callable[[], Any]) -> int:
    """The peak of three steps, one of which ends a cycle of ``multi_steps``."""
    return peak_of(lambda: [step() for _ in range(3)])


@every
def test_a_donated_step(name: str) -> None:
    tx, (p, g) = RECIPES[name], start()
    kept: list[Any] = []

    def step() -> None:
        if not kept:
            kept.append(tx.init(p))
        _, kept[0] = fa.step(tx, g, kept[0], p, donate=True)

    first = peak_of(step)
    state = sum(x.nbytes for x in pytree.tensors(kept))
    assert MOMENTS[name] * SIZE <= state <= first <= state + SPARE
    assert repeated(step) <= SPARE
    kept[0] = fa.from_state_dict(kept[0], copy.deepcopy(fa.to_state_dict(kept[0])))
    assert repeated(step) <= SPARE


def optimizer_of(tx: fa.GradientTransformation) -> Optimizer:
    """An optimizer that is to take its first step."""
    params, grads = start()
    optimizer = Optimizer(map(torch.nn.Parameter, params), tx)
    for p, g in zip(optimizer.param_groups[0]["params"], grads, strict=True):
        p.grad = g
    return optimizer


@every
def test_a_step_of_an_optimizer(name: str) -> None:
    optimizer, other = (optimizer_of(RECIPES[name]) for _ in range(2))
    first = peak_of(optimizer.step)
    state = sum(x.nbytes for x in pytree.tensors([*optimizer.state.values()]))
    assert MOMENTS[name] * SIZE <= state <= first <= state + SPARE
    assert repeated(optimizer.step) <= SPARE
    saved = copy.deepcopy(optimizer.state_dict())
    assert peak_of(lambda: other.load_state_dict(saved)) <= state + SPARE
    assert repeated(other.step) <= SPARE
