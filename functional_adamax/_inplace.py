"""Executor: one tensor at a time, in torch's in-place operations.

It saves the rule's temporaries. The operations and their order are those by which
``torch.optim.Adamax`` steps a tensor, so on every device its bits are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._rule import HALF, Leaf, bias_corrected, real_views

_DTYPES = {
    *HALF,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
}
"""In others torch has not all of the operations, and the first that it lacks would raise."""


def takes(leaf: Leaf, decoupled: bool) -> bool:
    """Whether the in-place spelling gives the bits of the rule without waiting for a device.

    Nor does it stop a compiler, which cannot follow what asks a tensor for its number.
    """
    if torch.compiler.is_compiling():
        return False
    p, g, m, u, t, lr, b1, b2, eps, weight_decay, _ = leaf
    return (
        p.dtype == g.dtype == m.dtype
        and m.dtype in _DTYPES
        and p.shape == g.shape == m.shape == u.shape
        and all(map(_is_of_torch, (p, g, m, u)))
        and t.is_cpu
        and (not isinstance(lr, Tensor) or (lr.dim() == 0 and lr.is_cpu))
        and not isinstance(b1, Tensor)
        and not isinstance(b2, Tensor)
        and not isinstance(eps, Tensor)
        and not isinstance(weight_decay, Tensor)
        and max(lr, weight_decay, eps) < torch.finfo(p.dtype).max * (1 - b1)  # or torch refuses it
        and not (decoupled and weight_decay != 0)
        and not (p.is_complex() and any(x.is_conj() or x.is_neg() for x in (p, m, u)))
        and not (b1 == 0 and p.dtype in HALF and g.stride() != m.stride())  # the sign of zeros
    )


def _is_of_torch(x: Tensor) -> bool:
    """Whether the class of ``x`` is torch's; an operation of another may raise half-way."""
    return type(x).__module__.partition(".")[0] == "torch"


def write(leaf: Leaf, maximize: bool) -> None:
    """Step a leaf that ``takes`` accepts."""
    p, g, m, u, t, lr, b1, b2, eps, weight_decay, _ = leaf
    t += 1
    if maximize:
        g = -g
    if weight_decay != 0:
        g = g.add(p, alpha=weight_decay)
    if p.is_complex():
        g, p, m, u = real_views(g, p, m, u)
    m.lerp_(g, 1 - b1)
    torch.maximum(u.mul_(b2), g.abs().add_(eps), out=u)
    p.addcdiv_(m, u, value=-scale(lr, b1, t))


def scale(lr: Any, b1: float, t: Tensor) -> float:
    """``lr / (1 - b1^t)`` as a Python number."""
    if not t >= 1:  # where Python may raise, and a tensor is infinite
        return float(bias_corrected(lr, b1, t))
    value = lr / (1 - b1 ** t.item())
    return value.item() if isinstance(value, Tensor) else value
