"""Executor: one tensor at a time, in torch's in-place operations.

It saves the rule's temporaries. The operations and their order are those by which
``torch.optim.Adamax`` steps a tensor, so on every device its bits are torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._core import memory
from .._core.numerics import HALF, REAL, bias_corrected, real_views
from .adamax_rule import AdamaxLeaf
from .work import Work, leaves_of

_DTYPES = {*HALF, *REAL, torch.complex64, torch.complex128}
"""In others torch has not all of the operations, and the first that it lacks would raise."""


def part(work: Work, where: list[int]) -> dict[int, Callable[[], None]]:
    """Return what steps each of the leaves that are taken.

    They share a buffer for their temporaries, so that nothing is allocated between the writes.
    """
    taken = {i: leaf for i, leaf in leaves_of(work, where).items() if takes(leaf)}
    taken = {i: x._replace(g=x.g.resolve_conj().resolve_neg()) for i, x in taken.items()}
    sizes: dict[torch.device, int] = {}
    for leaf in filter(_is_plain, taken.values()):
        sizes[leaf.g.device] = max(sizes.get(leaf.g.device, 0), _span(leaf.g))
    buffers = {at: torch.empty(n, dtype=torch.uint8, device=at) for at, n in sizes.items()}
    planned: dict[int, Callable[[], None]] = {}
    for i, leaf in taken.items():
        buffer = _within(buffers[leaf.g.device], leaf.g) if _is_plain(leaf) else None
        planned[i] = partial(_write, leaf, buffer, _rate_before(leaf))
    return planned


def _rate_before(leaf: AdamaxLeaf) -> float | None:
    """The rate of the step; None where it lies in memory that the step writes before it reads."""
    _, _, m, u, t, lr, b1, *_ = leaf
    if isinstance(lr, Tensor) and not memory.storages([lr]).isdisjoint(memory.storages([m, u, t])):
        return None
    return -scale(lr, b1, t + 1)


def _is_plain(leaf: AdamaxLeaf) -> bool:
    """Whether the leaf lies in memory of its own, and is no DTensor, for example."""
    return all(type(x) in memory.PLAIN for x in leaf[:4])


def _span(g: Tensor) -> int:
    """The bytes of a tensor like ``g``."""
    return g.numel() * g.element_size()


def _within(buffer: Tensor, g: Tensor) -> Tensor:
    """A tensor like ``g`` in the memory of ``buffer``."""
    strides = torch.empty_like(g, device="meta").stride()
    return buffer[: _span(g)].view(g.dtype).as_strided(g.shape, strides)


def takes(leaf: AdamaxLeaf) -> bool:
    """Whether the in-place spelling gives the bits of the rule without waiting for a device.

    Nor does it stop a compiler, which cannot follow what asks a tensor for its number.
    """
    if torch.compiler.is_compiling():
        return False
    p, g, m, u, t, lr, b1, b2, eps, weight_decay, *_ = leaf
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
        and not (leaf.decoupled and weight_decay != 0)
        and not (p.is_complex() and any(x.is_conj() or x.is_neg() for x in (p, m, u)))
        and not (b1 == 0 and p.dtype in HALF and g.stride() != m.stride())  # the sign of zeros
    )


def _is_of_torch(x: Tensor) -> bool:
    """Whether the class of ``x`` is torch's; an operation of another may raise half-way."""
    return type(x).__module__.partition(".")[0] == "torch"


def _write(leaf: AdamaxLeaf, buffer: Tensor | None, rate: float | None) -> None:
    """Step a leaf that ``takes`` accepts; ``buffer`` is like its gradient."""
    p, g, m, u, t, lr, b1, b2, eps, weight_decay, *_ = leaf
    t += 1
    if leaf.maximize:
        g = torch.neg(g, out=buffer)
    if weight_decay != 0:
        g = torch.add(g, p, alpha=weight_decay, out=buffer)
    if p.is_complex():
        g, p, m, u = real_views(g, p, m, u)
        buffer = None if buffer is None else torch.view_as_real(buffer)
    m.lerp_(g, 1 - b1)
    torch.maximum(u.mul_(b2), torch.abs(g, out=buffer).add_(eps), out=u)
    p.addcdiv_(m, u, value=-scale(lr, b1, t) if rate is None else rate)


def scale(lr: Any, b1: float, t: Tensor) -> float:
    """``lr / (1 - b1^t)`` as a Python number."""
    if not t >= 1:  # where Python may raise, and a tensor is infinite
        return float(bias_corrected(lr, b1, t))
    value = lr / (1 - b1 ** t.item())
    return value.item() if isinstance(value, Tensor) else value
