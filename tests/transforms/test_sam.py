"""Sharpness-aware minimisation against the two passes written out."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch.func import grad, vmap
from trees import assert_equal, clone

import functional_adamax as fa
from functional_adamax import compat

TARGET = torch.linspace(-1, 1, 6, dtype=torch.float64)


def loss(tree: Any) -> torch.Tensor:
    both = torch.cat([tree["w"].flatten(), tree["b"].reshape(1)])
    return (both.cos() * both - TARGET[: both.numel()]).square().sum()


def start() -> Any:
    return {"w": torch.randn(2, 2, dtype=torch.float64), "b": torch.randn((), dtype=torch.float64)}


@pytest.mark.parametrize("adaptive", [False, True])
def test_it_is_the_two_passes(adaptive: bool) -> None:
    tx, rho = fa.sam(fa.adamax(0.05), 0.3, adaptive), 0.3
    tree = start()
    twin = [tree[k].clone().requires_grad_() for k in ("w", "b")]
    optimizer, state = torch.optim.Adamax(twin, lr=0.05), tx.init(tree)
    for _ in range(8):
        gs = torch.autograd.grad(loss(dict(zip("wb", twin, strict=True))), twin)
        sizes = [p.detach().abs() if adaptive else torch.ones_like(p) for p in twin]
        norm = sum((t * g).square().sum() for t, g in zip(sizes, gs, strict=True)).sqrt()
        there = [
            (p + rho * t**2 * g / norm).detach().requires_grad_()
            for p, t, g in zip(twin, sizes, gs, strict=True)
        ]
        uphill = torch.autograd.grad(loss(dict(zip("wb", there, strict=True))), there)
        for p, g in zip(twin, uphill, strict=True):
            p.grad = g
        optimizer.step()
        tree, state = fa.step(tx, grad(loss)(tree), state, tree, grad_fn=grad(loss))
        for k, p in zip("wb", twin, strict=True):
            torch.testing.assert_close(tree[k], p.detach(), rtol=1e-10, atol=1e-11)


def test_scaling_the_parameters_changes_nothing_if_adaptive() -> None:
    factor = torch.tensor([1.0, 10.0, 0.1, 1e4], dtype=torch.float64)

    def one(p: torch.Tensor) -> torch.Tensor:
        return (p.sin() * p).sum()

    def two(q: torch.Tensor) -> torch.Tensor:
        return one(q / factor)

    p, tx = torch.randn(4, dtype=torch.float64), fa.sam(fa.identity(), 0.5, adaptive=True)
    x, _ = tx.update(grad(one)(p), fa.EmptyState(), p, grad_fn=grad(one))
    q = p * factor
    y, _ = tx.update(grad(two)(q), fa.EmptyState(), q, grad_fn=grad(two))
    torch.testing.assert_close(x, y * factor, rtol=1e-11, atol=1e-12)


def test_a_part_is_perturbed() -> None:
    """Under a mask, labels, and masks of masks: the rest stays where it is."""
    params = {"w": torch.tensor([3.0, 4.0]), "b": torch.ones(1)}

    def loss(p: Any) -> torch.Tensor:
        return (p["w"] ** 2).sum() * p["b"].sum() / 2

    gradient = torch.func.grad(loss)
    inside = fa.sam(fa.sgd(0.5), rho=1.0)
    for tx in (
        fa.masked(inside, {"w": True, "b": False}),
        fa.masked(fa.masked(inside, {"w": True, "b": False}), True),
        fa.partition({"x": inside, "y": fa.set_to_zero()}, {"w": "x", "b": "y"}),
    ):
        updates, _ = tx.update(gradient(params), tx.init(params), params, grad_fn=gradient)
        torch.testing.assert_close(updates["w"], torch.tensor([-1.8, -2.4]))
        pairs = [(name, torch.nn.Parameter(x.clone())) for name, x in params.items()]
        optimizer = compat.Optimizer(pairs, tx)

        def closure(optimizer: Any = optimizer, pairs: Any = pairs) -> torch.Tensor:
            optimizer.zero_grad()
            value = loss(dict(pairs))
            value.backward()
            return value

        optimizer.step(closure)
        torch.testing.assert_close(pairs[0][1].detach(), torch.tensor([1.2, 1.6]))


@pytest.mark.parametrize("adaptive", [False, True])
def test_zero_gradients_do_not_perturb_and_have_a_derivative(adaptive: bool) -> None:
    tx = fa.sam(fa.identity(), 0.5, adaptive)
    p = torch.randn(3, dtype=torch.float64)
    g = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    seen = []

    def square(q: torch.Tensor) -> torch.Tensor:
        seen.append(q)
        return 2 * q

    new, _ = tx.update(g, fa.EmptyState(), p, grad_fn=square)
    assert torch.equal(seen[0], p)
    assert torch.equal(new, 2 * p)
    assert torch.equal(torch.autograd.grad(new.sum(), g)[0], torch.zeros(3).double())


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_norms_neither_overflow_nor_vanish(size: float) -> None:
    seen = []
    g = size * torch.tensor([3.0, 4.0], dtype=torch.float64)
    fa.sam(fa.identity(), 1.0).update(
        g, fa.EmptyState(), torch.zeros(2).double(), grad_fn=lambda q: seen.append(q) or q
    )
    torch.testing.assert_close(seen[0], torch.tensor([0.6, 0.8]).double())


def test_missing_gradients_stay_missing() -> None:
    tx = fa.sam(fa.adamax(0.1, weight_decay=0.1), 0.1)
    tree = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2), "n": torch.tensor(3)}
    tree["none"] = None
    seen = []

    def elsewhere(q: Any) -> Any:
        seen.append(q)
        return {"a": q["a"], "b": q["b"], "c": None, "n": None, "none": None}

    grads = {"a": torch.ones(2), "b": None, "c": torch.ones(2), "n": None, "none": None}
    state = tx.init(tree)
    before = clone((grads, state, tree))
    updates, new = tx.update(grads, state, tree, grad_fn=elsewhere)
    assert_equal((grads, state, tree), before)
    assert seen[0]["b"] is tree["b"]
    assert seen[0]["n"] is tree["n"]
    assert seen[0]["none"] is None
    torch.testing.assert_close(seen[0]["a"], torch.full((2,), 1.05))
    assert updates["b"] is updates["c"] is updates["n"] is updates["none"] is None
    assert new.step["b"] == new.step["c"] == 0
    assert new.step["a"] == 1


@pytest.mark.parametrize("adaptive", [False, True])
def test_complex_leaves_go_by_components(adaptive: bool) -> None:
    rho = torch.rand(3, dtype=torch.float64)
    one, two = fa.sam(fa.sgd(0.1), rho, adaptive), fa.sam(fa.sgd(0.1), rho.unsqueeze(-1), adaptive)
    p, g = torch.randn(3, dtype=torch.complex128), torch.randn(3, dtype=torch.complex128)
    x, _ = one.update(g, one.init(p), p, grad_fn=torch.clone)
    q = torch.view_as_real(p)
    y, _ = two.update(torch.view_as_real(g), two.init(q), q, grad_fn=torch.clone)
    torch.testing.assert_close(torch.view_as_real(x), y, rtol=1e-13, atol=1e-13)


def test_an_ensemble_of_radii() -> None:
    def once(rho: torch.Tensor, tree: Any) -> Any:
        tx = fa.sam(fa.sgd(0.1), rho)
        return fa.step(tx, grad(loss)(tree), tx.init(tree), tree, grad_fn=grad(loss))[0]

    tree, rhos = start(), torch.tensor([0.0, 0.1, 0.5], dtype=torch.float64)
    got = vmap(once, in_dims=(0, None))(rhos, tree)
    for i, rho in enumerate(rhos):
        want = once(rho, tree)
        torch.testing.assert_close({k: x[i] for k, x in got.items()}, want, rtol=1e-12, atol=1e-13)
    plain = fa.sgd(0.1)
    alone = fa.step(plain, grad(loss)(tree), plain.init(tree), tree)[0]
    torch.testing.assert_close(once(rhos[0], tree), alone, rtol=1e-14, atol=1e-15)


def test_differentiated_through_with_its_second_pass() -> None:
    def last(rho: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        tx, tree = fa.sam(fa.sgd(0.1), rho), {"w": w, "b": w.sum()}
        state = tx.init(tree)
        for _ in range(2):
            tree, state = fa.step(tx, grad(loss)(tree), state, tree, grad_fn=grad(loss))
        return loss(tree)

    rho = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(last, (rho, w))


def test_it_reaches_a_link_of_a_chain() -> None:
    tree = start()
    tx = fa.chain(fa.clip(1.0), fa.sam(fa.sgd(0.1), 0.1))
    new, _ = fa.step(tx, grad(loss)(tree), tx.init(tree), tree, grad_fn=grad(loss))
    assert not torch.equal(new["w"], tree["w"])


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"rho must be in \[0, inf\), got -1"):
        fa.sam(fa.sgd(0.1), -1.0)
    with pytest.raises(TypeError, match=r"inner must be a pair \(init, update\) of functions"):
        fa.sam(fa.sgd)  # type: ignore[arg-type]
    tx, tree = fa.sam(fa.scale(-0.1)), {"w": torch.ones(2)}
    state = tx.init(tree)
    with pytest.raises(TypeError, match=r"grad_fn must be a function.*got None: call update\(gr"):
        tx.update(tree, state, tree)
    with pytest.raises(TypeError, match=r"closure to the step of a compat.Optimizer"):
        fa.step(fa.chain(tx), tree, (state,), tree)
    with pytest.raises(ValueError, match=r"params must be given to sam, got None: call"):
        tx.update(tree, state, grad_fn=torch.clone)
    with pytest.raises(ValueError, match=r"updates\['w'\] must have the shape.*\(3,\)"):
        tx.update({"w": torch.ones(3)}, state, tree, grad_fn=lambda q: q)
    with pytest.raises(ValueError, match=r"grad_fn\(params\)\['w'\] must have the shape.*\(3,\)"):
        tx.update(tree, state, tree, grad_fn=lambda q: {"w": torch.ones(3)})
    with pytest.raises(ValueError, match=r"grad_fn\(params\) must have the structure of params"):
        tx.update(tree, state, tree, grad_fn=lambda q: {})
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert repr(tx) == "sam(inner=scale(factor=-0.1), rho=0.05, adaptive=False)"
