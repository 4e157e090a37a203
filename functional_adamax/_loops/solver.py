"""Solvers of H x = b, for which H is a function: conjugate gradients, and the Neumann series.

A vector is a list of tensors, one for each parameter. What becomes of a system is kept in tensors,
so that ``vmap`` solves one for each member.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._core import context, numerics, sharded

Vector = list[Tensor]
"""The tensors of all parameters."""


@dataclass(frozen=True)
class Solver:
    """An approximate product of (H + damping)^-1 with a vector."""

    kind: str
    iterations: int
    tolerance: float
    damping: float
    step_size: float

    def __call__(self, product: Callable[[Vector], Vector], b: Vector) -> Vector:
        dtypes = [y.dtype for y in b]

        def damped(v: Vector) -> Vector:  # halves are added up in float32
            image = product([x.to(dtype) for x, dtype in zip(v, dtypes, strict=True)])
            return plus(list(map(numerics.wide, image)), self.damping, v)

        solve = self._cg if self.kind == "cg" else self._neumann
        found = solve(damped, list(map(numerics.wide, b)))
        return [x.to(dtype) for x, dtype in zip(found, dtypes, strict=True)]

    def _cg(self, product: Callable[[Vector], Vector], b: Vector) -> Vector:
        asking = not (context.transforming() or context.batched_by_autograd(b))
        sizes = [sharded.largest(y.abs()) if y.numel() else y.abs().sum() for y in b]
        largest = sharded.combined(torch.maximum, sizes)
        unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)  # for tiny and huge b
        b = [y / unit for y in b]
        x, r, d = [torch.zeros_like(y) for y in b], b, b
        square = _dot(r, r)
        eps = torch.finfo(square.dtype).eps
        limit, solved = self.tolerance**2 * square, eps * square
        steepest = torch.zeros_like(square)
        broken = steepest > 0  # kept as tensors: vmap solves one system for each member
        for _ in range(self.iterations):
            going = (square > limit) & ~broken
            if asking and not going:
                break
            hd = product(d)
            curvature, size = _dot(d, hd), _dot(d, d)
            steepest = torch.maximum(steepest, _ratio(curvature, size, going))
            broken = broken | (going & ~(curvature > eps * steepest * size))
            going = going & ~broken
            length = _ratio(square, curvature, going)
            x, r = plus(x, length, d), plus(r, -length, hd)
            last, square = square, _dot(r, r)
            d = plus(r, _ratio(square, last, going), d)
        failed = broken & (square > solved)
        if asking and failed:
            raise RuntimeError(
                "the Hessian of the loss is not positive definite, or not to the precision of "
                f"{square.dtype}, so that the solution has no derivative: let the loss depend on "
                "every parameter, give those that stay as they are in the batch, or set damping"
            )
        return [torch.where(failed | ~square.isfinite(), torch.nan, y) * unit for y in x]

    def _neumann(self, product: Callable[[Vector], Vector], b: Vector) -> Vector:
        term, total = b, b
        for _ in range(self.iterations):
            term = plus(term, -self.step_size, product(term))
            total = plus(total, 1.0, term)
        return [self.step_size * x for x in total]


def plus(x: Vector, factor: Any, y: Vector) -> Vector:
    """``x + factor * y``."""
    return [a + factor * b for a, b in zip(x, y, strict=True)]


def _dot(x: Vector, y: Vector) -> Tensor:
    """The scalar product, for complex vectors that of their components."""
    products = [(a.conj() * b).real.sum() for a, b in zip(x, y, strict=True)]
    return torch.stack([sharded.whole(product) for product in products]).sum()


def _ratio(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """``a / b``, and zero elsewhere."""
    return torch.where(where, a / torch.where(where, b, torch.ones_like(b)), torch.zeros_like(a))
