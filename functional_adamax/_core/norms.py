"""Norms that neither overflow nor vanish, and whose derivative at zero is zero.

A norm is a pair ``(unit, root)``, of which it is the product: ``unit`` is a constant to
differentiation, and ``root`` the norm of what is left when all values are divided by it. So even a
norm too large for its dtype can be divided by. Squares are added up in float64, in the order of
``sums.py``. Those of float64 numbers could overflow or vanish there: their unit is the largest
absolute value. That of other dtypes is 1, except for norms at the bounds of float32.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from . import checks, numerics, pytree, sharded, sums
from .numerics import root
from .pytree import Tree


def global_norm(tree: Tree) -> Tensor:
    """Return the Euclidean norm of all tensors of a tree together.

        ||tree|| = sqrt(sum over all elements of |x|^2)

    Squares neither overflow nor vanish, and the derivative at an all-zero tree is zero.

    Args:
        tree: tensors, real or complex, of any dtypes (halves count in float32); None is skipped.

    Returns:
        A 0-d tensor of the widest real dtype, on the device of the first tensor; 0 for a tree
        without elements. Of DTensors it is a plain tensor, the same on every process.

    Raises:
        TypeError: a leaf is neither a tensor nor None.

    Example:
        >>> global_norm({"w": torch.tensor([3.0, 0.0]), "b": torch.tensor(4.0), "n": None})
        tensor(5.)
    """
    leaves, spec = pytree.flatten(tree)
    checks.gradients(spec, leaves, leaves, "global_norm", "tree")
    unit, root = of_leaves([x for x in leaves if x is not None])
    return unit * root


def of_leaves(leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``(unit, root)``, 0-d, whose product is the norm of all leaves; unit is a constant."""
    parts = [real(x) for x in leaves if x.numel()]
    if not parts:
        return torch.ones(()), torch.zeros(())
    dtype, device = reduce(torch.promote_types, (x.dtype for x in parts)), parts[0].device
    wide = numerics.step_dtype(device)
    if dtype == wide:  # in which squares may overflow or vanish
        unit = _unit(_largest(parts, device, dtype))
        parts = [x.to(dtype) / unit.to(x.device) for x in parts]
        return unit, _root(_sum_of_squares(parts, dtype))
    length = _root(_sum_of_squares(parts, wide))
    size = length.detach()
    ordinary = (size > _TINY) & (size < 1 / _TINY)
    unit = torch.where(ordinary | ~(size > 0), 1.0, size.clamp(_TINY**2, 1 / _TINY**2))
    return unit.to(dtype), (length / unit).to(dtype)


def _root(total: Tensor) -> Tensor:
    if sums.watching.recorder is not None:
        return sums.watching.recorder.root(total)
    return numerics.exact_root(total) if total.dtype == torch.float64 else root(total)


def _largest(parts: list[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The largest absolute value of all elements, ()."""
    if sums.watching.recorder is not None:
        return sums.watching.recorder.largest(parts)
    largest = [sharded.largest(x.detach().abs()).to(device, dtype) for x in parts]
    return sharded.combined(torch.maximum, largest)


_TINY = 2.0**-60
"""The smallest norm that is the root itself; its square is far from the bounds of float32."""


def _sum_of_squares(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Of all elements together, on the device of the first."""
    device = parts[0].device
    plain: dict[torch.device, list[Tensor]] = {}
    spread: list[Tensor] = []
    for x in parts:
        if sharded.is_sharded(x):
            spread.append(x.to(dtype).square().sum().to(device))
        else:
            plain.setdefault(x.device, []).append(x)
    totals = [sums.of_squares(some, dtype).to(device) for some in plain.values()]
    return sharded.combined(torch.add, [*totals, *spread])


def over(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """``(unit, root)``, whose product is the norm of a real ``x`` over ``dims``, which stay."""
    if not dims:
        unit = _unit(x.detach().abs())
        return unit, root((x / unit).square())
    unit = _unit(sharded.settled(sharded.largest(x.detach().abs(), dims)))
    return unit, root(sharded.settled((x / unit).square().sum(dims, keepdim=True)))


def _unit(largest: Tensor) -> Tensor:
    return torch.where((largest > 0) & (largest < torch.inf), largest, 1.0)


def real(x: Tensor) -> Tensor:
    """Components of a complex tensor in a last dimension of two; halves as float32."""
    if x.is_complex():
        (x,) = numerics.real_views(x)
    return numerics.wide(x)


def over_components(value: Any, like: Tensor) -> Any:
    """``value`` for the real view of ``like``."""
    return numerics.over_components(value) if like.is_complex() else value


def shortened(u: Tensor, unit: Tensor, root: Tensor, limit: Any) -> Tensor:
    """``u``, or where its norm ``unit * root`` is not within ``limit``, ``u * limit / norm``."""
    if not u.numel():
        return u
    x = real(u).to(unit.dtype)
    unit, root, limit = (sharded.beside(y, x) for y in (unit, root, limit))
    clipped = ~(unit * root <= limit)  # so that NaN counts as too long
    factor = limit / torch.where(clipped, root, 1.0)
    new = torch.where(clipped, (x / unit) * factor, x)
    new = torch.view_as_complex(new) if u.is_complex() else new
    return sharded.placed_like(u, new.to(u.dtype))
