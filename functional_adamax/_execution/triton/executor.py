"""Executor: the rule of any method on CUDA devices, in one pass over the memory of many tensors.

Its kernels are made of the program of the rule, see ``source.py``, and find their tensors in a
table of addresses on the device. Where step counters and rates are tensors there, a small launch
before counts and computes what is one number for a leaf, so that nothing waits for the device and a
CUDA graph can hold the step.

They have the bits of the rule on the CPU. Each is held to that by ``proof.py``, when first used,
and stays off if it fails; torch's own kernels on a device are made by another compiler.
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

from ..._core import memory
from ..._core.private import dispatch, foreach
from ..program.operations import TORCH
from ..program.programs import Family, lowered_for, rates_of, shared_out
from ..work import Work
from . import kernel, proof, table
from .kernel import Kernels
from .table import Common, Leaf

_DEVICE = "cuda"
_proven: dict[tuple[Kernels, torch.device, bool], bool] = {}  # whether kernels are used


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
    return None if dispatch.IS_THERE else f"torch {torch.__version__} has no dispatch modes"


def report() -> str:
    """Whether kernels are made for the current device, and why not."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    why = _obstacle(device)
    return "yes" if why is None else f"no: {why}"


def why_not(work: Work, i: int) -> str | None:
    """Why a leaf on a CUDA device has no kernels there, or None if it has, or is elsewhere."""
    device = work.g[i].device
    if device.type != "cuda":
        return None
    found = _obstacle(device) or _kernels_for(work, i)[1]
    return found if isinstance(found, str) else None


def part(work: Work, where: list[int]) -> dict[int, Leaf]:
    """Return those of the leaves that are taken: in place, without waiting for their device."""
    found: dict[int, Leaf] = {}
    there = [i for i in where if isinstance(work.g[i], Tensor) and available(work.g[i].device)]
    for kernels, places in shared_out(work, there, lambda i: _kernels_for(work, i)):
        for i in places:
            leaf = _leaf(work, i, kernels)
            if _is_taken(leaf):
                found[i] = leaf
    return found


def _kernels_for(work: Work, i: int) -> tuple[Family, Kernels | str]:
    """The kernels of a leaf, or why there are none."""
    device = work.g[i].device.type
    rates = rates_of(work, i)
    family, found = lowered_for(work, i, rates, add=True, checked=True, device=device)
    if family.reads - {"ndim"}:
        return family, "its rule asks for the shape of the leaf"
    return family, found if isinstance(found, str) else kernel.made(found)


def _leaf(work: Work, i: int, kernels: Kernels) -> Leaf:
    assert work.hyper is not None
    names = kernels.lowered.layout.columns
    own = {"g": work.g[i], "p": work.p[i], **{k: x[i] for k, x in work.moments.items()}}
    numbers = [work.hyper[name][i] for name in kernels.lowered.numbers]
    return Leaf(kernels, [own[name] for name in names], [work.t[i]], numbers)


def _is_taken(leaf: Leaf) -> bool:
    """Whether tensors of the right dtypes lie alike, and scalars where they can be read."""
    first, (t,) = leaf.columns[0], leaf.counters
    flat = first.is_contiguous()
    return (
        (flat or memory.is_dense(first))
        and all(
            x.device == first.device
            and x.shape == first.shape
            and (x.is_contiguous() if flat else x.stride() == first.stride())
            and not x.is_neg()
            for x in leaf.columns
        )
        and t.dim() == 0
        and (_is_at_hand(t) or t.device == first.device)
    )


def _is_at_hand(t: Tensor) -> bool:
    """Whether ``t`` can be read without waiting for a device."""
    return t.is_cpu


