"""The sign of updates: special values, complex leaves, and in front of a method."""

from __future__ import annotations

import pytest
import torch
from trees import assert_equal
from twins_methods import run

import functional_adamax as fa

NAN = float("nan")


def test_the_sign_of_each_element() -> None:
    tx = fa.scale_by_sign()
    tree = {"a": torch.tensor([-2.0, 0.0, 1e-30, NAN]), "b": None}
    updates, state = tx.update(tree, tx.init(tree))
    assert updates["a"][:3].tolist() == [-1.0, 0.0, 1.0]
    assert updates["a"][3].isnan()
    assert updates["b"] is None
    assert state == fa.EmptyState()
    z = torch.complex(torch.tensor([-2.0, 0.0]), torch.tensor([3.0, -4.0]))
    assert tx.update(z, state)[0].tolist() == [-1 + 1j, -1j]


def test_sign_adamax_does_not_know_the_scale_of_the_gradient() -> None:
    p, grads = torch.randn(9), [torch.randn(9) for _ in range(4)]
    tx = fa.chain(fa.scale_by_sign(), fa.scale_by_adamax(), fa.scale_by_learning_rate(0.1))
    assert_equal(run(tx, p, grads), run(tx, p, [1e3 * g for g in grads]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_sign_keeps_dtype_and_shape(dtype: torch.dtype) -> None:
    tx = fa.scale_by_sign()
    for shape in ((), (0, 2), (3, 1)):
        updates = tx.update(torch.full(shape, -2.0, dtype=dtype), fa.EmptyState())[0]
        assert_equal(updates, torch.full(shape, -1.0, dtype=dtype))


def test_its_derivative_is_zero() -> None:
    tx, g = fa.scale_by_sign(), torch.tensor([-2.0, 0.0, 5e-324], dtype=torch.float64)
    slope = torch.func.grad(lambda g: tx.update(g, fa.EmptyState())[0].sum())(g)
    assert_equal(slope, torch.zeros(3, dtype=torch.float64))
