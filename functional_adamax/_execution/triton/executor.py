"""Executor: Triton kernels for CUDA devices, one launch for many tensors, one pass over memory.

The kernel of ``kernel.py`` finds its tensors in a table of addresses on the device. Where
step counters and rates are tensors there, a small launch before it counts and finds the scales, so
that nothing waits for the device and a CUDA graph can hold the step.

In Triton's interpreter it has the bits of the rule on a CPU. On a device, where torch's own kernels
are made by another compiler, m and u keep to 1 ulp of the larger term of their sums, and p to 2 ulp
of the larger of p and the update that the rule makes of m and u. Each form of the kernels is held
to that by ``proof.py``, when first used, and stays off if it fails.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..._core import memory, numerics
from ..._core.private import foreach
from ..adamax_rule import AdamaxLeaf
from ..work import Work, leaves_of
from . import kernel, proof, table
from .table import Common

_DEVICE = "cuda"
_NUMBER = (int, float)
_proven: dict[Any, bool] = {}  # for each form of the kernels whether it is used


@cache
def available(device: torch.device) -> bool:
    """Whether there is Triton, not switched off, that makes kernels for ``device``."""
    return _obstacle(device) is None


def _obstacle(device: torch.device) -> str | None:
    if os.environ.get("FUNCTIONAL_ADAMAX_TRITON", "1") == "0":
        return "switched off by FUNCTIONAL_ADAMAX_TRITON=0"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if device.type != _DEVICE:
        return "no GPU"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        return "Triton needs a GPU of compute capability 7.0"
    return None


def why_not(leaf: AdamaxLeaf) -> str | None:
    """Why a leaf on a CUDA device has no kernels there, or None if it has, or is elsewhere."""
    return _obstacle(leaf.m.device) if leaf.m.is_cuda else None


def part(work: Work, where: list[int]) -> dict[int, AdamaxLeaf]:
    """Return those of the leaves that are taken."""
    return {i: leaf for i, leaf in leaves_of(work, where).items() if takes(leaf)}


def takes(leaf: AdamaxLeaf) -> bool:
    """Whether the kernel steps ``leaf``, which has a gradient, without waiting for its device.

    The moments are float32 or float64; beside float32 ones, p and g may be halves. A rate that is a
    tensor is where ``t`` is, on the device or on the CPU.
    """
    p, g, m, u, t, lr, b1, b2, eps, weight_decay, floor, *_ = leaf
    if not (available(m.device) and type(m) in memory.PLAIN and m.dtype in numerics.REAL):
        return False
    flat = m.layout == torch.strided and m.is_contiguous()
    kinds = {m.dtype, *numerics.HALF} if m.dtype == torch.float32 else {m.dtype}
    return (
        (flat or (m.layout == torch.strided and memory.is_dense(m)))
        and not m.is_neg()
        and u.dtype == m.dtype
        and _fits(u, m, flat, kinds)
        and _fits(p, m, flat, kinds)
        and _fits(g, m, flat, kinds)
        and _is_scalar(t)
        and (t.is_cpu or t.device == m.device)
        and floor is None
        and (isinstance(lr, _NUMBER) or (_is_scalar(lr) and lr.device == t.device))
        and isinstance(b1, _NUMBER)
        and isinstance(b2, _NUMBER)
        and isinstance(eps, _NUMBER)
        and isinstance(weight_decay, _NUMBER)
    )


def _fits(x: Any, like: Tensor, flat: bool, kinds: set[torch.dtype]) -> bool:
    """Whether ``x`` is plain memory of one of ``kinds`` in the layout of ``like``."""
    return (
        type(x) in memory.PLAIN
        and x.dtype in kinds
        and x.device == like.device
        and x.shape == like.shape
        and x.layout == torch.strided
        and not x.is_neg()
        and (x.is_contiguous() if flat else x.stride() == like.stride())
    )


def _is_scalar(x: Any) -> bool:
    return type(x) in memory.PLAIN and x.dtype in numerics.REAL and x.dim() == 0


def write(leaves: Sequence[AdamaxLeaf]) -> bool:
    """Step leaves that ``takes`` accepts over their p, m, u and t.

    False, with nothing written, if tensors share memory, so that the order of writes counts; if the
    kernels do not hold here; or if the graph that is captured cannot hold the step: because ``t``
    is on the CPU, or because no step like it was taken before, which makes kernels and buffers.
    """
    on_cuda = any(leaf.m.is_cuda for leaf in leaves)
    capturing = on_cuda and torch.cuda.is_current_stream_capturing()
    if capturing and any(_is_at_hand(leaf.t) for leaf in leaves):
        return False
    groups = _grouped(leaves)
    if not all(_is_proven(common, leaves[0].maximize, capturing) for common in groups):
        return False
    return _step(groups, capturing)


def report() -> dict[str, str]:
    """Whether the kernels run on the current device, for some dtypes of p, and why not."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    why = _obstacle(device)
    answers = {}
    for p in (*numerics.REAL, *numerics.HALF):
        m = torch.float32 if p in numerics.HALF else p
        common = Common(device, p, p, m, torch.float64, None, 0, *[0.0] * 6)
        holds = why is None and _is_proven(common, maximize=False, capturing=False)
        reason = why or "the rule is not met on this machine"
        answers[str(p).removeprefix("torch.")] = "yes" if holds else f"no: {reason}"
    return answers


