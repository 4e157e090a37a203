"""Schedules with a warm-up: a line up from a small value, then constant or down again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .curve import Curve, Scalar, between, check_scalar, cosine, power, progress, scalar
from .formulas import linear_schedule


@dataclass(frozen=True, eq=False, repr=False)
class WarmupCosineDecay(Curve):
    """A line up, half a cosine down."""

    name: ClassVar[str] = "warmup_cosine_decay_schedule"

    init_value: Scalar
    peak_value: Scalar
    warmup_steps: Scalar
    decay_steps: Scalar
    end_value: Scalar
    exponent: Scalar

    def at(self, t: Tensor) -> Tensor:
        warmup, peak = scalar(self.warmup_steps, t), scalar(self.peak_value, t)
        to_go = 1 - progress(t, 0, warmup)
        left = 1 - progress(t, warmup, scalar(self.decay_steps, t) - warmup)
        up = between(scalar(self.init_value, t), peak, to_go)
        down = between(peak, scalar(self.end_value, t), power(cosine(left), self.exponent))
        return torch.where(t < warmup, up, down)


@dataclass(frozen=True, eq=False, repr=False)
class WarmupStableDecay(Curve):
    """A line up, a plateau, and the way down."""

    name: ClassVar[str] = "warmup_stable_decay_schedule"

    init_value: Scalar
    peak_value: Scalar
    warmup_steps: Scalar
    stable_steps: Scalar
    decay_steps: Scalar
    end_value: Scalar
    cooldown: str

    def at(self, t: Tensor) -> Tensor:
        warmup, peak = scalar(self.warmup_steps, t), scalar(self.peak_value, t)
        done = progress(t, warmup + scalar(self.stable_steps, t), self.decay_steps)
        left = 1 - done
        if self.cooldown == "1-sqrt":
            left = 1 - power(done, 0.5)
        elif self.cooldown == "cosine":
            left = cosine(left)
        up = between(scalar(self.init_value, t), peak, 1 - progress(t, 0, warmup))
        return torch.where(t < warmup, up, between(peak, scalar(self.end_value, t), left))


def warmup_constant_schedule(init_value: Scalar, peak_value: Scalar, warmup_steps: Scalar) -> Curve:
    """A line from ``init_value`` to ``peak_value`` in ``warmup_steps`` steps, constant from there.

    The same as ``linear_schedule``; without warm-up steps it is ``peak_value`` from the start
    (in optax it is ``init_value`` for ever).

    Example:
        >>> warmup_constant_schedule(0.0, 1.0, warmup_steps=4)(1)
        0.25
    """
    return linear_schedule(init_value, peak_value, warmup_steps)


def warmup_cosine_decay_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: Scalar,
    decay_steps: Scalar,
    end_value: Scalar = 0.0,
    exponent: Scalar = 1.0,
) -> Curve:
    """A line up to ``peak_value``, then half a period of a cosine down to ``end_value``.

        value(t) = init + (peak - init) * t / warmup                             for t < warmup
        value(t) = end + (peak - end) * ((1 + cos(pi x)) / 2) ^ exponent         from there,
                   x = min((t - warmup) / (decay_steps - warmup), 1)

    Args:
        init_value: the value at 0.
        peak_value: the value at ``warmup_steps``; 0 is allowed, and then ``end_value`` is
            reached all the same (in optax it is not).
        warmup_steps: length of the way up, in [0, inf).
        decay_steps: length of both ways together, in (warmup_steps, inf).
        end_value: the value from ``decay_steps`` on. Default: 0.
        exponent: in (0, inf). Default: 1.

    Returns and errors are those of ``polynomial_schedule``.

    Example:
        >>> schedule = warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=10, decay_steps=110)
        >>> [round(schedule(count), 3) for count in (0, 5, 10, 60, 110)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    _check_warmup(init_value, peak_value, warmup_steps)
    low = 0 if isinstance(warmup_steps, Tensor) else warmup_steps
    check_scalar("decay_steps", decay_steps, low, above=True)
    check_scalar("end_value", end_value)
    check_scalar("exponent", exponent, 0, above=True)
    return WarmupCosineDecay(init_value, peak_value, warmup_steps, decay_steps, end_value, exponent)


def warmup_stable_decay_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: Scalar,
    stable_steps: Scalar,
    decay_steps: Scalar,
    end_value: Scalar = 0.0,
    *,
    cooldown: str = "linear",
) -> Curve:
    """A line up to ``peak_value``, a plateau, and a short way down to ``end_value``.

        value(t) = end + (peak - end) * w(x)     on the way down, with x in [0, 1] the part done
        w(x) = 1 - x,  1 - sqrt(x)  or  (1 + cos(pi x)) / 2

    The plateau can be as long as one likes, and be branched off at any point.

    Args:
        init_value: the value at 0.
        peak_value: the value of the plateau.
        warmup_steps: length of the way up, in [0, inf).
        stable_steps: length of the plateau, in [0, inf).
        decay_steps: length of the way down, in [0, inf). Unlike in
            ``warmup_cosine_decay_schedule`` the three lengths add up.
        end_value: the last value. Default: 0.
        cooldown: "linear", "1-sqrt" or "cosine". Default: "linear".

    Returns and errors are those of ``polynomial_schedule``.

    Example:
        >>> schedule = warmup_stable_decay_schedule(0.0, 1.0, 10, 80, 10, cooldown="1-sqrt")
        >>> [round(schedule(count), 3) for count in (0, 5, 50, 90, 95, 100)]
        [0.0, 0.5, 1.0, 1.0, 0.293, 0.0]

    Source: Hu et al. 2024, arXiv 2404.06395; the cool-down "1-sqrt": Hägele et al. 2024,
    arXiv 2405.18392.
    """
    _check_warmup(init_value, peak_value, warmup_steps)
    check_scalar("stable_steps", stable_steps, 0)
    check_scalar("decay_steps", decay_steps, 0)
    check_scalar("end_value", end_value)
    if cooldown not in ("linear", "1-sqrt", "cosine"):
        raise ValueError(f'cooldown must be "linear", "1-sqrt" or "cosine", got {cooldown!r}')
    return WarmupStableDecay(
        init_value, peak_value, warmup_steps, stable_steps, decay_steps, end_value, cooldown
    )


def _check_warmup(init_value: Scalar, peak_value: Scalar, warmup_steps: Scalar) -> None:
    check_scalar("init_value", init_value)
    check_scalar("peak_value", peak_value)
    check_scalar("warmup_steps", warmup_steps, 0)
