"""``differentiable=True``: several steps, state included, through tensors that are no leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax.compat import Adamax, Optimizer

D = torch.float64


def unroll(p0: Any, steps: int, cls: Any = Adamax, **options: Any) -> tuple[Any, Any]:
    """The parameter and its moments after a few steps on f(p) = sum(p^3), from p0."""
    p = p0.clone()
    optimizer = cls([p], differentiable=True, **options)
    for _ in range(steps):
        loss = (p.clone() ** 3).sum()
        (p.grad,) = torch.autograd.grad(loss, p, create_graph=True)
        optimizer.step()
    return p, optimizer.state[p]


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True}], ids=str)
def test_gradcheck_through_steps_and_state(steps: int, options: dict[str, Any]) -> None:
    p0 = torch.tensor([1.0, -2.0, 0.7], dtype=D, requires_grad=True)

    def function(p0: torch.Tensor) -> Any:
        p, state = unroll(p0, steps, lr=0.1, eps=1e-2, **options)
        return p, state["exp_avg"], state["exp_inf"]

    assert torch.autograd.gradcheck(function, [p0])
    assert torch.autograd.gradgradcheck(function, [p0])


def test_it_is_the_functional_derivative() -> None:
    p0 = torch.tensor([1.0, -2.0, 0.7], dtype=D, requires_grad=True)
    lr = torch.tensor(0.1, dtype=D, requires_grad=True)
    p, _ = unroll(p0, 3, lr=lr)
    got = torch.autograd.grad(p.sum(), [p0, lr])

    tx, q = fa.adamax(lr=lr), p0
    state = tx.init(q)
    for _ in range(3):
        (g,) = torch.autograd.grad((q**3).sum(), q, create_graph=True)
        q, state = fa.step(tx, g, state, q)
    want = torch.autograd.grad(q.sum(), [p0, lr])
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_torchs_own_class_fails_at_the_second_step() -> None:
    """The reason for the test above; when torch mends it, say so in the docs."""
    p0 = torch.tensor([1.0, -2.0, 0.7], dtype=D, requires_grad=True)
    p, _ = unroll(p0, 2, cls=torch.optim.Adamax, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(p.sum(), p0)


def test_leaves_that_require_grad_are_refused_with_the_way_out() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Adamax([p], differentiable=True)
    with pytest.raises(RuntimeError, match=r"leaf Variable.*functional_adamax\.adamax.*step\(tx"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(2))
    assert len(optimizer.state) == 0


def test_values_are_those_of_an_ordinary_run() -> None:
    p0 = torch.tensor([1.0, -2.0, 0.7], dtype=D, requires_grad=True)
    p, state = unroll(p0, 4, lr=0.1)
    q = torch.nn.Parameter(p0.detach().clone())
    optimizer = torch.optim.Adamax([q], lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        (q**3).sum().backward()
        optimizer.step()
    assert torch.equal(p, q)
    for name, value in optimizer.state[q].items():
        assert torch.equal(state[name].to(value.dtype), value)


def test_a_differentiable_step_is_recorded_whoever_requires_grad() -> None:
    lr = torch.tensor(0.1, requires_grad=True)
    a = torch.ones(3)
    optimizer = Adamax([a], lr=lr, differentiable=True)
    for _ in range(2):
        a.grad = torch.ones(3)
        optimizer.step()
    assert torch.autograd.grad(a.sum(), lr)[0].item() == pytest.approx(-6.0)

    def factory(lr: float = 0.1, differentiable: bool = True) -> Any:
        del differentiable
        return fa.adamax(lr)

    scale = torch.tensor(1.0, requires_grad=True)
    b = torch.ones(3)
    other = Optimizer([b], factory, lr=0.1, differentiable=True)
    for grad in (torch.ones(3), torch.rand(3) * scale):
        b.grad = None
        b.grad = grad
        other.step()
    assert b.requires_grad