def _is_proven(common: Common, maximize: bool, capturing: bool) -> bool:
    """Whether the form of the kernels for ``common`` holds; tried once, and never in a capture."""
    form = _form(common, maximize)
    if form not in _proven and not capturing:
        _proven[form] = proof.holds(common, maximize, _try)
    return _proven.get(form, False)


def _try(leaf: AdamaxLeaf) -> bool:
    if leaf.p.is_cuda and kernel.is_interpreted():
        return False  # addresses on the device are none to the interpreter
    return _step(_grouped([leaf]), capturing=False)


def _grouped(leaves: Sequence[AdamaxLeaf]) -> dict[Common, list[AdamaxLeaf]]:
    """The leaves by what those of one launch share."""
    groups: dict[Common, list[AdamaxLeaf]] = defaultdict(list)
    known: dict[Any, float] = {}
    for leaf in leaves:
        groups[_common(leaf, known)].append(leaf)
    return groups


def _step(groups: dict[Common, list[AdamaxLeaf]], capturing: bool) -> bool:
    """``write``, by kernels that may be unproven."""
    tables = table.place(groups, capturing)
    if tables is None:
        return False
    leaves = list(chain.from_iterable(groups.values()))
    torch.autograd.graph.increment_version(  # before the write, since an exception may follow it
        [x for leaf in leaves for x in (leaf.p, leaf.m, leaf.u, leaf.t)]
    )
    for common, placed in zip(groups, tables, strict=True):
        _launch(common, *placed, leaves[0].maximize)
    at_hand = [leaf.t for leaf in leaves if _is_at_hand(leaf.t)]
    if at_hand:
        foreach.add_(at_hand, torch.ones((), device="cpu"), alpha=1.0)
    return True


def _is_at_hand(t: Tensor) -> bool:
    """Whether ``t`` can be read without waiting for a device."""
    return t.is_cpu


def _common(leaf: AdamaxLeaf, known: dict[Any, float]) -> Common:
    p, g, m, _, t, lr, b1, b2, eps, weight_decay, *_ = leaf
    decays = 0 if weight_decay == 0 else 2 if leaf.decoupled else 1
    scale, t_type, lr_type, number = 0.0, t.dtype, None, 0.0
    factor = weight_decay
    if _is_at_hand(t):
        t_type = None
        key = t.item(), t.dtype, b1, id(lr) if isinstance(lr, Tensor) else lr
        if key not in known:
            known[key] = -float(numerics.bias_corrected(lr, b1, t + 1))
        scale = known[key]
        factor = -(lr * weight_decay) if decays == 2 else weight_decay
    elif isinstance(lr, Tensor):
        lr_type = lr.dtype
    else:
        number = float(lr)
    numbers = number, scale, float(factor), float(b1), float(b2), float(eps)
    return Common(m.device, p.dtype, g.dtype, m.dtype, t_type, lr_type, decays, *numbers)


def _form(common: Common, maximize: bool) -> Any:
    """What the compiled kernels of one step differ by from those of another."""
    return (*common[:7], maximize)


def _launch(common: Common, rows: Tensor, blocks: Tensor, maximize: bool) -> None:
    device, p, g, m, t, lr_type, decays, lr, scale, decay, b1, b2, eps = common
    count, step = kernel.compiled()
    size, options, n = kernel.BLOCK, kernel.OPTIONS, len(rows) // kernel.ROW
    scales = rows
    with torch.cuda.device(device if device.type == "cuda" else -1):
        if t is not None:
            scales = rows.new_empty(2 * n, dtype=torch.float64)
            many = kernel.LEAVES
            kinds = kernel.named(t), kernel.named(lr_type)
            rates = lr, b1, decay
            count[(-(-n // many),)](rows, scales, n, *rates, *kinds, decays == 2, many, **options)
        if len(blocks):
            kinds = tuple(map(kernel.named, (p, g, m)))
            numbers = scale, decay, 1 - b1, b2, eps
            flags = decays, maximize, t is not None
            step[(len(blocks),)](rows, blocks, scales, n, *numbers, *kinds, *flags, size, **options)
