"""Adaptive clipping: each unit in proportion to its weights, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from trees import leaves

import functional_adamax as fa


def once(tx: fa.GradientTransformation, updates: Any, tree: Any = None) -> Any:
    return tx.update(updates, tx.init(tree), tree)[0]


def as_numpy(tree: Any) -> list[np.ndarray]:
    return [x.numpy() for x in leaves(tree)]


def assert_near(got: Any, want: list[np.ndarray], rtol: float = 1e-14) -> None:
    for x, y in zip(leaves(got), want, strict=True):
        np.testing.assert_allclose(x.numpy(), y, rtol=rtol, atol=1e-300)


def unit_norms(x: np.ndarray) -> np.ndarray:
    whole = np.squeeze(x).ndim <= 1
    axes = tuple(range(x.ndim)) if whole else tuple(range(1, x.ndim))
    return np.sqrt((abs(x) ** 2).sum(axes, keepdims=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_adaptive_is_that_of_numpy(dtype: torch.dtype) -> None:
    shapes = [(), (4,), (4, 3), (1, 3), (3, 1), (4, 3, 2), (4, 3, 2, 2), (2, 3, 2, 2, 2)]
    tree = [torch.randn(s, dtype=dtype) * 0.5 for s in shapes]
    tree[2][0] = 0  # a unit of weights that are zero counts with eps
    updates = [torch.randn(s, dtype=dtype) for s in shapes]
    updates[2][1] *= 1e-6  # and this one is short enough
    want = []
    for g, p in zip(as_numpy(updates), as_numpy(tree), strict=True):
        norm, limit = unit_norms(g), 0.2 * np.maximum(unit_norms(p), 0.01)
        want.append(np.where(norm <= limit, g, g * limit / norm))
    got = once(fa.adaptive_grad_clip(0.2, eps=0.01), updates, tree)
    assert_near(got, want, rtol=1e-13)
    assert torch.equal(got[2][1], updates[2][1])


def test_a_unit_of_zero_weights_may_grow_by_eps() -> None:
    g = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-5, 4e-5]])
    got = once(fa.adaptive_grad_clip(0.1, eps=1e-2), g, torch.zeros(3, 2))
    assert_near(got, [np.array([[6e-4, 8e-4], [0, 0], [3e-5, 4e-5]], np.float32)], rtol=1e-6)
    assert torch.equal(got[1:], g[1:]), "what is short enough keeps its bits"


def test_what_is_not_finite_stays_in_its_unit() -> None:
    g = torch.tensor([[1.0, torch.inf], [1.0, torch.nan], [1.0, 1.0]])
    got = once(fa.adaptive_grad_clip(10.0), g, torch.ones(3, 2))
    assert got[0][0] == 0
    assert got[0][1].isnan()
    assert got[1].isnan().all()
    assert torch.equal(got[2], g[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_counted_in_float32(dtype: torch.dtype) -> None:
    g = torch.full((2, 300), 300.0, dtype=dtype)  # whose square is no number of a half
    got = once(fa.adaptive_grad_clip(0.5), g, torch.ones_like(g))
    assert_near(got.float(), [np.full((2, 300), 0.5, np.float32)], rtol=1e-2)
    assert got.dtype == dtype


def test_each_element_may_have_a_factor_of_its_own() -> None:
    g, p = torch.tensor([3.0, 4.0]), torch.tensor([0.6, 0.8])
    got = once(fa.adaptive_grad_clip(torch.tensor([1.0, 10.0])), g, p)
    torch.testing.assert_close(got, torch.tensor([0.6, 4.0]))
