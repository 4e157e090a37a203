"""Trees for the tests, and comparisons of trees."""

from __future__ import annotations

from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.complex128,
]


class Pair(NamedTuple):
    left: Any
    right: Any


def params(dtype: torch.dtype = torch.float64) -> Any:
    """Nested containers; a matrix, a vector, a 0-d and an empty tensor."""
    return {
        "w": torch.randn(4, 3, dtype=dtype),
        "layers": [
            Pair(torch.randn(3, dtype=dtype), torch.randn((), dtype=dtype)),
            (torch.randn(0, 2, dtype=dtype),),
        ],
    }


def with_gaps(tree: Any) -> Any:
    """The same tree beside a parameter that is None and one that is an integer."""
    return {"inner": tree, "none": None, "count": torch.tensor(3)}


def grads_like(tree: Any, integers: Any = None) -> Any:
    """Random gradients; None for None, ``integers`` for integer leaves."""

    def grad(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return None
        if not (x.is_floating_point() or x.is_complex()):
            return integers
        return torch.randn_like(x)

    return optree.tree_map(grad, tree, none_is_leaf=True)


def leaves(tree: Any) -> list[Any]:
    return optree.tree_leaves(tree, none_is_leaf=True)


def tree_map(function: Any, tree: Any, *rest: Any) -> Any:
    return optree.tree_map(function, tree, *rest)


def stack(trees: list[Any]) -> Any:
    return optree.tree_map(lambda *xs: torch.stack(xs), *trees)


def member(tree: Any, i: int) -> Any:
    return optree.tree_map(lambda x: x[i], tree)


def clone(tree: Any) -> Any:
    return optree.tree_map(lambda x: x.detach().clone(), tree)


def assert_equal(a: Any, b: Any) -> None:
    """Same structure, same dtypes, same bits."""
    assert_close(a, b, ulps=0)


def assert_close(a: Any, b: Any, operands: Any = (), *, ulps: int = 4) -> None:
    """Within 1e-12 in float64, else within ``ulps`` of the largest element of ``operands``.

    Operands and results count by dtype, so that a step counter is no operand of a moment.
    """
    assert optree.tree_structure(a, none_is_leaf=True) == optree.tree_structure(
        b, none_is_leaf=True
    )
    for x, y in zip(leaves(a), leaves(b), strict=True):
        if not isinstance(x, Tensor):
            assert x is y
            continue
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        if ulps == 0:
            assert torch.equal(x, y), (x, y)
        elif x.dtype == torch.float64:
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
        elif x.is_floating_point() and x.numel():
            same = [z for z in leaves(operands) if isinstance(z, Tensor) and z.dtype == x.dtype]
            largest = max(float(z.abs().max()) for z in (*same, y) if z.numel())
            assert float((x - y).abs().max()) <= ulps * torch.finfo(x.dtype).eps * largest, (x, y)
        else:
            assert torch.equal(x, y)
