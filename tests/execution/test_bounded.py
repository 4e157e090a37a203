"""``derivative_floor``: the values of Adamax, and derivatives that stay in bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import jacfwd, jacrev
from trees import assert_equal

import functional_adamax as fa

D = torch.float64
LR, FLOOR = 0.1, 1e-3
R = (1 - 0.9) / (1 - 0.9 / 0.999)
BOUND = (1 + R) * LR / FLOOR
TINY = [0.0, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, -1e-12, -1e-9, -1e-6]


def updates(grads: torch.Tensor, **options: Any) -> torch.Tensor:
    """The updates of all steps, from one row of gradients for each."""
    tx = fa.adamax(LR, **options)
    state, results = tx.init(torch.zeros_like(grads[0])), []
    for g in grads:
        update, state = tx.update(g, state)
        results.append(update)
    return torch.stack(results)


@pytest.mark.parametrize("dtype", [torch.float32, D, torch.bfloat16, torch.complex64], ids=str)
def test_values_keep_their_bits(dtype: torch.dtype) -> None:
    grads = torch.randn(20, 50, dtype=dtype) * 1e-3
    grads[:, ::3] = 0
    assert_equal(updates(grads, derivative_floor=FLOOR), updates(grads))


@pytest.mark.parametrize("case", ["constant", "random", "late", "spike", "alternating"])
@pytest.mark.parametrize("jacobian", [jacrev, jacfwd], ids=["reverse", "forward"])
def test_every_derivative_by_every_gradient_is_bounded(case: str, jacobian: Any) -> None:
    """Through 20 steps, at zero and near zero; without the floor it is ten thousand times more."""
    grads = torch.tensor(TINY, dtype=D).repeat(20, 1)
    if case == "random":
        grads = grads * torch.randn_like(grads)
    elif case == "late":
        grads[:10] = 0
    elif case == "spike":
        grads[5] = 1.0
    elif case == "alternating":
        grads[::2] *= -1

    def total(grads: torch.Tensor, **options: Any) -> torch.Tensor:
        return updates(grads, **options).sum(1)  # the columns do not mix

    bounded = jacobian(lambda g: total(g, derivative_floor=FLOOR))(grads)
    assert bounded.shape == (20, 20, len(TINY))
    assert bounded.isfinite().all()
    assert bounded.abs().max() <= BOUND
    if case != "spike":
        assert jacobian(total)(grads).abs().max() > 1e4 * BOUND / 2.1


def test_above_the_floor_the_derivative_is_exact() -> None:
    grads = torch.randn(5, 6, dtype=D).sign() * torch.rand(5, 6, dtype=D).add(0.1)
    grads.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda g: updates(g, derivative_floor=FLOOR), grads, check_forward_ad=True
    )
    assert torch.autograd.gradgradcheck(lambda g: updates(g, derivative_floor=FLOOR), grads)
    exact, bounded = (
        jacrev(lambda g: updates(g, **options))(grads.detach())  # noqa: B023
        for options in ({}, {"derivative_floor": FLOOR})
    )
    torch.testing.assert_close(bounded, exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-6, 1e-3, 1.0])
def test_the_derivative_by_the_learning_rate_is_exact(size: float) -> None:
    grads = torch.full((5, 3), size, dtype=D)
    lr = torch.tensor(LR, dtype=D)

    def last(lr: torch.Tensor, floor: float | None) -> torch.Tensor:
        tx = fa.adamax(lr, derivative_floor=floor)
        state = tx.init(grads[0])
        for g in grads:
            update, state = tx.update(g, state)
        return update.sum()

    for derivative in (jacrev, jacfwd):
        torch.testing.assert_close(derivative(last)(lr, FLOOR), derivative(last)(lr, None))


def test_meta_gradients_at_zero_gradients_stay_in_bounds() -> None:
    """A loss that does not see one coordinate: its inner gradient is zero at each step."""
    for steps in (1, 3, 20):
        slopes = []
        for floor in (None, FLOOR):
            p0 = torch.tensor([1.0, 1.0], dtype=D, requires_grad=True)

            def loss(p: torch.Tensor, batch: Any) -> torch.Tensor:
                return p[0] ** 2 + 0.5 * (p[1] - 1.0) ** 2

            tx = fa.adamax(LR, derivative_floor=floor)
            end = fa.unroll(loss, tx, p0, range(steps))
            slopes.append(torch.autograd.grad(end.params.sum(), p0)[0])
        assert slopes[0][1].abs() >= 1e6 * min(1.0, 1 / LR)
        assert slopes[1].isfinite().all()
        assert slopes[1][1].abs() <= (1 + BOUND * steps) ** steps
        assert slopes[0][0] == pytest.approx(slopes[1][0].item(), rel=1e-9)
    assert slopes[1][1].abs() < slopes[0][1].abs()


def test_bad_floors() -> None:
    for floor in (0.0, -1.0, float("inf"), "1e-3"):
        with pytest.raises(
            ValueError, match=r"derivative_floor must be None or a number in \(0, inf"
        ):
            fa.adamax(derivative_floor=floor)
