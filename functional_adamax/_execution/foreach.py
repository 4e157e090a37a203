"""Executor: many tensors at a time, in torch's foreach operations.

They are the operations of ``torch.optim.Adamax(foreach=True)``: one launch for many tensors
on a GPU, at the price of a copy of the gradients. torch's two forms differ in last bits for
complex tensors with decay (foreach adds it to real views) and for halves (foreach rounds beta2
to the half first). There this executor has the bits of the foreach form, not of the rule; on a
CPU only ``compat.Adamax(foreach=True)`` uses it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._core import memory
from .._core.numerics import real_views
from .._core.private import foreach as many
from . import inplace
from .adamax_rule import AdamaxLeaf
from .inplace import scale
from .work import Work, leaves_of


def part(work: Work, where: list[int]) -> tuple[list[int], Callable[[], None]]:
    """Return which of the leaves are taken, as ``inplace.takes`` says, and what steps them."""
    found = leaves_of(work, where).items() if many.IS_WHOLE else ()
    taken = {i: leaf for i, leaf in found if inplace.takes(leaf)}
    groups: dict[Any, list[AdamaxLeaf]] = defaultdict(list)
    for leaf in taken.values():
        hyper = (leaf.b1, leaf.b2, leaf.eps, leaf.weight_decay)
        groups[leaf.p.device, leaf.p.dtype, leaf.t.dtype, hyper].append(leaf)
    counted_once = memory.tied([leaf.t for leaf in taken.values()]) is None
    return list(taken), partial(_run, [_planned(group, counted_once) for group in groups.values()])


def _run(steps: list[Callable[[], None]]) -> None:
    for step in steps:
        step()


def _planned(group: list[AdamaxLeaf], counted_once: bool) -> Callable[[], None]:
    """Make the temporaries of leaves that are alike; return what writes.

    A counter that several leaves share is stepped for each of them before it is read, as in torch.
    """
    _, _, _, _, _, _, b1, _, eps, weight_decay, _, maximize, _ = group[0]
    p, g, m, u, t = (list(column) for column in zip(*(leaf[:5] for leaf in group), strict=True))
    if p[0].is_complex():
        p, g, m, u = real_views(*p), real_views(*g), real_views(*m), real_views(*u)
    if maximize:
        g = list(many.neg(g))
    if weight_decay != 0:
        g = list(many.add(g, p, alpha=weight_decay))
    sizes = many.abs_of(g)
    many.add_(sizes, eps)
    one = torch.ones((), dtype=t[0].dtype, device="cpu")
    scales = [-scale(leaf.lr, b1, leaf.t + 1) for leaf in group] if counted_once else None
    return partial(_write, group, p, g, m, u, t, sizes, one, scales)


def _write(
    group: list[AdamaxLeaf],
    p: list[Tensor],
    g: list[Tensor],
    m: list[Tensor],
    u: list[Tensor],
    t: list[Tensor],
    sizes: Any,
    one: Tensor,
    scales: list[float] | None,
) -> None:
    b1, b2 = group[0].b1, group[0].b2
    many.add_(t, one, alpha=1.0)
    many.lerp_(m, g, 1 - b1)
    many.mul_(u, b2)
    many.maximum_(u, sizes)
    scales = scales or [-scale(leaf.lr, b1, leaf.t) for leaf in group]
    many.addcdiv_(p, m, u, scales)
