"""The norm of a tree: against NumPy, its derivatives, mixed dtypes, and of nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import hessian

import functional_adamax as fa
from functional_adamax._core import norms


def test_the_norm_has_the_derivative_zero_at_zero() -> None:
    tree = {"a": torch.zeros(3, dtype=torch.float64), "b": torch.zeros((), dtype=torch.complex128)}
    inputs = [x.requires_grad_() for x in tree.values()]
    (first, second) = torch.autograd.grad(fa.global_norm(tree), inputs)
    assert torch.equal(first, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(second, torch.zeros((), dtype=torch.complex128))


def test_a_zero_leaf_beside_others_has_its_curvature() -> None:
    """The root is taken once, of the sum: a root for each leaf would lose this."""
    others = torch.tensor([3.0, 4.0], dtype=torch.float64)
    zeros = torch.zeros(2, dtype=torch.float64)
    got = hessian(lambda x: fa.global_norm([x, others]))(zeros)
    torch.testing.assert_close(got, torch.eye(2, dtype=torch.float64) / 5)


def test_the_norm_is_twice_differentiable() -> None:
    inputs = [torch.randn(3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.complex128)]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: fa.global_norm(x), inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *x: fa.global_norm(x), inputs)


def test_norms_of_nothing_are_zero() -> None:
    for tree in ({}, None, [None], torch.zeros(0)):
        assert torch.equal(fa.global_norm(tree), torch.tensor(0.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_a_norm_is_the_product_of_its_unit_and_its_root(dtype: torch.dtype) -> None:
    leaves = [torch.randn(4, 3, dtype=dtype), torch.zeros(0), torch.randn((), dtype=dtype)]
    unit, root = norms.of_leaves(leaves)
    flat = np.concatenate([x.numpy().reshape(-1) for x in leaves])
    parts = np.concatenate([flat.real, flat.imag])
    assert unit.item() == abs(parts).max()
    np.testing.assert_allclose((unit * root).item(), np.linalg.norm(flat), rtol=1e-14)


@pytest.mark.parametrize("size", [5e-324, 1e-200, 1e308], ids=str)
def test_squares_neither_vanish_nor_overflow(size: float) -> None:
    unit, root = norms.of_leaves([torch.full((4,), size, dtype=torch.float64)])
    assert (unit, root) == (size, 2.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_norm_of_what_is_not_finite_is_not(bad: float) -> None:
    unit, root = norms.of_leaves([torch.tensor([1.0, bad])])
    assert unit.isfinite()
    assert not root.isfinite()


def test_a_norm_over_some_dimensions_keeps_them() -> None:
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    x[1] = 0
    for dims, axes in (((1, 2), (1, 2)), ((0,), 0)):
        unit, root = norms.over(x, dims)
        want = np.linalg.norm(x.numpy(), axis=axes, keepdims=True)
        np.testing.assert_allclose((unit * root).numpy(), want, rtol=1e-14)
    unit, root = norms.over(x, ())
    assert torch.equal(unit * root, x.abs())


def test_what_is_short_enough_keeps_its_bits() -> None:
    u = torch.randn(9)
    unit, root = norms.of_leaves([u])
    assert torch.equal(norms.shortened(u, unit, root, unit * root), u)
    cut = norms.shortened(u, unit, root, torch.tensor(0.5))
    torch.testing.assert_close(cut.norm(), torch.tensor(0.5))
    z = torch.tensor([3 + 4j, 0j])
    torch.testing.assert_close(
        norms.shortened(z, *norms.of_leaves([z]), 1.0), torch.tensor([0.6 + 0.8j, 0j])
    )
    half = u.half()
    assert norms.shortened(half, *norms.of_leaves([half]), 0.5).dtype == torch.float16
    nan = torch.tensor(torch.nan)
    assert norms.shortened(u, nan, nan, 1e9).isnan().all()
