"""Executor: many tensors at a time, in torch's foreach operations.

They are the operations of ``torch.optim.Adamax(foreach=True)``: one launch for many tensors
on a GPU, at the price of a copy of the gradients. torch's two forms differ in last bits for
complex tensors with decay (foreach adds it to real views) and for halves (foreach rounds beta2
to the half first). There this executor has the bits of the foreach form, not of the rule; on a
CPU only ``compat.Adamax(foreach=True)`` uses it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from ._inplace import scale
from ._rule import Leaf, real_views


def write(leaves: Sequence[Leaf], maximize: bool) -> None:
    """Step leaves that ``_inplace.takes`` accepts."""
    groups: dict[Any, list[Leaf]] = defaultdict(list)
    for leaf in leaves:
        hyper = (leaf.b1, leaf.b2, leaf.eps, leaf.weight_decay)
        groups[leaf.p.device, leaf.p.dtype, leaf.t.dtype, hyper].append(leaf)
    for (*_, (b1, b2, eps, weight_decay)), group in groups.items():
        columns = list(zip(*group, strict=True))[:5]
        t = list(columns[4])
        p, g, m, u = (
            real_views(*column) if column[0].is_complex() else column for column in columns[:4]
        )
        torch._foreach_add_(t, torch.ones((), dtype=t[0].dtype, device="cpu"), alpha=1.0)
        if maximize:
            g = torch._foreach_neg(g)
        if weight_decay != 0:
            g = torch._foreach_add(g, p, alpha=weight_decay)
        torch._foreach_lerp_(m, g, 1 - b1)
        torch._foreach_mul_(u, b2)
        g = torch._foreach_abs(g)
        torch._foreach_add_(g, eps)
        torch._foreach_maximum_(u, g)
        scales = [-scale(leaf.lr, b1, leaf.t) for leaf in group]
        torch._foreach_addcdiv_(p, m, u, scales)
