"""Sums have the order that they are defined by, whatever computes them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.func import grad, vmap

from functional_adamax._core import sums

SIZES = [1, 2, 127, 128, 129, 640, 65535, 65536, 65537, 3 * 65536 + 1000]


def tree(values: list[Any]) -> Any:
    """The sum of a list, neighbours first; what has no neighbour waits."""
    while len(values) > 1:
        pairs = [a + b for a, b in zip(values[0::2], values[1::2], strict=False)]
        values = pairs + values[2 * len(pairs) :]
    return values[0]


def by_definition(tensors: list[torch.Tensor]) -> float:
    rows = []
    for x in tensors:
        squares = x.double().square().reshape(-1).tolist()
        squares += [0.0] * (-len(squares) % 128)
        lines = list(torch.tensor(squares, dtype=torch.float64).reshape(-1, 128).unbind())
        rows += [tree(lines[i : i + 512]) for i in range(0, len(lines), 512)]
    return float(tree(tree(rows).tolist()))


@pytest.mark.parametrize("size", SIZES)
def test_one_tensor_is_summed_in_order(size: int) -> None:
    x = torch.randn(size)
    got = sums.of_squares([x], torch.float64).item()
    assert got == by_definition([x])
    assert got == pytest.approx(math.fsum(v * v for v in x.tolist()), rel=1e-14)


def test_tensors_of_all_sizes_are_summed_in_order() -> None:
    tensors = [torch.randn(n) for n in (5, 70000, 5, 128, 1, 65536, 300)] * 2
    tensors[3] = tensors[3].to(torch.bfloat16).float().reshape(8, 16).t()
    got = [sums.of_squares(tensors, torch.float64).item()]
    threads = torch.get_num_threads()
    for n in (1, 2):
        torch.set_num_threads(n)
        got.append(sums.of_squares(tensors, torch.float64).item())
    torch.set_num_threads(threads)
    assert got == [by_definition(tensors)] * 3


def test_the_order_is_kept_under_vmap_and_differentiated() -> None:
    xs = torch.randn(3, 300, dtype=torch.float64)
    batched = vmap(lambda x: sums.of_squares([x], torch.float64))(xs)
    assert batched.tolist() == [by_definition([x]) for x in xs]
    slope = grad(lambda x: sums.of_squares([x, x], torch.float64))(xs[0])
    assert torch.equal(slope, 4 * xs[0])


def test_what_is_not_finite_shows() -> None:
    for value in (math.inf, math.nan):
        total = sums.of_squares([torch.tensor([1.0, value])], torch.float64)
        assert str(total.item()) == str(value)
