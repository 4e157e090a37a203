"""Weight decay as a stage: the multiple of the parameters that is added to the updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from trees import DTYPES, assert_equal, grads_like, leaves, params, with_gaps

import functional_adamax as fa


def once(decay: Any, updates: Any, tree: Any) -> Any:
    tx = fa.add_decayed_weights(decay)
    return tx.update(updates, tx.init(tree), tree)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_it_is_the_sum_of_numpy(dtype: torch.dtype) -> None:
    tree = params(dtype)
    updates = grads_like(tree)
    got = once(0.25, updates, tree)
    for x, u, p in zip(leaves(got), leaves(updates), leaves(tree), strict=True):
        np.testing.assert_allclose(x.numpy(), u.numpy() + 0.25 * p.numpy(), rtol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_has_the_bits_of_torchs_coupled_decay(dtype: torch.dtype) -> None:
    p, g = torch.randn(2, 9, dtype=dtype)
    assert torch.equal(once(0.1, g, p), g.add(p, alpha=0.1))


def test_zero_and_special_values() -> None:
    p = torch.tensor([torch.nan, torch.inf, -0.0, 1e-45])
    got = once(1.0, torch.zeros(4), p)
    assert got[0].isnan()
    assert got[1:].tolist() == p[1:].tolist()
    assert once(0.0, torch.ones(2), torch.ones(2)).tolist() == [1.0, 1.0]


def test_missing_updates_stay_missing_and_other_leaves_have_none() -> None:
    tree = with_gaps(params())
    updates = grads_like(tree)
    updates["inner"]["w"] = None
    got = once(0.1, updates, tree)
    assert [x is None for x in leaves(got)] == [x is None for x in leaves(updates)]
    assert once(0.1, {}, {}) == {}


def test_a_decay_for_each_part() -> None:
    tree = {"w": torch.ones(2), "b": torch.ones(2)}
    got = once({"w": torch.tensor([0.5, 0.0]), "b": 2}, grads_like(tree) | {"b": None}, tree)
    assert got["b"] is None
    zeros = {name: torch.zeros(2) for name in tree}
    assert_equal(
        once({"w": torch.tensor([0.5, 0.0]), "b": 2}, zeros, tree),
        {"w": torch.tensor([0.5, 0.0]), "b": torch.tensor([2.0, 2.0])},
    )


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"weight_decay must be in \[0, inf\), got -1"):
        fa.add_decayed_weights(-1.0)
    with pytest.raises(ValueError, match="params must be given for weight decay, got None"):
        once(0.1, torch.ones(2), None)
    with pytest.raises(ValueError, match=r"updates\['w'\] must have the shape of its parameter"):
        once(0.1, {"w": torch.ones(3)}, {"w": torch.ones(2)})
    with pytest.raises(ValueError, match=r"updates must have the structure of params"):
        once(0.1, {"v": torch.ones(2)}, {"w": torch.ones(2)})
