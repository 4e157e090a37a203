"""Whether the kernel of ``kernel.py`` has the bits of the rule on the machine it finds itself on.

It steps a few thousand random elements of all magnitudes, special values among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..._core.numerics import REAL
from .. import adamax_rule
from ..adamax_rule import AdamaxLeaf

_RATES = ((0.9, 0.999, 1e-8), (0.3, 0.7, 0.1))  # b1, b2 and eps
_SPECIAL = (0.0, -0.0, 1e-45, 5e-324, 1e-38, 1e-30, 1e30, torch.inf, -torch.inf, torch.nan, 1.0)


def holds(
    value: torch.dtype,
    moment: torch.dtype,
    decay: float,
    decoupled: bool,
    step: Callable[..., list[list[Any]]],
) -> bool:
    """Whether ``step`` has the rule's bits, for dtypes of parameter and moments."""
    with torch.no_grad():
        for leaf, add in _steps(value, moment, decay, decoupled):
            (found,) = step([leaf], add)
            if not all(map(_same_bits, found, adamax_rule.step(leaf, add))):
                return False
    return True


def _steps(
    value: torch.dtype, moment: torch.dtype, decay: float, decoupled: bool
) -> Iterator[tuple[AdamaxLeaf, bool]]:
    """Leaves, with whether to add the update."""
    generator = torch.Generator().manual_seed(0)
    p, g = _row(value, 1, generator), _row(value, 0, generator)
    m, u = _row(moment, 1, generator), _row(moment, 1, generator)
    u = torch.complex(u.real.abs(), u.imag.abs()) if moment.is_complex else u.abs()
    lrs = [0.002, *(torch.tensor(0.002, dtype=x, device="cpu") for x in REAL)]
    cases = product(_RATES, (False, True), (False, True), lrs)
    for i, ((b1, b2, eps), maximize, add, lr) in enumerate(cases):
        t = torch.tensor(float(i**2), dtype=torch.float64, device="cpu")
        if not (maximize and value.is_complex):
            rates = (lr, b1, b2, eps, decay)
            yield AdamaxLeaf(p, g, m, u, t, *rates, None, maximize, decoupled), add


def _row(dtype: torch.dtype, side: int, generator: torch.Generator) -> Tensor:
    """Numbers of all magnitudes; all pairs of special values meet in rows of side 0 and 1."""
    wide = torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
    x, magnitude = torch.randn(2, 2004, generator=generator, dtype=wide, device="cpu")
    special = torch.tensor(list(product(_SPECIAL, _SPECIAL)), dtype=wide, device="cpu")[:, side]
    row = torch.cat([x * 10 ** (4 * magnitude), special, special[:1]])
    return torch.view_as_complex(row.view(-1, 2)) if dtype.is_complex else row.to(dtype)


def _same_bits(x: Tensor, y: Tensor) -> bool:
    """Equality that tells zeros apart by their sign, and takes every NaN for the same."""
    if x.is_complex():
        x, y = torch.view_as_real(x), torch.view_as_real(y)
    alike = (x == y) & (x.signbit() == y.signbit()) | (x.isnan() & y.isnan())
    return x.dtype == y.dtype and bool(alike.all())
