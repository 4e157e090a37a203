"""Gradient accumulation under derivatives, vmap and a compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import vmap
from trees import (
    assert_close,
    assert_equal,
    grads_like,
    member,
    params,
    stack,
)

import functional_adamax as fa

INF, NAN = float("inf"), float("nan")


def growing(step: torch.Tensor) -> torch.Tensor:
    return 1 + step


def root(g: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    """A stage whose derivative is infinite at zero."""
    return g / (g * g).sqrt(), state


ROOT = fa.GradientTransformation(fa.identity().init, root)


@pytest.mark.parametrize("inner", [fa.adamax(0.1, eps=0.0), ROOT], ids=["adamax", "root"])
@pytest.mark.parametrize("bad", [INF, NAN])
def test_what_is_discarded_reaches_no_derivative(inner: Any, bad: float) -> None:
    """A bad mini-step is skipped, and sums that vanish before the step is due harm nothing."""
    tx = fa.multi_steps(inner, 3, skip=fa.skip_not_finite)
    p = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def unrolled(p: Any, extra: list[float]) -> Any:
        q, state = p, tx.init(p)
        for x in extra:
            updates, state = tx.update(q * q + x, state, q)
            q = q + 0.1 * updates
        return q

    value = unrolled(p, [0.0, 0.0, bad, 0.0, 0.0, bad])
    (derivative,) = torch.autograd.grad(value.square().sum(), p, create_graph=True)
    assert derivative.isfinite().all()
    assert torch.autograd.grad(derivative.sum(), p)[0].isfinite().all()
    want = unrolled(p, [0.0, 0.0, 0.0, 0.0])
    assert torch.equal(value, want)
    assert torch.equal(derivative, torch.autograd.grad(want.square().sum(), p)[0])


def test_members_go_at_their_own_pace() -> None:
    def once(k: Any, grads: Any, state: Any, tree: Any) -> Any:
        return fa.multi_steps(fa.adamax(0.1), lambda step: k).update(grads, state, tree)

    trees, periods = [params() for _ in range(3)], torch.tensor([1, 2, 3])
    tree = stack(trees)
    start = fa.multi_steps(fa.adamax(0.1), 1)
    states, state = [start.init(t) for t in trees], vmap(start.init)(tree)
    for _ in range(4):
        grads = [grads_like(trees[0]) for _ in trees]
        got, state = vmap(once)(periods, stack(grads), state, tree)
        for i in range(3):
            want, states[i] = once(periods[i], grads[i], states[i], trees[i])
            assert_close((member(got, i), member(state, i)), (want, states[i]))
    assert state.gradient_step.tolist() == [4, 2, 1]


@pytest.mark.parametrize("every_k", [3, growing], ids=["3", "growing"])
def test_compiled_is_eager_bit_for_bit(every_k: Any) -> None:
    """With an inner transform that is so; a compiled quotient of Adamax may differ by an ulp."""
    torch._dynamo.reset()
    inner = fa.chain(fa.clip(0.5), fa.scale(-0.125))
    tx = fa.multi_steps(inner, every_k, False, skip=fa.skip_not_finite)
    compiled = torch.compile(tx.update, fullgraph=True)
    tree = {"w": torch.randn(4, 3), "b": torch.randn(())}
    state = compiled_state = tx.init(tree)
    for i in range(9):
        grads = grads_like(tree)
        if i == 4:
            grads["w"][0, 0] = NAN
        want, state = tx.update(grads, state, tree)
        got, compiled_state = compiled(grads, compiled_state, tree)
        assert_equal((got, compiled_state), (want, state))


@pytest.mark.parametrize("wrapper", ["multi_steps", "apply_if_finite", "conditionally"])
def test_what_is_computed_in_vain_reaches_no_derivative(wrapper: str) -> None:
    """Where it would have none, or an infinite one: 0 / 0, or the root of 0."""
    inner = fa.adam(0.1, eps=0.0)
    tx, first = {
        "multi_steps": (fa.multi_steps(inner, 2), lambda x: x),
        "apply_if_finite": (
            fa.apply_if_finite(inner, 3),
            lambda x: torch.where(x > 0, torch.inf, x),
        ),
        "conditionally": (fa.conditionally(inner, lambda count: count > 0, "zero"), lambda x: x),
    }[wrapper]

    def total(x: torch.Tensor) -> torch.Tensor:
        params = torch.zeros(2)
        one, state = tx.update(first(x), tx.init(params), params)
        two, state = tx.update(x + 1, state, params)
        return (one + two).sum()

    x = torch.tensor([0.0, 2.0])
    assert total(x) == pytest.approx(-0.2)
    torch.testing.assert_close(torch.func.grad(total)(x), torch.zeros(2), rtol=0, atol=1e-6)
