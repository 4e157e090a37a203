"""Executor: steps that autograd records, as one node for all leaves.

Recorded operation by operation, the rule makes some eight nodes for a leaf and keeps six tensors
of its size. Here one node keeps four: the gradient, m, and u before and after. Its derivative is
written out, in operations that can be differentiated again; the last one runs in the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .._core import capture, context, numerics
from .._core.private import modes
from . import adamax_rule
from .adamax_rule import AdamaxLeaf, Pull
from .native import kernel
from .rule import conditioned, decayed, decays
from .work import Row, Work, leaves_of


def part(work: Work, where: list[int], add: bool) -> dict[int, Row]:
    """Step those of the leaves that autograd records and ``takes`` accepts."""
    found = leaves_of(work, where).items()
    taken = {i: x for i, x in found if takes(x) and kernel.is_differentiated(x)}
    return dict(zip(taken, step(list(taken.values()), add), strict=True)) if taken else {}


def takes(leaf: AdamaxLeaf) -> bool:
    """Whether ``leaf`` is real, and no hyperparameter but a single ``lr`` is a tensor."""
    p, g, m, u, _, lr, b1, b2, eps, weight_decay, floor, *_ = leaf
    return (
        m.dtype in numerics.REAL
        and all(x is None or x.dtype == m.dtype for x in (p, g, u))
        and floor is None
        and not any(isinstance(x, Tensor) for x in (b1, b2, eps, weight_decay))
        and not (isinstance(lr, Tensor) and lr.dim())
    )


def step(leaves: list[AdamaxLeaf], add: bool) -> list[list[Any]]:
    """Step leaves that ``takes`` accepts; return [update, t, m, u] of each.

    With ``add``, the new parameters take the place of the updates. The kernel computes the steps,
    if it takes them.
    """
    ready = kernel.as_read(leaves)
    native, leaves = ready is not None, ready or leaves
    decoupled = leaves[0].decoupled
    some_decay = any(decays(leaf.weight_decay) for leaf in leaves)
    inside = add and not (some_decay and decoupled)  # else the decay, and then the sum, come after
    core = leaves
    if leaves[0].maximize or some_decay or not inside:
        core = [
            leaf._replace(
                p=leaf.p if inside else None, g=_conditioned(leaf), weight_decay=0.0, maximize=False
            )
            for leaf in leaves
        ]
    scales = [_differentiable_scale(leaf) for leaf in leaves]
    with torch.no_grad():
        if native:
            results = kernel.step(core, inside, scales)
        else:
            results = [_by_the_rule(*x, inside) for x in zip(core, scales, strict=True)]
    columns = list(zip(*core, strict=True))[:4]
    outputs = capture.apply(_Steps, core, results, native, *chain(*columns), *scales)
    rows = []
    for leaf, out, m, u, (_, t, *_) in zip(leaves, *_columns(outputs, 3), results, strict=True):
        if not inside:
            out = decayed(out, leaf.p, leaf.lr, leaf.weight_decay) if decoupled else out
            out = numerics.add(leaf.p, out) if add else out
        rows.append([out, leaf.t + 1 if leaf.t.requires_grad else t, m, u])
    return rows


def _conditioned(leaf: AdamaxLeaf) -> Tensor:
    decay = 0 if leaf.decoupled else leaf.weight_decay
    return conditioned(leaf.g, leaf.m.dtype, leaf.maximize, leaf.p, decay)


def _differentiable_scale(leaf: AdamaxLeaf) -> Tensor | None:
    if isinstance(leaf.lr, Tensor) or leaf.t.requires_grad:
        return adamax_rule.scale(leaf, leaf.t + 1)
    return None


def _columns(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """``items`` in ``count`` parts of one length."""
    size = len(items) // count
    return [items[i * size : (i + 1) * size] for i in range(count)]


class _Steps(torch.autograd.Function):
    """Steps as one node of the graph.

    In: columns of p (or None), g, m, u and scale (or None). Out: columns of the new p (or the
    update), m and u. They are computed before; here is what autograd has to know about them.
    """

    @staticmethod
    def forward(
        ctx: Any, leaves: list[AdamaxLeaf], results: list[list[Any]], native: bool, *inputs: Any
    ) -> Any:
        _, g, _, u, scales = _columns(inputs, 5)
        out, _, m_new, u_new, factors = zip(*results, strict=True)
        ctx.native, ctx.scales = native and not modes.may_be_hooked(), factors
        ctx.numbers = list(zip(*leaves, strict=True))[6:9]  # b1, b2 and eps
        ctx.save_for_backward(*g, *u, *m_new, *u_new, *scales)
        ctx.set_materialize_grads(False)
        needs = zip(*_columns(ctx.needs_input_grad[3:], 5)[1:4], strict=True)
        constant = [i for i, need in enumerate(needs) if not any(need)]
        ctx.mark_non_differentiable(*(x[i] for i in constant for x in (m_new, u_new)))
        return *out, *m_new, *u_new

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        saved = ctx.saved_tensors
        g, u, m_new, u_new, tensors = _columns(saved, 5)
        d_out, d_m, d_u = _columns(cotangents, 3)
        needs_p, _, needs_m, needs_u, needs_scale = _columns(ctx.needs_input_grad[3:], 5)
        by_p = [d if needed else None for d, needed in zip(d_out, needs_p, strict=True)]
        scales = [y if x is None else x for x, y in zip(tensors, ctx.scales, strict=True)]
        wants_state = [m or u for m, u in zip(needs_m, needs_u, strict=True)]
        columns = (g, u, m_new, u_new, d_out, d_m, d_u, scales, *ctx.numbers, wants_state)
        pulls = list(map(_filled, zip(*columns, strict=True)))
        native = ctx.native and not (
            context.recorded(x for x in (*saved, *cotangents) if x is not None)
            or context.batched_by_autograd(cotangents)
        )
        found = kernel.pull(pulls) if native else None
        by_g, by_m, by_u = zip(*(found or map(adamax_rule.pull, pulls)), strict=True)
        by_scale = [
            (x.d_out * x.m_new / x.u_new).sum() if needed else None
            for x, needed in zip(pulls, needs_scale, strict=True)
        ]
        return None, None, None, *by_p, *by_g, *by_m, *by_u, *by_scale


def _by_the_rule(leaf: AdamaxLeaf, scale: Tensor | None, add: bool) -> list[Any]:
    first, t, m, u = adamax_rule.step(leaf, add)
    return [first, t, m, u, adamax_rule.scale(leaf, t) if scale is None else scale]


def _filled(row: tuple[Any, ...]) -> Pull:
    """Make zeros of cotangents that are None, but not of both of m and u."""
    pull = Pull._make(row)
    if pull.d_out is None:
        pull = pull._replace(d_out=torch.zeros_like(pull.m_new))
    if (pull.d_m_new is None) != (pull.d_u_new is None):
        zeros = torch.zeros_like(pull.m_new)
        pull = pull._replace(
            d_m_new=zeros if pull.d_m_new is None else pull.d_m_new,
            d_u_new=zeros if pull.d_u_new is None else pull.d_u_new,
        )
    return pull
