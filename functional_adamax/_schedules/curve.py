"""What a schedule is: a curve over the count of steps, as data.

A schedule is a pure function of a count. Here it is a frozen dataclass that can
be called, so that it compares by value, prints its hyperparameters and pickles,
as a transform does. A subclass says in ``at`` what its value is at the time ``t``,
with tensor operations alone: a count or a hyperparameter may be batched, traced
or differentiated. Progress is clamped before a curve bends it, so that a branch
that is masked out has finite values and derivatives.

Training asks for one count after the other, and each value is some twenty operations
on single numbers. So a curve of numbers, once it is asked for the next count, computes
the values of many at once, with the same bits: ``t`` may be a vector.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._core import context, hyper, numerics, sums
from .._core.transform import Data

Scalar: TypeAlias = float | Tensor
"""A number, or a real tensor of shape () or (1,)."""

_AHEAD, _MOST = 64, 1024
"""For how many counts a curve computes its values at once, and how many it keeps about."""


@dataclass(frozen=True, eq=False, repr=False)
class Curve(Data, ABC):
    """A schedule as data. Subclasses are frozen dataclasses of hyperparameters.

    A count that is a tensor gives a 0-d float64 tensor on its device (float32 where the device
    has no float64), whatever the dtypes of the hyperparameters. A count that is a number gives
    a float, or such a tensor if a hyperparameter is a tensor or the code is being compiled.
    """

    def __call__(self, count: Scalar) -> Any:
        if isinstance(count, Tensor):
            if sums.watching.recorder is not None and self.is_plain:
                return sums.watching.recorder.once(self, count)
            known = self._known(count)
            if known is not None:
                return torch.scalar_tensor(known, dtype=torch.float64, device="cpu")
            return self.evaluate(count.reshape(()) if count.shape == (1,) else count)
        dtype = torch.int64 if isinstance(count, int) else torch.float64
        value = self.evaluate(torch.ones((), dtype=dtype, device="cpu") * count)
        return value if torch.compiler.is_compiling() or not self.is_plain else value.item()

    def _known(self, count: Tensor) -> float | None:
        """The value at a count, of which there may be many at once; None where it is followed."""
        if context.traced() or type(count) is not Tensor or not (count.is_cpu and self.is_plain):
            return None
        if count.dtype != torch.int64 or count.dim():
            return None
        at, values = int(count.item()), self._at_counts
        value = values.get(at)
        if value is None:
            counts = range(at, at + (_AHEAD if at - 1 in values else 1))
            found = self.evaluate(torch.tensor(counts, device="cpu")).tolist()
            if len(values) > _MOST:
                values.clear()
            values.update(zip(counts, found, strict=True))
            value = found[0]
        return value

    @cached_property
    def _at_counts(self) -> dict[int, float]:
        """The values at some counts."""
        return {}

    def evaluate(self, count: Tensor) -> Tensor:
        """Return the value at a count of any real dtype."""
        return self.at(count.to(numerics.step_dtype(count.device)))

    @abstractmethod
    def at(self, t: Tensor) -> Tensor:
        """Return the value at the time ``t``, a floating tensor, in its dtype."""

    @cached_property
    def is_plain(self) -> bool:
        """Whether every hyperparameter is a number, or a curve of such."""
        return all(map(_is_plain, self._values().values()))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    known = value is None or isinstance(value, str) or hyper.is_number(value)
    return known or (isinstance(value, Curve) and value.is_plain)


def one_by_one(function: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """Call a function of single numbers, of which a vector may get other bits."""
    if given[0].dim() == 0 or torch.compiler.is_compiling():
        return function(*given)
    return torch.stack(list(map(function, *(x.unbind() for x in given))))


def check_scalar(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False
) -> None:
    """Check one number in [low, high], or (low, high] if ``above``; a tensor by its shape.

    Raises:
        ValueError: a number out of range, or a tensor of another shape than () or (1,).
        TypeError: neither a number nor a real tensor.
    """
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"{name} must be a real number or tensor, got a {value.dtype} tensor")
        if value.shape not in ((), (1,)):
            raise ValueError(
                f"{name} must be a number or a tensor of shape () or (1,), got a tensor of shape "
                f"{tuple(value.shape)}; for several schedules at once use vmap"
            )
    elif not hyper.is_number(value):
        raise TypeError(f"{name} must be a real number or a real tensor, got {value!r}")
    elif not (math.isfinite(value) and low <= value <= high) or (above and value == low):
        left = "(" if above or low == -math.inf else "["
        right = ")" if high == math.inf else "]"
        raise ValueError(f"{name} must be in {left}{low:g}, {high:g}{right}, got {value}")


def scalar(value: Any, like: Tensor) -> Tensor:
    """Return a number or a tensor of one element as a 0-d tensor of the dtype of ``like``."""
    if isinstance(value, Tensor):
        cast: Tensor = numerics.cast(value.reshape(()) if value.shape == (1,) else value, like)
        return cast
    value = value if isinstance(value, (int, float)) else float(value)
    if like.is_floating_point() and not torch.compiler.is_compiling():
        return torch.full_like(like, value)
    number: Tensor = torch.ones_like(like) * value  # which a compiler does not compile in
    return number.to(like.dtype)


def progress(t: Tensor, begin: Scalar, steps: Scalar) -> Tensor:
    """Return the part of a way of ``steps`` steps done by ``t``, in [0, 1]; no steps, a jump."""
    numbers = hyper.is_number(begin) and hyper.is_number(steps) and steps > 0
    if numbers and not torch.compiler.is_compiling():
        return ((t - float(begin)) / scalar(steps, t)).clamp(0.0, 1.0)
    passed, length = t - scalar(begin, t), scalar(steps, t)
    way = passed / torch.where(length > 0, length, 1.0)
    return torch.where(length > 0, way.clamp(0.0, 1.0), (passed >= 0).to(t.dtype))


def between(start: Tensor, end: Tensor, remaining: Tensor) -> Tensor:
    """Return ``end + remaining * (start - end)``, with the exact ends at 0 and at 1."""
    return one_by_one(torch.lerp, end, start, remaining)


def power(base: Tensor, exponent: Scalar) -> Tensor:
    """Return ``base ** exponent``; 0, with derivatives of 0, where ``base`` is 0."""
    inside = base > 0
    if hyper.is_number(exponent) and exponent == 1:
        return torch.where(inside, base, 0.0)
    found = one_by_one(torch.pow, torch.where(inside, base, 1.0), scalar(exponent, base))
    return torch.where(inside, found, 0.0)


def cosine(remaining: Tensor) -> Tensor:
    """Return ``(1 - cos(pi remaining)) / 2``, as a square that is precise near 0."""
    return one_by_one(torch.sin, 0.5 * math.pi * remaining) ** 2
