"""Derivatives of unrolled loops: by differences, in every mode, with parts of the graph cut."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from inner_loops import CHECKPOINTS, D, parabola
from recipes import RECIPES, Recipe
from torch.func import grad, jvp

import functional_adamax as fa


def inner(recipe: Recipe, names: list[str], **options: Any) -> Callable[..., Any]:
    """The loss after a loop, as a function of params, of data, and of hyperparameters."""

    def function(w: Any, b: Any, x: Any, anchor: Any, *hyper: Any) -> Any:
        tx = recipe.make(**dict(zip(names, hyper, strict=True)))

        def loss(tree: Any, batch: Any) -> torch.Tensor:
            wave = (tree["w"] @ batch + tree["b"]).sin().square().sum()
            return wave + 0.1 * (tree["w"] - anchor).square().sum()

        end = fa.unroll(loss, tx, {"w": w, "b": b, "none": None}, x.unbind(), **options)
        return end.params["w"].square().sum() + end.values.sum()

    return function


def arguments(recipe: Recipe, names: list[str], steps: int = 3) -> list[torch.Tensor]:
    shapes = [(2, 2), (), (steps, 2), (2, 2)]
    inputs = [torch.randn(shape, dtype=D) for shape in shapes]
    return inputs + [recipe.tensors()[name] for name in names]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"checkpoint": 2}], ids=["plain", "checkpoint"])
def test_gradcheck_and_gradgradcheck(recipe: Recipe, options: dict[str, Any]) -> None:
    names = sorted(recipe.hyper)
    inputs = [x.requires_grad_() for x in arguments(recipe, names)]
    function = inner(recipe, names, **options)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_gradcheck_with_no_momentum_and_with_gaps() -> None:
    """beta1 = 0, and a leaf whose gradient is None at one step, in the bare loop."""

    def function(p: Any, q: Any, lr: Any, b1: Any, b2: Any, eps: Any, decay: Any) -> Any:
        tx = fa.adamax(lr, (b1, b2), eps, decay)
        tree = {"p": p, "q": q}
        state = tx.init(tree)
        for i in range(3):
            grads = {"p": tree["p"].sin(), "q": None if i == 1 else tree["q"] * tree["p"].sum()}
            tree, state = fa.step(tx, grads, state, tree)
        return tree["p"], tree["q"]

    for b1 in (0.0, 0.9):
        values = (0.1, b1, 0.99, 1e-2, 0.1)
        inputs = [torch.randn(3, dtype=D), torch.randn((), dtype=D)]
        inputs += [torch.tensor(x, dtype=D) for x in values]
        inputs = [x.requires_grad_() for x in inputs]
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("shape", [(), (1,), (3,)], ids=["scalar", "one", "per element"])
@CHECKPOINTS
def test_learned_rates_of_every_shape(shape: Any, checkpoint: Any) -> None:
    p = torch.randn(3, dtype=D, requires_grad=True)
    lr = torch.rand(shape, dtype=D).add(0.01).requires_grad_()
    per_leaf = {"a": torch.rand((), dtype=D).requires_grad_(), "b": lr}

    def single(p: Any, lr: Any) -> Any:
        return fa.unroll(
            parabola, fa.adamax(lr, eps=0.1), p, range(4), checkpoint=checkpoint
        ).params

    def tree(p: Any, a: Any, b: Any) -> Any:
        def loss(tree: Any, batch: Any) -> Any:
            return parabola(tree["a"], batch) * parabola(tree["b"], batch)

        tx = fa.adamax({"a": a, "b": b}, eps=0.1)
        end = fa.unroll(loss, tx, {"a": p, "b": 2 * p}, range(3), checkpoint=checkpoint)
        return end.params["a"], end.params["b"]

    assert torch.autograd.gradcheck(single, (p, lr))
    assert torch.autograd.gradcheck(tree, (p, per_leaf["a"], per_leaf["b"]))


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("checkpoint", [False, 2])
def test_every_way_to_differentiate_agrees(recipe: Recipe, checkpoint: Any) -> None:
    names = sorted(recipe.hyper)
    inputs = arguments(recipe, names)
    function = inner(recipe, names, checkpoint=checkpoint)
    numbers = tuple(range(len(inputs)))
    by_func = grad(function, numbers)(*inputs)
    by_autograd = torch.autograd.grad(
        function(*(x.requires_grad_() for x in inputs)), inputs, allow_unused=True
    )
    inputs = [x.detach() for x in inputs]
    for x, y, z in zip(by_func, by_autograd, inputs, strict=True):
        torch.testing.assert_close(x, torch.zeros_like(z) if y is None else y)
    tangents = tuple(torch.randn_like(x) for x in inputs)
    _, forward = jvp(function, tuple(inputs), tangents)
    reverse = sum((g * t).sum() for g, t in zip(by_func, tangents, strict=True))
    torch.testing.assert_close(forward, reverse)


def test_truncation_is_a_detached_state_every_so_often() -> None:
    p0 = torch.randn(3, dtype=D, requires_grad=True)
    lr = torch.tensor(0.1, dtype=D, requires_grad=True)
    tx = fa.adamax(lr, eps=0.1)
    for checkpoint in (False, True):
        end = fa.unroll(parabola, tx, p0, range(7), truncate=3, checkpoint=checkpoint)
        middle = fa.unroll(parabola, tx, p0, range(6))
        start, state = fa.detach((middle.params, middle.state))
        want = fa.unroll(parabola, tx, start, range(1), state=state)
        assert torch.equal(end.params, want.params)
        assert torch.equal(*(torch.autograd.grad(e.params.sum(), lr)[0] for e in (end, want)))
        assert torch.autograd.grad(end.params.sum(), p0, allow_unused=True) == (None,)
        by_value = torch.autograd.grad(end.values[:3].sum(), p0)[0]
        short = fa.unroll(parabola, tx, p0, range(3))
        assert torch.equal(by_value, torch.autograd.grad(short.values.sum(), p0)[0])


def test_early_steps_without_a_graph() -> None:
    p0 = torch.randn(3, dtype=D, requires_grad=True)
    lr = torch.tensor(0.1, dtype=D, requires_grad=True)
    tx = fa.adamax(lr, eps=0.1)
    end = fa.unroll(parabola, tx, p0, range(5), detach_first=3)
    early = fa.unroll(parabola, tx, p0, range(3))
    start, state = fa.detach((early.params, early.state))
    want = fa.unroll(parabola, tx, start, range(2), state=state)
    assert torch.equal(end.params, want.params)
    slope = torch.autograd.grad(end.params.sum(), lr)[0]
    assert torch.equal(slope, torch.autograd.grad(want.params.sum(), lr)[0])
    assert end.values.requires_grad
    assert early.values.requires_grad
    assert torch.equal(end.values[:3], early.values)
    whole = fa.unroll(parabola, tx, p0, range(5), detach_first=9)
    assert not whole.params.requires_grad
    by_func = grad(
        lambda rate: fa.unroll(
            parabola, fa.adamax(rate, eps=0.1), p0.detach(), range(5), detach_first=3
        ).params.sum()
    )(lr.detach())
    torch.testing.assert_close(by_func, slope)


@CHECKPOINTS
@pytest.mark.parametrize("transformed", [False, True], ids=["autograd", "func"])
def test_first_order_gradients_reach_the_start_by_the_identity(
    checkpoint: Any, transformed: bool
) -> None:
    p0 = torch.randn(3, dtype=D)

    def outer(p: torch.Tensor) -> torch.Tensor:
        tx = fa.adamax(0.1)
        end = fa.unroll(parabola, tx, p, range(4), first_order=True, checkpoint=checkpoint)
        return (end.params * torch.arange(3.0, dtype=D)).sum()

    if transformed:
        got = grad(outer)(p0)
    else:
        (got,) = torch.autograd.grad(outer(p0.requires_grad_()), p0)
    assert torch.equal(got, torch.arange(3.0, dtype=D))


def test_a_hundred_steps_with_detach_keep_the_graph_constant() -> None:
    tx, p = fa.adamax(0.01), torch.randn(3, requires_grad=True)
    params, state = p * 1.0, tx.init(p)

    def nodes(x: torch.Tensor) -> int:
        seen, stack = set(), [x.grad_fn]
        while stack:
            node = stack.pop()
            if node is not None and node not in seen:
                seen.add(node)
                stack.extend(n for n, _ in node.next_functions)
        return len(seen)

    counts, sizes = set(), set()
    gc.freeze()  # what is there already need not be looked through
    for i in range(100):
        end = fa.unroll(parabola, tx, *fa.detach((params,)), range(2), state=fa.detach(state))
        params, state = end.params, end.state
        if i >= 5:
            gc.collect()
            sizes.add(sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()))
            counts.add(nodes(params.requires_grad_() * 1))
        del end
    gc.unfreeze()
    assert len(counts) == 1
    assert len(sizes) == 1


@pytest.mark.parametrize("transformed", [False, True], ids=["autograd", "func"])
def test_one_leaf_computed_from_another_gives_partial_gradients(transformed: bool) -> None:
    """Also where the loss closes over the very tensor it starts from."""
    w = torch.randn(3, dtype=D)

    def outer(w: torch.Tensor) -> torch.Tensor:
        def loss(tree: Any, batch: Any) -> torch.Tensor:
            return (tree["a"] * tree["b"]).sum() + (tree["a"] - w).square().sum()

        end = fa.unroll(loss, fa.adamax(0.1, eps=0.1), {"a": w, "b": 2 * w}, range(2))
        return (end.params["a"] * end.params["b"]).sum()

    if transformed:
        got = grad(outer)(w)
    else:
        (got,) = torch.autograd.grad(outer(w.requires_grad_()), w)
    w = w.detach()
    step = 1e-6
    for i in range(3):
        move = torch.zeros_like(w)
        move[i] = step
        slope = (outer(w + move) - outer(w - move)) / (2 * step)
        assert got[i].item() == pytest.approx(slope.item(), rel=1e-6)
