"""Where the tensors of a step lie, as a table in the memory of their device.

``kernel.py`` says what a row is. Beside the rows lies a list of blocks, one for each
program of the launch.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adamax_rule import AdamaxLeaf
from . import kernel

_LIMIT = 64  # tables kept for later steps

_lock = Lock()  # around what is below
_tables: OrderedDict[Any, Tensor] = OrderedDict()
_spares: dict[Any, Tensor] = {}  # for each table a pinned buffer of its size, for a graph
_captured: list[Tensor] = []  # pinned buffers from which graphs copy at every replay


class Common(NamedTuple):
    """What the leaves of one launch share."""

    device: torch.device
    p: torch.dtype
    g: torch.dtype
    m: torch.dtype
    t: torch.dtype | None  # None where t is on the CPU, and the scale is known
    lr_type: torch.dtype | None  # None where lr is a number
    decays: int  # 0, or 1 for a coupled and 2 for a decoupled decay
    lr: float
    scale: float
    decay: float  # the factor of p, or the weight decay where the scale is not known
    b1: float
    b2: float
    eps: float


def place(
    groups: dict[Common, list[AdamaxLeaf]], capturing: bool
) -> list[tuple[Tensor, Tensor]] | None:
    """Return the rows and the blocks of each group, on its device, or None where ``write`` fails.

    The rows of all groups are one table. A table that is kept holds tensors that are known to lie
    apart, whichever group they are in.

    Outside of a graph they are kept by the addresses in them and the stream that copied them. A
    graph gets its own, whatever is kept: at each replay it copies them into memory of its pool,
    from a pinned buffer that was made before the capture and is never used again.
    """
    rows = [tuple(chain.from_iterable(map(_row, group))) for group in groups.values()]
    together = tuple(chain.from_iterable(rows))
    devices = {common.device for common in groups}
    put = _carried if capturing else _kept
    with _lock, torch.inference_mode(False):  # else a buffer could not be written outside
        known = not capturing and all(_key(x, _table, together) in _tables for x in devices)
        if not known and not _are_apart(groups, rows):
            return None
        tables = {device: put(device, _table, together) for device in devices}
        placed, start = [], 0
        for common, row in zip(groups, rows, strict=True):
            table, blocks = tables[common.device], put(common.device, _blocks, row[6::8])
            if table is None or blocks is None:
                return None
            placed.append((table[start : start + len(row)], blocks))
            start += len(row)
    return placed


def _row(leaf: AdamaxLeaf) -> tuple[int, ...]:
    """The row of a leaf, see ``kernel``."""
    p, g, m, u, t, lr, *_ = leaf
    at = p.data_ptr(), g.data_ptr(), m.data_ptr(), u.data_ptr()
    n = p.numel()
    whole = 0 if (at[0] | at[1] | at[2] | at[3]) % 16 else n - n % kernel.BLOCK
    return *at, t.data_ptr(), lr.data_ptr() if isinstance(lr, Tensor) else 0, n, whole


def _table(row: tuple[int, ...]) -> Tensor:
    return torch.tensor(row, dtype=torch.int64, device="cpu")


def _blocks(sizes: tuple[int, ...]) -> Tensor:
    """For each block of each tensor, the row of the tensor and, in the low half, the block."""
    counts = -(-_table(sizes) // kernel.BLOCK)
    rows = torch.arange(len(sizes), device="cpu").repeat_interleave(counts)
    blocks = torch.arange(len(rows), device="cpu") - (counts.cumsum(0) - counts)[rows]
    return rows << 32 | blocks


def _are_apart(groups: dict[Common, list[AdamaxLeaf]], rows: list[tuple[int, ...]]) -> bool:
    """Whether no tensor that is written shares memory with another."""
    starts, lengths = [], []
    for common, row in zip(groups, rows, strict=True):
        table = _table(row).view(-1, kernel.ROW)
        sizes = [x.itemsize for x in (common.p, common.g, common.m, common.m)]
        moved = table[:, 6:7] * torch.tensor(sizes, device="cpu")
        starts.append(table[:, :6])
        lengths.append(torch.cat([moved, torch.ones_like(table[:, :2])], 1))
    start, length = torch.cat(starts), torch.cat(lengths)
    written = torch.tensor([True, False, True, True, True, False], device="cpu").expand_as(start)
    there = (length > 0) & (start != 0)
    start, order = start[there].sort()
    end, written = start + length[there][order], written[there][order]
    reached = end.cummax(0).values[:-1]
    overwritten = (end * written).cummax(0).values[:-1]
    return not bool(((start[1:] < overwritten) | (written[1:] & (start[1:] < reached))).any())


def _key(device: torch.device, make: Any, numbers: tuple[int, ...]) -> Any:
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return device, stream, make, numbers


def _kept(device: torch.device, make: Any, numbers: tuple[int, ...]) -> Tensor:
    """Return ``make(numbers)`` on the device, as it is kept or new."""
    key = _key(device, make, numbers)
    if key not in _tables:
        host = make(numbers)
        host = host.pin_memory() if device.type == "cuda" else host
        _tables[key] = host.to(device, non_blocking=True)
        if len(_tables) > _LIMIT:
            _spares.pop(_tables.popitem(last=False)[0], None)
    if key not in _spares and device.type == "cuda":
        size = _tables[key].shape
        _spares[key] = torch.empty(size, dtype=torch.int64, device="cpu", pin_memory=True)
    _tables.move_to_end(key)
    return _tables[key]


def _carried(device: torch.device, make: Any, numbers: tuple[int, ...]) -> Tensor | None:
    """Return ``make(numbers)`` as the graph that is captured will copy it to the device."""
    host = make(numbers)
    fitting = [key for key, spare in _spares.items() if len(spare) >= len(host)]
    if not fitting:
        return None
    spare = _spares.pop(min(fitting, key=lambda key: len(_spares[key])))
    _captured.append(spare)
    pinned = spare[: len(host)].copy_(host)
    return torch.empty_like(host, device=device).copy_(pinned, non_blocking=True)
