"""Schedules of one formula: constant, polynomial, exponential, cosine.

Each is a function of the number of updates so far, for ``lr=`` and wherever a
schedule is taken; ``curve.py`` says what it returns. ``piecewise.py`` has those
with boundaries, ``warmup.py`` and ``join.py`` make longer ones. Names and arguments
are those of optax; where optax falls back to a constant for a senseless argument,
these raise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .curve import (
    Curve,
    Scalar,
    between,
    check_scalar,
    cosine,
    one_by_one,
    power,
    progress,
    scalar,
)


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Curve):
    """The same value at every count."""

    name: ClassVar[str] = "constant_schedule"

    value: Scalar

    def at(self, t: Tensor) -> Tensor:
        return scalar(self.value, t)


@dataclass(frozen=True, eq=False, repr=False)
class Polynomial(Curve):
    """From one value to another along a power of the way that remains."""

    name: ClassVar[str] = "polynomial_schedule"

    init_value: Scalar
    end_value: Scalar
    power: Scalar
    transition_steps: Scalar
    transition_begin: Scalar

    def at(self, t: Tensor) -> Tensor:
        remaining = 1 - progress(t, self.transition_begin, self.transition_steps)
        start, end = scalar(self.init_value, t), scalar(self.end_value, t)
        return between(start, end, power(remaining, self.power))


@dataclass(frozen=True, eq=False, repr=False)
class ExponentialDecay(Curve):
    """A constant factor for every ``transition_steps`` steps."""

    init_value: Scalar
    transition_steps: Scalar
    decay_rate: Scalar
    transition_begin: Scalar
    staircase: bool
    end_value: Scalar | None

    def at(self, t: Tensor) -> Tensor:
        passed = (t - scalar(self.transition_begin, t)).clamp(min=0.0)
        times = passed / scalar(self.transition_steps, t)
        rate = scalar(self.decay_rate, t)
        times = times.floor() if self.staircase else times
        value = scalar(self.init_value, t) * one_by_one(torch.pow, rate, times)
        if self.end_value is None:
            return value
        end = scalar(self.end_value, t)
        return torch.where(rate < 1, torch.maximum(value, end), torch.minimum(value, end))


@dataclass(frozen=True, eq=False, repr=False)
class CosineDecay(Curve):
    """Half a period of a cosine."""

    name: ClassVar[str] = "cosine_decay_schedule"

    init_value: Scalar
    decay_steps: Scalar
    alpha: Scalar
    exponent: Scalar

    def at(self, t: Tensor) -> Tensor:
        bend = power(cosine(1 - progress(t, 0, self.decay_steps)), self.exponent)
        start = scalar(self.init_value, t)
        return between(start, start * scalar(self.alpha, t), bend)


def constant_schedule(value: Scalar) -> Curve:
    """The same value at every count.

    Args:
        value: a number, or a tensor of shape () or (1,).

    Example:
        >>> constant_schedule(0.1)(1000)
        0.1
    """
    check_scalar("value", value)
    return Constant(value)


def polynomial_schedule(
    init_value: Scalar,
    end_value: Scalar,
    power: Scalar,
    transition_steps: Scalar,
    transition_begin: Scalar = 0,
) -> Curve:
    """From ``init_value`` to ``end_value`` along a power of the way that remains.

        value(t) = end + (init - end) * (1 - clip((t - begin) / steps, 0, 1)) ^ power

    Args:
        init_value: the value up to ``transition_begin``.
        end_value: the value from ``transition_begin + transition_steps`` on.
        power: in (0, inf).
        transition_steps: length of the way, in [0, inf); 0 is a jump at ``transition_begin``
            (in optax it means ``init_value`` for ever).
        transition_begin: the count at which the way begins, in [0, inf). Default: 0.

    Returns:
        A function of the count: a 0-d float64 tensor for a tensor, a float for a number. It
        compares, prints and pickles by its hyperparameters, each of which may be a tensor of
        shape () or (1,), batched by ``vmap`` or differentiated.

    Raises:
        ValueError: a number out of range, or a tensor of more than one element.
        TypeError: neither a number nor a real tensor.

    Example:
        >>> schedule = polynomial_schedule(1.0, 0.0, power=2, transition_steps=10)
        >>> schedule(5), schedule(torch.tensor(20))
        (0.25, tensor(0., dtype=torch.float64))
    """
    check_scalar("init_value", init_value)
    check_scalar("end_value", end_value)
    check_scalar("power", power, 0, above=True)
    check_scalar("transition_steps", transition_steps, 0)
    check_scalar("transition_begin", transition_begin, 0)
    return Polynomial(init_value, end_value, power, transition_steps, transition_begin)


def linear_schedule(
    init_value: Scalar,
    end_value: Scalar,
    transition_steps: Scalar,
    transition_begin: Scalar = 0,
) -> Curve:
    """From ``init_value`` to ``end_value`` in a straight line.

    ``polynomial_schedule`` with a power of 1, which see.

    Example:
        >>> linear_schedule(1.0, 0.0, transition_steps=10)(4)
        0.6
    """
    return polynomial_schedule(init_value, end_value, 1, transition_steps, transition_begin)


def exponential_decay(
    init_value: Scalar,
    transition_steps: Scalar,
    decay_rate: Scalar,
    transition_begin: Scalar = 0,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> Curve:
    """A factor of ``decay_rate`` for every ``transition_steps`` steps.

        value(t) = init * decay_rate ^ (max(t - begin, 0) / steps)

    Args:
        init_value: the value up to ``transition_begin``.
        transition_steps: in (0, inf).
        decay_rate: in (0, inf).
        transition_begin: the count at which the decay begins, in [0, inf). Default: 0.
        staircase: decay at multiples of ``transition_steps`` only. Default: False.
        end_value: a lower bound of the value, or an upper one if ``decay_rate`` is 1 or more.
            Default: None, no bound.

    Returns and errors are those of ``polynomial_schedule``.

    Example:
        >>> exponential_decay(1.0, transition_steps=10, decay_rate=0.5, staircase=True)(25)
        0.25
    """
    check_scalar("init_value", init_value)
    check_scalar("transition_steps", transition_steps, 0, above=True)
    check_scalar("decay_rate", decay_rate, 0, above=True)
    check_scalar("transition_begin", transition_begin, 0)
    if end_value is not None:
        check_scalar("end_value", end_value)
    return ExponentialDecay(
        init_value, transition_steps, decay_rate, transition_begin, staircase, end_value
    )


def cosine_decay_schedule(
    init_value: Scalar, decay_steps: Scalar, alpha: Scalar = 0.0, exponent: Scalar = 1.0
) -> Curve:
    """From ``init_value`` to ``alpha * init_value`` along half a period of a cosine.

        w(t) = ((1 + cos(pi min(t / steps, 1))) / 2) ^ exponent
        value(t) = init * (alpha + (1 - alpha) * w(t))

    Args:
        init_value: the value at 0.
        decay_steps: length of the way, in (0, inf).
        alpha: the last value as a part of the first. Default: 0.
        exponent: in (0, inf). Default: 1.

    Returns and errors are those of ``polynomial_schedule``.

    Example:
        >>> print(f"{cosine_decay_schedule(1.0, decay_steps=10, alpha=0.1)(5):.3f}")
        0.550

    Source: Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5.
    """
    check_scalar("init_value", init_value)
    check_scalar("decay_steps", decay_steps, 0, above=True)
    check_scalar("alpha", alpha)
    check_scalar("exponent", exponent, 0, above=True)
    return CosineDecay(init_value, decay_steps, alpha, exponent)
