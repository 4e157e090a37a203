"""The addition of updates: in the wider dtype, rounded once, and nothing is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trees import DTYPES, clone, grads_like, leaves, params, with_gaps

import functional_adamax as fa

WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sum_of_one_dtype_is_torchs(dtype: torch.dtype) -> None:
    tree = params(dtype)
    updates, before = grads_like(tree), clone(tree)
    new = fa.apply_updates(tree, updates)
    for x, p, u in zip(leaves(new), leaves(tree), leaves(updates), strict=True):
        assert x.dtype == dtype
        assert torch.equal(x, p + u)
    assert all(map(torch.equal, leaves(tree), leaves(before)))


@pytest.mark.parametrize("dtype", WIDER, ids=str)
def test_the_sum_of_two_dtypes_is_rounded_once(dtype: torch.dtype) -> None:
    p, u = torch.randn(99, dtype=dtype), torch.randn(99, dtype=WIDER[dtype])
    new = fa.apply_updates(p, u)
    assert new.dtype == dtype
    assert torch.equal(new, (p.to(u.dtype) + u).to(dtype))
    assert not torch.equal(new, p + u.to(dtype)), "which rounds the update, too"
    narrow = fa.apply_updates(u, p)
    assert torch.equal(narrow, u + p.to(u.dtype))


def test_special_values_stay_in_their_component() -> None:
    p = torch.tensor([1 + 1j, complex(torch.inf, 1), 0j])
    u = torch.tensor([complex(torch.nan, 1), -1 + 1j, complex(-0.0, 1e-45)])
    new = torch.view_as_real(fa.apply_updates(p, u))
    want = np.array([[np.nan, 2], [np.inf, 2], [0, 1e-45]], np.float32)
    np.testing.assert_array_equal(new.numpy(), want)


def test_what_has_no_update_is_the_same_tensor() -> None:
    tree = with_gaps(params())
    updates = grads_like(tree)
    updates["inner"]["w"] = None
    new = fa.apply_updates(tree, updates)
    assert new["inner"]["w"] is tree["inner"]["w"]
    assert new["count"] is tree["count"]
    assert new["none"] is None
    assert fa.apply_updates(None, None) is None


def test_what_does_not_fit_is_named() -> None:
    p = {"w": torch.ones(2)}
    for u, kind, words in (
        ({"w": torch.ones(3)}, ValueError, r"updates\['w'\] must have the shape"),
        ({"w": torch.ones(2) * 1j}, TypeError, r"updates\['w'\] must be a real floating tensor"),
        ({"w": torch.ones(2).to_sparse()}, RuntimeError, r"apply_updates does not support sparse"),
        (({"w": None}, ()), ValueError, r"updates must be a dict, .*update returns \(updates, st"),
    ):
        with pytest.raises(kind, match=words):
            fa.apply_updates(p, u)
