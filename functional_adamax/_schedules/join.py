"""Schedules one after another: joined at given counts, and with restarts.

Each part sees only counts of its own segment, so that no part is asked for a value,
or a derivative, where it is not meant to be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._core import numerics
from .curve import Curve, Scalar, check_scalar, scalar
from .formulas import exponential_decay, linear_schedule
from .warmup import warmup_cosine_decay_schedule


@dataclass(frozen=True, eq=False, repr=False)
class Join(Curve):
    """One schedule after another."""

    name: ClassVar[str] = "join_schedules"

    schedules: tuple[Callable[[Tensor], Any], ...]
    boundaries: tuple[Scalar, ...]

    def evaluate(self, count: Tensor) -> Tensor:
        t = torch.zeros_like(super().evaluate(count))
        boundaries = [_like(b, count) for b in self.boundaries]
        value, begin = t, torch.zeros_like(count)
        for i, schedule in enumerate(self.schedules):
            local = count - begin if i == 0 else (count - begin).clamp(min=0)
            if i < len(boundaries):
                local = torch.minimum(local, boundaries[i] - begin)
            here = scalar(schedule(local), t)
            value = here if i == 0 else torch.where(count < begin, value, here)
            begin = boundaries[i] if i < len(boundaries) else begin
        return value

    def at(self, t: Tensor) -> Tensor:
        return t


def _like(boundary: Scalar, count: Tensor) -> Tensor:
    """A boundary as a tensor: an integer in the dtype of the count, which it leaves whole."""
    if isinstance(boundary, Tensor):
        return boundary.reshape(()).to(count.device)
    dtype = count.dtype if isinstance(boundary, int) else numerics.step_dtype(count.device)
    return torch.ones_like(count, dtype=dtype) * boundary


def join_schedules(
    schedules: Sequence[Callable[[Tensor], Any]], boundaries: Sequence[Scalar]
) -> Curve:
    """One schedule after another, each counting from the boundary at which it begins.

        value(t) = schedules[i](t - boundaries[i - 1])   for boundaries[i - 1] <= t < boundaries[i]

    Args:
        schedules: one or more schedules, or any functions of a 0-d tensor that return a number
            or a 0-d tensor. Each is called at every count, with the nearest one that lies
            between its boundaries (in optax, with counts below zero too).
        boundaries: the counts at which the next one begins, in order, in [0, inf); one fewer
            than ``schedules`` (optax drops what is too many).

    Returns:
        A schedule; at a number it gives a float if all parts are schedules of this library
        without tensors.

    Raises:
        ValueError: lengths that do not fit, or boundaries out of order.
        TypeError: a schedule that is not callable, or a boundary that is no number.

    Example:
        >>> schedule = join_schedules([linear_schedule(0.0, 1.0, 4), constant_schedule(1.0)], [4])
        >>> [schedule(count) for count in (0, 1, 4, 100)]
        [0.0, 0.25, 1.0, 1.0]
    """
    schedules, boundaries = tuple(schedules), tuple(boundaries)
    if not schedules or len(boundaries) != len(schedules) - 1:
        raise ValueError(
            "join_schedules needs one boundary between any two schedules, got "
            f"{len(schedules)} schedules and {len(boundaries)} boundaries"
        )
    for i, schedule in enumerate(schedules):
        if not callable(schedule):
            raise TypeError(f"schedules[{i}] must be a function of a count, got {schedule!r}")
    previous: Any = 0
    for i, boundary in enumerate(boundaries):
        low = 0 if isinstance(boundary, Tensor) else previous
        check_scalar(f"boundaries[{i}]", boundary, low)
        previous = previous if isinstance(boundary, Tensor) else boundary
    return Join(schedules, boundaries)


def warmup_exponential_decay_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: Scalar,
    transition_steps: Scalar,
    decay_rate: Scalar,
    transition_begin: Scalar = 0,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> Curve:
    """A line up to ``peak_value`` in ``warmup_steps`` steps, then ``exponential_decay`` from it.

    ``transition_begin`` counts from the end of the warm-up. The other arguments, returns and
    errors are those of ``exponential_decay``.

    Example:
        >>> schedule = warmup_exponential_decay_schedule(
        ...     0.0, 1.0, warmup_steps=4, transition_steps=10, decay_rate=0.5
        ... )
        >>> [schedule(count) for count in (0, 2, 4, 14)]
        [0.0, 0.5, 1.0, 0.5]
    """
    decay = exponential_decay(
        peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value
    )
    return join_schedules(
        [linear_schedule(init_value, peak_value, warmup_steps), decay], [warmup_steps]
    )


def sgdr_schedule(cosine_kwargs: Iterable[Mapping[str, Scalar]]) -> Curve:
    """Cosine decay with warm restarts: one ``warmup_cosine_decay_schedule`` after another.

    Args:
        cosine_kwargs: for each cycle the arguments of its ``warmup_cosine_decay_schedule``;
            its ``decay_steps`` is the length of the cycle.

    Returns:
        A schedule. Behind the last cycle it keeps the last value.

    Example:
        >>> cycle = {"init_value": 1.0, "peak_value": 1.0, "warmup_steps": 0}
        >>> schedule = sgdr_schedule([{**cycle, "decay_steps": n} for n in (10, 20)])
        >>> [round(schedule(count), 3) for count in (0, 5, 10, 20, 30)]
        [1.0, 0.5, 1.0, 0.5, 0.0]

    Source: Loshchilov & Hutter 2017, arXiv 1608.03983.
    """
    cycles = [dict(kwargs) for kwargs in cosine_kwargs]
    schedules = [warmup_cosine_decay_schedule(**kwargs) for kwargs in cycles]
    ends: list[Scalar] = []
    for kwargs in cycles[:-1]:
        ends.append(kwargs["decay_steps"] + (ends[-1] if ends else 0))
    return join_schedules(schedules, ends)
