"""Where the tensors of a step lie, as a table in the memory of their device.

``source.py`` says what a row is. Beside the rows lies a list of blocks, one for each program of the
launch.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import kernel
from .kernel import Kernels

_LIMIT = 64  # tables kept for later steps

_lock = Lock()  # around what is below
_tables: OrderedDict[Any, Tensor] = OrderedDict()
_spares: dict[Any, Tensor] = {}  # for each table a pinned buffer of its size, for a graph
_captured: list[Tensor] = []  # pinned buffers from which graphs copy at every replay


class Leaf(NamedTuple):
    """A leaf as its kernels take it."""

    kernels: Kernels
    columns: list[Tensor]
    counters: list[Tensor]
    numbers: list[Any]  # those that are no tensors are handed over

    def written(self) -> list[Tensor]:
        """The columns that a step writes."""
        return [self.columns[k] for k in self.kernels.lowered.program.of]


class Common(NamedTuple):
    """What the leaves of one launch share."""

    device: torch.device
    kernels: Kernels
    counted: bool  # whether counters are on the device
    numbers: tuple[float, ...]  # of ``count``, or of ``step`` where the counters are at hand
    after: tuple[float, ...]  # the counters after the step, where they are at hand


def place(groups: dict[Common, list[Leaf]], capturing: bool) -> list[tuple[Tensor, Tensor]] | None:
    """Return the rows and the blocks of each group, on its device.

    None if tensors share memory, so that the order of writes counts, or a graph that is captured
    cannot hold the table. The rows of all groups are one table. A table that is kept holds tensors
    that are known to lie apart, whichever group they are in.

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
            sizes = row[common.kernels.width - 2 :: common.kernels.width]
            table, blocks = tables[common.device], put(common.device, _blocks, sizes)
            if table is None or blocks is None:
                return None
            placed.append((table[start : start + len(row)], blocks))
            start += len(row)
    return placed


def _row(leaf: Leaf) -> list[int]:
    """The row of a leaf, see ``source``."""
    tensors = [*leaf.columns, *leaf.counters, *(x for x in leaf.numbers if isinstance(x, Tensor))]
    row = [x.data_ptr() for x in tensors]
    n = leaf.columns[0].numel()
    aligned = not any(x % 16 for x in row[: len(leaf.columns)])
    return [*row, n, n - n % kernel.BLOCK if aligned else 0]


def _table(row: tuple[int, ...]) -> Tensor:
    return torch.tensor(row, dtype=torch.int64, device="cpu")


def _blocks(sizes: tuple[int, ...]) -> Tensor:
    """For each block of each tensor, the row of the tensor and, in the low half, the block."""
    counts = -(-_table(sizes) // kernel.BLOCK)
    rows = torch.arange(len(sizes), device="cpu").repeat_interleave(counts)
    blocks = torch.arange(len(rows), device="cpu") - (counts.cumsum(0) - counts)[rows]
    return rows << 32 | blocks


def _are_apart(groups: dict[Common, list[Leaf]], rows: list[tuple[int, ...]]) -> bool:
    """Whether no tensor that is written shares memory with another."""
    starts, lengths, writes = [], [], []
    for common, row in zip(groups, rows, strict=True):
        kernels = common.kernels
        table = _table(row).view(-1, kernels.width)
        many, others = len(kernels.sizes), kernels.width - len(kernels.sizes) - 2
        start, n = table[:, :-2], table[:, -2:-1]
        sizes = torch.tensor(kernels.sizes, device="cpu")
        starts.append(start)
        lengths.append(torch.cat([n * sizes, torch.ones_like(start[:, :others])], 1))
        program = kernels.lowered.program
        flags = [k in program.of for k in range(many)]
        flags += [k < len(program.wide) for k in range(others)]
        writes.append(torch.tensor(flags, device="cpu").expand_as(start))
    start, length, written = (
        torch.cat([x.flatten() for x in y]) for y in (starts, lengths, writes)
    )
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