def write(leaves: Sequence[Leaf]) -> bool:
    """Step leaves that ``part`` takes over their tensors.

    False, with nothing written, if tensors share memory, so that the order of writes counts; if the
    kernels do not hold here; or if the graph that is captured cannot hold the step: because a
    counter is on the CPU, or because no step like it was taken before, which makes kernels and
    buffers.
    """
    on_cuda = any(leaf.columns[0].is_cuda for leaf in leaves)
    capturing = on_cuda and torch.cuda.is_current_stream_capturing()
    if capturing and any(_is_at_hand(t) for leaf in leaves for t in leaf.counters):
        return False
    groups = _grouped(leaves)
    return all(_is_proven(x, capturing) for x in groups) and _step(groups, capturing)


def _is_proven(common: Common, capturing: bool) -> bool:
    """Whether kernels hold; tried once, and never in a capture."""
    form = common.kernels, common.device, common.counted
    if form not in _proven and not capturing:
        _proven[form] = proof.holds(*form, _try)
    return _proven.get(form, False)


def _try(leaf: Leaf) -> bool:
    if leaf.columns[0].is_cuda and kernel.is_interpreted():
        return False  # addresses on the device are none to the interpreter
    return _step(_grouped([leaf]), capturing=False)


def _grouped(leaves: Sequence[Leaf]) -> dict[Common, list[Leaf]]:
    """The leaves by what those of one launch share."""
    groups: dict[Common, list[Leaf]] = defaultdict(list)
    known: dict[Any, Common] = {}
    for leaf in leaves:
        device = leaf.columns[0].device
        if _is_at_hand(leaf.counters[0]):
            given = *map(float, leaf.counters), *map(float, leaf.numbers)
            key = leaf.kernels, device, given
            if key not in known:
                known[key] = Common(device, leaf.kernels, False, *_computed(leaf.kernels, given))
            groups[known[key]].append(leaf)
        else:
            handed = tuple(float(x) for x in leaf.numbers if not isinstance(x, Tensor))
            groups[Common(device, leaf.kernels, True, handed, ())].append(leaf)
    return groups


def _computed(
    kernels: Kernels, given: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What enters vectors, and the new counters, of counters and numbers."""
    program = kernels.lowered.program
    values = [*program.constants, *given]
    for x in program.uniform:
        dtype = torch.float32 if x.single else torch.float64
        operands = [torch.tensor(values[k], dtype=dtype, device="cpu") for k in x.operands]
        values.append(float(TORCH[x.op](*operands)))
    return tuple(values[k] for k in program.sources), tuple(values[k] for k in program.counts)


def _step(groups: dict[Common, list[Leaf]], capturing: bool) -> bool:
    """``write``, by kernels that may be unproven."""
    tables = table.place(groups, capturing)
    if tables is None:
        return False
    leaves = list(chain.from_iterable(groups.values()))
    torch.autograd.graph.increment_version(  # before the write, since an exception may follow it
        [x for leaf in leaves for x in (*leaf.written(), *leaf.counters)]
    )
    for common, placed in zip(groups, tables, strict=True):
        _launch(common, *placed)
    for common, group in groups.items():
        for k, value in enumerate(common.after):
            counters = [leaf.counters[k] for leaf in group]
            new = torch.tensor(value, dtype=counters[0].dtype, device="cpu")
            foreach.copy_(counters, [new] * len(counters))
    return True


def _launch(common: Common, rows: Tensor, blocks: Tensor) -> None:
    kernels, many = common.kernels, kernel.LEAVES
    n, scales, numbers = len(rows) // kernels.width, rows, common.numbers
    with torch.cuda.device(common.device if common.device.type == "cuda" else -1):
        if common.counted:
            spread = len(kernels.lowered.program.sources)
            scales = rows.new_empty(spread * n, dtype=torch.float64)
            kernels.count[(-(-n // many),)](rows, scales, n, *numbers, many, **kernel.OPTIONS)
            numbers = (0.0,) * spread
        if len(blocks):
            given = rows, blocks, scales, n, *numbers, common.counted, kernel.BLOCK
            kernels.step[(len(blocks),)](*given, **kernel.OPTIONS)
