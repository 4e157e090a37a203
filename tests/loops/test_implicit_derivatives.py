"""Derivatives of a solution: of second order and higher, of any cotangent, and where they end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inner_loops import D
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import functional_adamax as fa


def test_second_derivatives() -> None:
    def solution(x: torch.Tensor) -> torch.Tensor:
        def loss(p: torch.Tensor, _: Any) -> torch.Tensor:
            return (p - x**2).cosh() + 0.1 * p**2

        return fa.implicit(loss, fa.sgd(0.3), torch.zeros((), dtype=D), [0] * 400).params

    x, h = torch.tensor(0.8, dtype=D, requires_grad=True), 1e-4
    (slope,) = torch.autograd.grad(solution(x), x, create_graph=True)
    wanted = (solution(x + h) - 2 * solution(x) + solution(x - h)) / h**2
    found = [
        torch.autograd.grad(slope, x)[0],
        grad(grad(solution))(x.detach()),
        jacrev(jacrev(solution))(x.detach()),
        vmap(grad(grad(solution)))(x.detach().expand(2))[1],
    ]
    for second in found:
        torch.testing.assert_close(second, wanted.detach(), rtol=1e-6, atol=0.0)


def test_higher_derivatives_where_the_solver_needs_fewer_steps_than_there_are_unknowns() -> None:
    """As with equal eigenvalues: p = w y / (w + 1/2), with w of ones."""
    y, w = torch.tensor([1.0, 2.0, 3.0], dtype=D), torch.ones(3, dtype=D)

    def solution(w: torch.Tensor) -> torch.Tensor:
        def loss(p: torch.Tensor, _: Any) -> torch.Tensor:
            return (w * (p - y) ** 2).sum() / 2 + (p**2).sum() / 4

        start = torch.zeros(3, dtype=D)
        return fa.implicit(loss, fa.sgd(0.3), start, [None] * 200).params.sum()

    def exact(w: torch.Tensor) -> torch.Tensor:
        return (w * y / (w + 0.5)).sum()

    second, third = jacrev(jacrev(exact))(w), jacrev(jacrev(jacrev(exact)))(w)
    torch.testing.assert_close(jacrev(jacrev(solution))(w), second)
    torch.testing.assert_close(vmap(jacrev(jacrev(solution)))(w.expand(2, 3))[1], second)
    torch.testing.assert_close(jacrev(jacrev(jacrev(solution)))(w), third)
    recorded = w.clone().requires_grad_()
    slope = solution(recorded)
    for wanted in (second.sum(0), third.sum((0, 1))):
        slope = torch.autograd.grad(slope.sum(), recorded, create_graph=True)[0]
        again = torch.autograd.grad(slope.sum(), recorded, create_graph=True)[0]
        torch.testing.assert_close(again, wanted)


def test_the_damped_system_is_the_one_that_is_differentiated_again() -> None:
    def slope(w: torch.Tensor) -> torch.Tensor:
        def loss(p: torch.Tensor, _: Any) -> torch.Tensor:
            return (w.exp() * p**2).sum() / 2 - p.sum()

        start = torch.zeros(2, dtype=D)
        end = fa.implicit(loss, fa.sgd(0.3), start, [None] * 200, damping=0.5)
        return grad_of(end.params.sum(), w)

    def grad_of(value: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, w, create_graph=True)[0]

    w = torch.tensor([0.0, 0.5], dtype=D, requires_grad=True)
    factor = w.exp()
    torch.testing.assert_close(slope(w), -1 / (factor + 0.5))  # -(H + damping)^-1 exp(w) p
    got = grad_of(slope(w).sum(), w)
    p = torch.exp(-w)  # whose own derivative is damped, too
    by_w, by_p = factor / (factor + 0.5) ** 2 * factor * p, -factor / (factor + 0.5)
    wanted = by_w - factor * p / (factor + 0.5) + by_p * -1 / (factor + 0.5)
    torch.testing.assert_close(got, wanted)


def test_complex_parameters_and_batched_cotangents() -> None:
    target = torch.tensor([1 + 1j, 2.0], dtype=torch.complex128, requires_grad=True)

    def solution(target: torch.Tensor) -> torch.Tensor:
        def loss(p: torch.Tensor, _: Any) -> torch.Tensor:
            return ((p - target) * (p - target).conj()).real.sum()

        return fa.implicit(loss, fa.sgd(0.3), torch.zeros_like(target).detach(), [0] * 100).params

    weights = torch.tensor([3 + 4j, 1j], dtype=torch.complex128)
    (found,) = torch.autograd.grad((solution(target) * weights.conj()).real.sum(), target)
    torch.testing.assert_close(found, weights)
    start = torch.ones(2, dtype=D)
    jacobian = torch.autograd.functional.jacobian(solution, start, vectorize=True)
    torch.testing.assert_close(jacobian, torch.eye(2, dtype=D))
    cubes = torch.autograd.functional.hessian(
        lambda x: (solution(x) ** 3).sum(), start, vectorize=True
    )
    torch.testing.assert_close(cubes, 6 * torch.eye(2, dtype=D))


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float16, 1000.0),
        (torch.float16, 1e-5),
        (torch.bfloat16, 1e20),
        (torch.float32, 1e20),
        (torch.float32, 1e-23),
    ],
)
def test_cotangents_of_any_size(dtype: torch.dtype, size: float) -> None:
    target = torch.ones(2, dtype=dtype, requires_grad=True)
    weights = torch.tensor([1.0, 1 / 64], dtype=dtype)

    def loss(p: torch.Tensor, _: Any) -> torch.Tensor:
        return (weights * (p - target) ** 2).sum()

    end = fa.implicit(loss, fa.sgd(0.25), torch.ones(2, dtype=dtype), [0])
    (found,) = torch.autograd.grad((end.params * size).sum(), target, retain_graph=True)
    wanted = torch.tensor(size, dtype=dtype).expand(2)
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0)
    (found,) = torch.autograd.grad((end.params * torch.inf).sum(), target)
    assert found.isnan().all()


def test_nan_in_the_outer_loss_is_nan_in_its_derivative() -> None:
    def outer(target: torch.Tensor) -> torch.Tensor:
        def loss(p: torch.Tensor, _: Any) -> torch.Tensor:
            return ((p - target) ** 2).sum()

        end = fa.implicit(loss, fa.sgd(0.25), torch.zeros(2, dtype=D), range(60))
        return (end.params * torch.tensor([torch.nan, 1.0], dtype=D)).sum()

    target = torch.tensor(1.0, dtype=D, requires_grad=True)
    assert torch.autograd.grad(outer(target), target)[0].isnan()
    assert grad(outer)(target.detach()).isnan()


def test_forward_mode_is_refused() -> None:
    target = torch.ones(2, dtype=D)

    def solution(target: torch.Tensor) -> torch.Tensor:
        def loss(p: torch.Tensor, _: Any) -> torch.Tensor:
            return ((p - target) ** 2).sum()

        return fa.implicit(loss, fa.sgd(0.3), torch.zeros(2, dtype=D), range(100)).params

    torch.testing.assert_close(jacrev(solution)(target), torch.eye(2, dtype=D))
    for take in (jacfwd(solution), hessian(lambda x: solution(x).sum())):
        with pytest.raises(NotImplementedError, match="implicit has derivatives in reverse mode"):
            take(target)
