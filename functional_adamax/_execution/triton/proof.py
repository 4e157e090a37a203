"""Whether the kernels of ``executor.py`` have the bits of the rule, on the device they run on.

They step a few thousand random elements of all magnitudes, special values among them, in whole
blocks and beside them. The rule is taken on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..program.proof import same_bits
from ..program.record import alone
from .kernel import Kernels
from .table import Leaf

_SPECIAL = (0.0, -0.0, 1e-45, 1e-30, 1e30, torch.inf, -torch.inf, torch.nan, 1.0, -1.0)
_NUMBERS = (0.3, 0.9, 0.01, 0.7, 0.1, 0.999)  # of a step, in turn


def holds(
    kernels: Kernels, device: torch.device, counted: bool, step: Callable[[Leaf], bool]
) -> bool:
    """Whether ``step`` steps leaves in place as the rule does; ``counted``, with t on the device.

    Not if it raises, for want of a compiler for example.
    """
    try:
        with torch.no_grad(), _waiting(device):
            return all(_agrees(x, step) for x in _trials(kernels, device, counted))
    except Exception:  # whatever it is, torch's own kernels are there
        return False


@contextmanager
def _waiting(device: torch.device) -> Iterator[None]:
    """Wait for the device, where that is made an error too."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _trials(kernels: Kernels, device: torch.device, counted: bool) -> Iterator[Leaf]:
    lowered, place = kernels.lowered, device if counted else torch.device("cpu")
    generator = torch.Generator("cpu").manual_seed(0)
    columns = lowered.kind.columns
    x, magnitude = torch.randn(
        2, len(columns), 3000, generator=generator, dtype=torch.float64, device="cpu"
    )
    pairs = torch.tensor(list(product(_SPECIAL, _SPECIAL)), dtype=x.dtype, device="cpu")
    special = torch.stack([pairs[:, k % 2].roll(k // 2) for k in range(len(columns))])
    rows = torch.cat([x * 10 ** (4 * magnitude), special], 1)
    for count, start in ((0.0, 0), (7.0, 1)):  # the second is not aligned, and of one sign
        if start:
            rows[1:] = rows[1:].abs()
        tensors = [
            row.to(device, dtype, copy=True)[start:]
            for row, (_, dtype) in zip(rows, columns, strict=True)
        ]
        t = torch.tensor(count, dtype=lowered.kind.step, device=place)
        rates, numbers = dict(lowered.kind.rates), []
        for k, name in enumerate(lowered.numbers):
            number, kind = _NUMBERS[(k + start) % len(_NUMBERS)], rates[name]
            numbers.append(
                number if kind is float else torch.tensor(number, dtype=kind, device=place)
            )
        shape = lowered.shape and (-1, *lowered.shape[1:])
        tensors = [y.view(shape) if shape else y[0] for y in tensors]
        yield Leaf(kernels, tensors, [t], numbers)


def _agrees(leaf: Leaf, step: Callable[[Leaf], bool]) -> bool:
    """Whether a step in place has the bits of the rule."""
    lowered = leaf.kernels.lowered
    layout, (t,) = lowered.layout, leaf.counters
    inputs: dict[str, Any] = dict(zip(layout.columns, _on_cpu(leaf.columns), strict=True))
    inputs |= zip(layout.numbers, _on_cpu(leaf.numbers), strict=True)
    for name, _ in layout.counters:
        (inputs[name],) = _on_cpu([t])
    wanted = alone(partial(lowered.source.rule, inputs), lowered.kind.context)
    if not step(leaf):
        return False
    after = [name for _, name in layout.counters]
    outputs = zip([name for name, _ in layout.outputs], _on_cpu(leaf.written()), strict=True)
    return all(torch.equal(wanted[name], t.cpu()) for name in after) and all(
        same_bits(x, wanted[name], lowered.is_signed) for name, x in outputs
    )


def _on_cpu(items: list[Any]) -> list[Any]:
    return [x.to("cpu", copy=True) if isinstance(x, Tensor) else x for x in items]
