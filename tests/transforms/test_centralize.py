"""Gradient centralization, against NumPy."""

from __future__ import annotations

import pytest
import torch
from trees import assert_equal, grads_like, leaves, params, with_gaps

import functional_adamax as fa


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (3, 1), (3, 4, 2), (3, 4, 2, 2), (3, 0), (0, 3)])
def test_units_of_matrices_are_centred(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g = torch.randn(shape, dtype=dtype)
    got, _ = fa.centralize().update(g, fa.EmptyState())
    assert got.shape == g.shape
    if g.numel():
        axes = tuple(range(1, g.dim()))
        want = g.numpy() - g.numpy().mean(axes, keepdims=True)
        torch.testing.assert_close(got, torch.from_numpy(want), rtol=1e-14, atol=1e-14)


def test_vectors_and_scalars_pass() -> None:
    tree = [torch.randn(3), torch.randn(()), None]
    assert_equal(fa.centralize().update(tree, fa.EmptyState())[0], tree)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_averaged_in_float32(dtype: torch.dtype) -> None:
    g = torch.full((2, 3000), 256.0, dtype=dtype)  # their sum is no half
    got, _ = fa.centralize().update(g, fa.EmptyState())
    assert torch.equal(got, torch.zeros_like(g))


def test_gaps_stay() -> None:
    tree = with_gaps(params())
    updates = grads_like(tree)
    updates["inner"]["w"] = None
    got, _ = fa.centralize().update(updates, fa.EmptyState())
    assert [x is None for x in leaves(got)] == [x is None for x in leaves(updates)]


def test_errors_name_the_leaf() -> None:
    with pytest.raises(RuntimeError, match=r"updates\['w'\]: centralize does not support sparse"):
        fa.centralize().update({"w": torch.ones(2, 2).to_sparse()}, fa.EmptyState())
