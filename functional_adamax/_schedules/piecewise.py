"""Schedules with boundaries: constant or interpolated between them, and one cycle.

A boundary is a count; at each one the value has been multiplied by one more scale.
Boundaries need not be whole numbers, so that a cycle can be given in parts of its
length, and these parts can be batched or differentiated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from .curve import Curve, Scalar, between, check_scalar, cosine, progress, scalar

Pieces: TypeAlias = Mapping[int, Scalar] | Iterable[tuple[Scalar, Scalar]] | None
"""Scales by boundary: a dict, or pairs (boundary, scale) in increasing order."""


@dataclass(frozen=True, eq=False, repr=False)
class PiecewiseConstant(Curve):
    """Scaled at each boundary."""

    name: ClassVar[str] = "piecewise_constant_schedule"

    init_value: Scalar
    boundaries_and_scales: tuple[tuple[Scalar, Scalar], ...]

    def at(self, t: Tensor) -> Tensor:
        value = scalar(self.init_value, t)
        for boundary, scale in self.boundaries_and_scales:
            value = torch.where(t >= scalar(boundary, t), value * scalar(scale, t), value)
        return value


@dataclass(frozen=True, eq=False, repr=False)
class PiecewiseInterpolate(Curve):
    """On its way from one boundary to the next."""

    name: ClassVar[str] = "piecewise_interpolate_schedule"

    interpolate_type: str
    init_value: Scalar
    boundaries_and_scales: tuple[tuple[Scalar, Scalar], ...]

    def at(self, t: Tensor) -> Tensor:
        value = start = scalar(self.init_value, t)
        begin = torch.zeros_like(t)
        for boundary, scale in self.boundaries_and_scales:
            boundary, end = scalar(boundary, t), start * scalar(scale, t)
            remaining = 1 - progress(t, begin, boundary - begin)
            if self.interpolate_type == "cosine":
                remaining = cosine(remaining)
            value = torch.where(t >= begin, between(start, end, remaining), value)
            start, begin = end, boundary
        return value


def piecewise_constant_schedule(init_value: Scalar, boundaries_and_scales: Pieces = None) -> Curve:
    """Scaled by a factor at each boundary.

        value(t) = init * product of the scales of all boundaries <= t

    Args:
        init_value: the value before the first boundary.
        boundaries_and_scales: a dict from boundary to scale, or pairs of them; scales in
            [0, inf). Default: None, no boundary.

    Returns and errors are those of ``polynomial_schedule``.

    Example:
        >>> piecewise_constant_schedule(1.0, {10: 0.5, 20: 0.5})(20)
        0.25
    """
    check_scalar("init_value", init_value)
    return PiecewiseConstant(init_value, pieces(boundaries_and_scales))


def piecewise_interpolate_schedule(
    interpolate_type: str, init_value: Scalar, boundaries_and_scales: Pieces = None
) -> Curve:
    """From the value of one boundary to that of the next, in lines or half cosines.

    The value at a boundary is ``init_value`` times the scales up to that boundary; it is
    ``init_value`` at 0, and constant behind the last boundary.

    Args:
        interpolate_type: "linear" or "cosine".
        init_value: the value at 0.
        boundaries_and_scales: a dict from boundary to scale, or pairs of them; scales in
            [0, inf). Default: None, no boundary.

    Returns and errors are those of ``polynomial_schedule``.

    Example:
        >>> piecewise_interpolate_schedule("linear", 1.0, {10: 0.5, 20: 0.5})(15)
        0.375
    """
    if interpolate_type not in ("linear", "cosine"):
        raise ValueError(f'interpolate_type must be "linear" or "cosine", got {interpolate_type!r}')
    check_scalar("init_value", init_value)
    return PiecewiseInterpolate(interpolate_type, init_value, pieces(boundaries_and_scales))


def linear_onecycle_schedule(
    transition_steps: Scalar,
    peak_value: Scalar,
    pct_start: Scalar = 0.3,
    pct_final: Scalar = 0.85,
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 1e4,
) -> Curve:
    """One cycle of three lines: up, back, and down to a very small value.

    The values are ``peak / div_factor`` at 0, ``peak`` at ``pct_start * steps``,
    ``peak / div_factor`` again at ``pct_final * steps``, and
    ``peak / (div_factor * final_div_factor)`` at ``steps`` and beyond.

    Args:
        transition_steps: length of the cycle, in (0, inf).
        peak_value: the highest value.
        pct_start: where the peak is, in [0, 1], as a part of the cycle. Default: 0.3. Unlike in
            optax, which cuts it to a whole step, the peak may lie between two steps.
        pct_final: where the way back ends, in [pct_start, 1]. Default: 0.85.
        div_factor: peak by first value, in (0, inf). Default: 25.
        final_div_factor: first by last value, in (0, inf). Default: 1e4.

    Returns and errors are those of ``polynomial_schedule``. With n steps in all,
    ``torch.optim.lr_scheduler.OneCycleLR`` takes ``transition_steps`` to be n - 1.

    Example:
        >>> schedule = linear_onecycle_schedule(100, peak_value=1.0)
        >>> [round(schedule(count), 6) for count in (0, 15, 30, 85, 100)]
        [0.04, 0.52, 1.0, 0.04, 4e-06]

    Source: Smith & Topin 2017, arXiv 1708.07120.
    """
    _check_cycle(transition_steps, peak_value, pct_start, div_factor, final_div_factor)
    low = 0.0 if isinstance(pct_start, Tensor) else pct_start
    check_scalar("pct_final", pct_final, low, 1)
    boundaries = (
        (pct_start * transition_steps, div_factor),
        (pct_final * transition_steps, 1 / div_factor),
        (transition_steps, 1 / final_div_factor),
    )
    return PiecewiseInterpolate("linear", peak_value / div_factor, boundaries)


def cosine_onecycle_schedule(
    transition_steps: Scalar,
    peak_value: Scalar,
    pct_start: Scalar = 0.3,
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 1e4,
) -> Curve:
    """One cycle of two half cosines: up, and down to a very small value.

    The values are ``peak / div_factor`` at 0, ``peak`` at ``pct_start * steps``, and
    ``peak / (div_factor * final_div_factor)`` at ``steps`` and beyond.

    Args, returns and errors are those of ``linear_onecycle_schedule``.

    Example:
        >>> schedule = cosine_onecycle_schedule(100, peak_value=1.0)
        >>> [round(schedule(count), 6) for count in (0, 15, 30, 100)]
        [0.04, 0.52, 1.0, 4e-06]

    Source: Smith & Topin 2017, arXiv 1708.07120; the cosines are fastai's.
    """
    _check_cycle(transition_steps, peak_value, pct_start, div_factor, final_div_factor)
    boundaries = (
        (pct_start * transition_steps, div_factor),
        (transition_steps, 1 / (div_factor * final_div_factor)),
    )
    return PiecewiseInterpolate("cosine", peak_value / div_factor, boundaries)


def _check_cycle(
    steps: Scalar, peak: Scalar, start: Scalar, div_factor: Scalar, final_div_factor: Scalar
) -> None:
    check_scalar("transition_steps", steps, 0, above=True)
    check_scalar("peak_value", peak)
    check_scalar("pct_start", start, 0, 1)
    check_scalar("div_factor", div_factor, 0, above=True)
    check_scalar("final_div_factor", final_div_factor, 0, above=True)


def pieces(given: Pieces) -> tuple[tuple[Scalar, Scalar], ...]:
    """Return checked pairs (boundary, scale); those of a dict sorted."""
    name, pairs = "boundaries_and_scales", _pairs(given)
    previous: Any = 0
    for i, (boundary, scale) in enumerate(pairs):
        check_scalar(f"boundary {i} of {name}", boundary, 0)
        check_scalar(f"scale {i} of {name}", scale, 0)
        if not isinstance(boundary, Tensor):
            if boundary < previous:
                raise ValueError(f"{name} must be in order, got {boundary} behind {previous}")
            previous = boundary
    return pairs


def _pairs(given: Any) -> tuple[tuple[Scalar, Scalar], ...]:
    if given is None:
        return ()
    if isinstance(given, Mapping):
        return tuple(sorted(given.items()))
    pairs = tuple(given)
    for pair in pairs:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(f"boundaries_and_scales must be a dict or pairs, got {pair!r} in it")
    return tuple((boundary, scale) for boundary, scale in pairs)
