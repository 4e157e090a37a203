"""Executor: one tensor at a time, in torch's in-place operations.

It saves the rule's temporaries. The operations and their order are those by which
``torch.optim.Adamax`` steps a tensor, so on every device its bits are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._rule import Leaf, real_views


def takes(leaf: Leaf, decoupled: bool) -> bool:
    """Whether the in-place spelling gives the bits of the rule without waiting for a device."""
    p, g, m, u, t, lr, *numbers = leaf
    return (
        p.dtype == g.dtype == m.dtype == u.dtype
        and t.device.type == "cpu"
        and not any(isinstance(x, Tensor) for x in numbers)
        and (not isinstance(lr, Tensor) or (lr.dim() == 0 and lr.device.type == "cpu"))
        and not (decoupled and leaf.weight_decay != 0)
        and not any(x.is_conj() or x.is_neg() for x in (p, m, u))
    )


def write(leaf: Leaf, maximize: bool) -> None:
    """Step a leaf that ``takes`` accepts."""
    p, g, m, u, t, lr, b1, b2, eps, weight_decay = leaf
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
    value = lr / (1 - b1 ** t.item())
    return value.item() if isinstance(value, Tensor) else value
