"""Executor: the native kernel under ``torch.compile``, as one operator for many leaves.

The compiler sees an opaque operation, so the graph is small whatever the number of leaves, and the
bits are those of the kernel. Under ``vmap`` and where a derivative is wanted it sees the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value

from . import _apply, _context, _kernel, _rule
from ._rule import Leaf

_PLAIN = (Tensor, torch.nn.Parameter)
_REAL = (torch.float32, torch.float64)


def step(
    leaves: list[Leaf], maximize: bool, decoupled: bool, add: bool
) -> list[Sequence[Tensor]] | None:
    """Step leaves that a compiler traces; return [update or new p, t, m, u] of each, or None.

    All have gradients. None where a transform of ``torch.func`` is running, autograd records, or
    the kernel is not to take such leaves. A compiler spends its time by the bytecode it follows, so
    there is little of it for each leaf.
    """
    grad_mode = torch.is_grad_enabled()
    groups: list[tuple[Leaf, list[Leaf]]] = []  # of leaves with the same hyperparameters
    order = []
    for leaf in leaves:
        p, g, m, u, t, *_ = leaf
        if type(m) not in _PLAIN or type(g) not in _PLAIN:
            return None
        if grad_mode and (
            (p is not None and p.requires_grad)
            or g.requires_grad
            or m.requires_grad
            or u.requires_grad
            or t.requires_grad
        ):
            return None
        for k in range(len(groups)):
            if _alike(leaf, groups[k][0]):
                break
        else:
            k = len(groups)
            groups.append((leaf, []))
        order.append((k, len(groups[k][1])))
        groups[k][1].append(leaf)
    if (
        torch.compiler.is_exporting()
        or _transforming()
        or not all(_takes(first, grad_mode, maximize, decoupled) for first, _ in groups)
    ):
        return None
    found = [_run(first, alike, maximize, decoupled, add) for first, alike in groups]
    return [found[k][4 * i : 4 * i + 4] for k, i in order]


def _alike(a: Leaf, b: Leaf) -> bool:
    """Whether leaves are of one kind, and have the same hyperparameters."""
    return (
        a.m.dtype is b.m.dtype
        and a.m.device == b.m.device
        and a.g.dtype is b.g.dtype
        and (a.p is None) is (b.p is None)
        and a.lr is b.lr
        and a.b1 is b.b1
        and a.b2 is b.b2
        and a.eps is b.eps
        and a.weight_decay is b.weight_decay
    )


def _takes(leaf: Leaf, grad_mode: bool, maximize: bool, decoupled: bool) -> bool:
    """Whether the kernel is to take leaves like this one, whose moments are on one device."""
    p, g, m, u, _, *rates, floor = leaf
    for x in rates:
        if isinstance(x, Tensor) and grad_mode and x.requires_grad:
            return False
    for x in rates:
        if isinstance(x, Tensor) and not (x.is_cpu and x.dim() == 0 and x.dtype in _REAL):
            return False
    value = m.dtype if p is None else p.dtype
    return (
        floor is None
        and m.is_cpu
        and not (maximize and m.is_complex())
        and (g.dtype, u.dtype) == (value, m.dtype)
        and _is_active(value, m.dtype, _kernel.mode_of(leaf, decoupled))
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _transforming() -> bool:
    return _context.transforming()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_active(value: torch.dtype, moment: torch.dtype, mode: int) -> bool:
    return _kernel.is_active(value, moment, mode)


def _run(
    first: Leaf, leaves: list[Leaf], maximize: bool, decoupled: bool, add: bool
) -> list[Tensor]:
    p, g, m, u, t = ([leaf[k] for leaf in leaves] for k in range(5))
    numbers, tensors, where = _split(first)
    found: list[Tensor] = _operator(
        [] if first.p is None else p, g, m, u, t, tensors, where, numbers, maximize, decoupled, add
    )
    return found


def _split(leaf: Leaf) -> tuple[list[float], list[Tensor], list[int]]:
    """The hyperparameters as numbers, tensors, and the places of the tensors among the numbers.

    A number that the compiler knows to change becomes a tensor, or each would be compiled anew; in
    double precision it has the same bits.
    """
    numbers, tensors, where = [], [], []
    rates: tuple[Any, ...] = leaf[5:10]
    for i, x in enumerate(rates):
        if not isinstance(x, Tensor) and not has_static_value(x):
            x = torch.ones((), dtype=torch.float64, device="cpu") * x
        if isinstance(x, Tensor):
            tensors.append(x)
            where.append(i)
        numbers.append(0.0 if isinstance(x, Tensor) else float(x))
    return numbers, tensors, where


@torch.library.custom_op("functional_adamax::step", mutates_args=(), device_types="cpu")
def _operator(
    p: list[Tensor],
    g: list[Tensor],
    m: list[Tensor],
    u: list[Tensor],
    t: list[Tensor],
    tensors: list[Tensor],
    where: list[int],
    numbers: list[float],
    maximize: bool,
    decoupled: bool,
    add: bool,
) -> list[Tensor]:
    """Step leaves of one set of hyperparameters, lr to weight_decay; four tensors for each.

    ``p`` may be empty. ``tensors`` take the places ``where`` among the hyperparameters.
    """
    rates: list[Any] = list(numbers)
    for i, x in zip(where, tensors, strict=True):
        rates[i] = x
    params: Sequence[Any] = p or [None] * len(g)
    leaves = [Leaf(*row, *rates) for row in zip(params, g, m, u, t, strict=True)]
    ready = _kernel.ready(leaves, maximize, decoupled)
    if ready is not None:
        found = _kernel.step(ready, maximize, decoupled, add)
        return [x for row in found for x in row[:4]]
    results = _fake(p, g, m, u, t, add)  # another machine than it was compiled on, or odd layouts
    for i, leaf in enumerate(leaves):
        update, *state = _rule.step(leaf, maximize, decoupled)
        row = [_apply.add(leaf.p, update) if add else update, *state]
        for result, x in zip(results[4 * i : 4 * i + 4], row, strict=True):
            result.copy_(x)
    return results


def _fake(
    p: list[Tensor], g: list[Tensor], m: list[Tensor], u: list[Tensor], t: list[Tensor], *how: Any
) -> list[Tensor]:
    """Return new tensors for the results; the last of ``how`` is ``add``."""
    rows = zip(p or g, m, u, t, strict=True)
    return [
        torch.empty_like(x)
        for value, moment, inf, step in rows
        for x in (value if how[-1] else _rule.wide(moment), step, moment, inf)
    ]


_operator.register_fake(_fake)
