"""A learning rate that falls when a loss has stopped falling.

A schedule knows the count alone. This transform is fed a value with each update and
scales the updates; behind an optimizer in a chain it scales the learning rate. The
decision is taken with ``torch.where``, so that under ``vmap`` each member of an
ensemble has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core import checks, hyper, numerics, pytree, sharded
from .._core.node import public_node
from .._core.pytree import Tree
from .._core.transform import GradientTransformation, Transform
from .._schedules.curve import Scalar, check_scalar, scalar


@public_node
class ReduceOnPlateauState(NamedTuple):
    """State of ``reduce_on_plateau``."""

    scale: Tensor  # (), float64: the factor of the updates
    best_value: Tensor  # (), float64: the lowest mean so far, inf before the first
    plateau_count: Tensor  # (), int64: means since the best one or the last reduction
    cooldown_count: Tensor  # (), int64: means still to wait after a reduction
    count: Tensor  # type: ignore[assignment]  # (), int64: values in average_value
    average_value: Tensor  # (), float64: mean of the values of this window


@dataclass(frozen=True, eq=False, repr=False)
class ReduceOnPlateau(Transform):
    """Scale by a factor that falls on a plateau."""

    factor: Scalar
    patience: Scalar
    rtol: Scalar
    atol: Scalar
    cooldown: Scalar
    accumulation_size: Scalar
    min_scale: Scalar

    def init(self, params: Tree) -> ReduceOnPlateauState:
        none = pytree.count(params)
        zero = none.to(numerics.step_dtype(none.device))
        return ReduceOnPlateauState(
            zero + 1, zero + torch.inf, none, none.clone(), none.clone(), zero
        )

    def update(
        self,
        updates: Tree,
        state: ReduceOnPlateauState,
        params: Tree = None,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[Tree, ReduceOnPlateauState]:
        del params, extra
        checks.state(state, ReduceOnPlateauState)
        spec = pytree.flatten(updates)[1]
        leaves = pytree.match(spec, updates, "updates", "params")
        state = self._seen(state, _observed(value, state.average_value))
        new = [None if u is None else numerics.scaled(u, state.scale) for u in leaves]
        return pytree.unflatten(spec, new), state

    def _seen(self, state: ReduceOnPlateauState, value: Tensor) -> ReduceOnPlateauState:
        """Return the state after one more value."""
        count = state.count + 1
        mean = (state.average_value * state.count + value) / count
        full = count >= scalar(self.accumulation_size, count)
        judged = self._judged(state, mean)
        waiting = state._replace(count=count, average_value=mean)
        return ReduceOnPlateauState(
            *(torch.where(full, x, y) for x, y in zip(judged, waiting, strict=True))
        )

    def _judged(self, state: ReduceOnPlateauState, mean: Tensor) -> ReduceOnPlateauState:
        """Return the state after a window with this mean."""
        best = state.best_value
        margin = scalar(self.rtol, best) * best.abs() + scalar(self.atol, best)
        improved = mean < torch.where(best.isinf(), best, best - margin)
        cooling = state.cooldown_count > 0
        bad = torch.where(improved | cooling, 0, state.plateau_count + 1)
        reduced = (bad >= scalar(self.patience, bad)) & ~improved & ~cooling
        lower = torch.maximum(state.scale * scalar(self.factor, best), scalar(self.min_scale, best))
        wait = torch.where(
            reduced, scalar(self.cooldown, bad), (state.cooldown_count - 1).clamp(min=0)
        )
        return ReduceOnPlateauState(
            scale=torch.where(reduced, lower, state.scale),
            best_value=torch.where(improved, mean, best),
            plateau_count=torch.where(reduced, 0, bad),
            cooldown_count=wait,
            count=torch.zeros_like(state.count),
            average_value=torch.zeros_like(mean),
        )


def _observed(value: Any, like: Tensor) -> Tensor:
    """Return the value that was fed in, without its graph: a decision has no derivative."""
    if value is None:
        raise ValueError(
            "value must be given to reduce_on_plateau, got None: call "
            "update(grads, state, params, value=loss)"
        )
    if not hyper.is_number(value) and not (
        isinstance(value, Tensor) and not value.is_complex() and value.shape in ((), (1,))
    ):
        raise ValueError(
            "value must be one real number or a real tensor of shape () or (1,), got "
            f"{checks.describe(value)}"
        )
    return scalar(sharded.whole(value.detach()) if isinstance(value, Tensor) else value, like)


def reduce_on_plateau(
    factor: Scalar = 0.1,
    patience: Scalar = 10,
    rtol: Scalar = 1e-4,
    atol: Scalar = 0.0,
    cooldown: Scalar = 0,
    accumulation_size: Scalar = 1,
    min_scale: Scalar = 0.0,
) -> GradientTransformation:
    """Scale the updates by a factor that falls when ``value`` has stopped falling.

    ``update(updates, state, params, value=loss)`` takes the value to watch; a chain and
    ``step`` pass it on. With the mean of each ``accumulation_size`` values::

        improved = mean < best - rtol * |best| - atol;  best <- mean if improved
        plateau <- 0 if improved, else plateau + 1
        scale <- max(factor * scale, min_scale), plateau <- 0    if plateau = patience
        update <- scale * update

    For ``cooldown`` means after a reduction the plateau stays 0.

    Args:
        factor: of each reduction, in (0, 1]. Default: 0.1.
        patience: number of means without improvement, in [1, inf), after which the scale is
            reduced. ``torch.optim.lr_scheduler.ReduceLROnPlateau`` counts one more: its
            ``patience`` is this one less 1. Default: 10.
        rtol: by what part of the best mean one must be lower to be an improvement, in [0, 1].
            Default: 1e-4.
        atol: by how much, in [0, inf). Default: 0.
        cooldown: number of means after a reduction that are not counted, in [0, inf). Default: 0.
        accumulation_size: number of values in a mean, in [1, inf). Default: 1.
        min_scale: lower bound of the scale, in [0, 1]. Default: 0.

    Each is a number, or a tensor of shape () or (1,).

    Returns:
        A transform with the state ``ReduceOnPlateauState``. Updates keep their dtype and are
        differentiable by ``factor`` and ``min_scale``; ``value`` is detached.

    Raises:
        ValueError: a number out of range; in ``update``, no ``value``, or more than one number.

    Example:
        >>> tx = chain(scale_by_learning_rate(0.1), reduce_on_plateau(factor=0.5, patience=2))
        >>> state = tx.init(torch.zeros(2))
        >>> for loss in (1.0, 1.0, 1.0):
        ...     updates, state = tx.update(torch.ones(2), state, value=loss)
        >>> updates
        tensor([-0.0500, -0.0500])

    Source: the rule of ``ReduceLROnPlateau`` in torch.optim. Departures from optax, which has it
    too: the margin is relative to |best|, so that a value below zero must fall and not rise to
    improve; ``rtol=1`` works; an improvement never reduces the scale, whatever the patience.
    """
    check_scalar("factor", factor, 0, 1, above=True)
    check_scalar("patience", patience, 1)
    check_scalar("rtol", rtol, 0, 1)
    check_scalar("atol", atol, 0)
    check_scalar("cooldown", cooldown, 0)
    check_scalar("accumulation_size", accumulation_size, 1)
    check_scalar("min_scale", min_scale, 0, 1)
    made = ReduceOnPlateau(factor, patience, rtol, atol, cooldown, accumulation_size, min_scale)
    return made.pair()
