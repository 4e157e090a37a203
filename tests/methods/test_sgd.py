"""SGD against torch, its formula, and its options one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trees import assert_equal
from twins_methods import COMPLEX, EXACT, assert_twins, run

import functional_adamax as fa

OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1, "maximize": True},
]


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_torchs(options: dict[str, Any], dtype: torch.dtype) -> None:
    tx = fa.sgd(0.1, **options)
    assert_twins(torch.optim.SGD, {"lr": 0.1, **options}, tx, dtype, ulps=2)


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_complex_leaves_are_torchs(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Torch multiplies complex numbers here, which rounds otherwise than the components do."""
    z, grads = torch.randn(40, dtype=dtype), [torch.randn(40, dtype=dtype) for _ in range(30)]
    twin = torch.nn.Parameter(z.clone())
    optimizer = torch.optim.SGD([twin], 0.1, **options)
    for twin.grad in grads:
        optimizer.step()
    got = run(fa.sgd(0.1, **options), z, grads)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got, twin.detach(), rtol=50 * eps, atol=50 * eps)


def test_it_is_the_formula() -> None:
    p, buffer, n = 2.0, None, 0
    ours = torch.tensor(p, dtype=torch.float64)
    tx = fa.sgd(0.1, momentum=0.8, dampening=0.25, weight_decay=0.5)
    state = tx.init(ours)
    for g in (1.0, None, -3.0, 0.0, 0.5):
        if g is not None:
            decayed, n = g + 0.5 * p, n + 1
            buffer = decayed if n == 1 else 0.8 * buffer + 0.75 * decayed
            p -= 0.1 * buffer
        given = None if g is None else torch.tensor(g, dtype=torch.float64)
        ours, state = fa.step(tx, given, state, ours)
    assert float(ours) == pytest.approx(p, rel=1e-14)
    assert float(state.momentum_buffer) == pytest.approx(buffer, rel=1e-14)
    assert float(state.step) == 4


def test_without_momentum_it_keeps_no_buffer_and_is_a_scaled_gradient() -> None:
    tx, p, g = fa.sgd(0.1), torch.randn(3), torch.randn(3)
    state = tx.init(p)
    assert state.momentum_buffer == fa.EmptyState()
    scaled = fa.scale_by_learning_rate(0.1)
    assert_equal(tx.update(g, state)[0], scaled.update(g, scaled.init(p))[0])


def test_the_first_gradient_is_not_dampened() -> None:
    tx, p = fa.sgd(1.0, momentum=0.5, dampening=0.5), torch.zeros(1)
    state = tx.init(p)
    _, state = tx.update(None, state)
    updates, state = tx.update(torch.ones(1), state)
    assert updates.item() == -1.0
    assert tx.update(torch.ones(1), state)[0].item() == -1.0
    assert tx.update(torch.zeros(1), state)[0].item() == -0.5


def test_the_first_buffer_lets_no_nan_through_from_an_infinite_one() -> None:
    """The buffer before the first gradient is selected away, not multiplied by zero."""
    tx = fa.sgd(1.0, momentum=0.5)
    start = tx.init(torch.zeros(1))._replace(momentum_buffer=torch.tensor([torch.inf]))
    momentum = torch.tensor(0.5, requires_grad=True)
    updates, _ = fa.sgd(1.0, momentum=momentum).update(torch.ones(1), start)
    assert updates.item() == -1.0
    assert tx.update(torch.ones(1), start)[0].item() == -1.0


def test_a_none_gradient_leaves_its_leaf_alone() -> None:
    tx = fa.sgd(0.1, momentum=0.9, weight_decay=0.1)
    tree = {"a": torch.ones(2), "b": torch.ones(2)}
    _, state = tx.update({"a": torch.ones(2), "b": torch.ones(2)}, tx.init(tree), tree)
    updates, after = tx.update({"a": torch.ones(2), "b": None}, state, tree)
    assert updates["b"] is None
    assert after.momentum_buffer["b"] is state.momentum_buffer["b"]
    assert after.step["b"] is state.step["b"]


def test_numbers_tensors_trees_and_schedules_agree() -> None:
    p, grads = torch.randn(50), [torch.randn(50) for _ in range(5)]
    want = run(fa.sgd(0.1, 0.5, 0.0, 0.1, True), p, grads)

    def tensor(x: float) -> torch.Tensor:
        return torch.tensor([x], dtype=torch.float64)

    tensors = fa.sgd(tensor(0.1), tensor(0.5), tensor(0.0), tensor(0.1), True)
    assert_equal(run(tensors, p, grads), want)
    assert_equal(run(fa.sgd(lambda count: 0.1, 0.5, 0.0, 0.1, True), p, grads), want)
    tree = fa.sgd({"x": 0.1}, {"x": 0.5}, 0.0, {"x": 0.1}, True)
    tree_p, state = {"x": p}, tree.init({"x": p})
    for g in grads:
        tree_p, state = fa.step(tree, {"x": g}, state, tree_p)
    assert_equal(tree_p["x"], want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": -0.1}, r"momentum must be in \[0, inf\), got -0.1"),
        ({"weight_decay": -1.0}, "weight_decay must be in"),
        ({"dampening": float("nan")}, "dampening must be finite, got nan"),
        ({"nesterov": True}, "nesterov needs a momentum above 0.*momentum=0.0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "dampening=0.1"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fa.sgd(0.1, **options)


def test_bad_trees_are_named() -> None:
    p = {"a": torch.ones(2)}
    plain, heavy = fa.sgd(0.1), fa.sgd(0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"state.momentum_buffer must have the structure of"):
        heavy.update(p, plain.init(p))
    with pytest.raises(TypeError, match="state must be the SgdState that init returned"):
        heavy.update(p, fa.adam().init(p))
    with pytest.raises(ValueError, match="params must be given for weight decay"):
        fa.sgd(0.1, weight_decay=0.1).update(p, plain.init(p))
    with pytest.raises(ValueError, match=r"params\['a'\] must fit its state"):
        heavy.update(p, heavy.init(p), {"a": torch.ones(3)})
    with pytest.raises(ValueError, match=r"grads\['a'\] must have the shape.*\(2,\).*\(3,\)"):
        plain.update({"a": torch.ones(3)}, plain.init(p), p)
