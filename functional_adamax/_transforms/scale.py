"""Scaling: the length of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .._core import hyper
from .._core.hyper import Hyperparameter
from .._core.numerics import scaled
from .._core.transform import GradientTransformation
from .._schedules.scheduled import Schedule, check_lr, with_schedule
from .stage import LeafUpdate, Stage


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Stage):
    """Multiply by a factor."""

    strict: ClassVar[bool] = False

    factor: Hyperparameter

    def rule(self, x: LeafUpdate) -> Tensor:
        return scaled(x.u, x.h["factor"])


@dataclass(frozen=True, eq=False, repr=False)
class ScaleByLearningRate(Stage):
    """Multiply by the negative learning rate."""

    strict: ClassVar[bool] = False

    lr: Hyperparameter | Schedule

    def rule(self, x: LeafUpdate) -> Tensor:
        return scaled(x.u, -x.h["lr"])


def scale(factor: Hyperparameter) -> GradientTransformation:
    """Multiply the updates by ``factor``: ``update <- factor * update``.

    Args:
        factor: a number of either sign, a tensor of shape () or (1,), or a tree shaped like
            the updates (or a prefix of it). Updates keep their dtype.

    Example:
        >>> tx = scale(-1.0)
        >>> tx.update(torch.ones(2), tx.init(torch.zeros(2)))[0]
        tensor([-1., -1.])
    """
    hyper.check("factor", factor, signed=True)
    return Scale(factor).pair()


def scale_by_learning_rate(lr: Hyperparameter | Schedule) -> GradientTransformation:
    """Turn a direction into a descent step: ``update <- -lr * update``.

    Args:
        lr: a number in [0, inf); a tensor of shape () or (1,); a tree shaped like the updates
            (or a prefix of it); or a schedule, a function of the number of ``update`` calls so
            far, 0 at the first. Updates keep their dtype.

    Returns:
        A transform without state; with a schedule the state is ``ScheduledState(count, inner)``.

    Example:
        >>> tx = scale_by_learning_rate(lambda count: 0.1 * 0.5**count)
        >>> state = tx.init(torch.zeros(2))
        >>> for _ in range(2):
        ...     updates, state = tx.update(torch.ones(2), state)
        >>> updates
        tensor([-0.0500, -0.0500])
    """
    check_lr(lr)
    return with_schedule(ScaleByLearningRate(lr))
