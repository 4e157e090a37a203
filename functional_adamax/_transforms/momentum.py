"""Momentum as a stage of its own: averages and sums of past updates.

Both keep one tensor a leaf. ``ema`` is a mean with weights that fall by a factor, the
first moment of Adam; ``trace`` is the sum of the same terms, the momentum of
``torch.optim.SGD``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._core import checks, hyper
from .._core.hyper import Hyperparameter
from .._core.node import public_node
from .._core.numerics import add_scaled, blend, moment_dtype, scaled, step_dtype
from .._core.pytree import EmptyState, Tree
from .._core.transform import GradientTransformation
from .stage import LeafUpdate, StatefulStage


@public_node
class EmaState(NamedTuple):
    """State of ``ema``: two trees of the structure of params.

    A leaf without state (None, or not floating) holds ``EmptyState()``.
    """

    step: Tree  # (), float64: number of updates the leaf has seen
    exp_avg: Tree  # shape of the leaf; accumulator_dtype, or the leaf's dtype


@public_node
class TraceState(NamedTuple):
    """State of ``trace``; a leaf without state holds ``EmptyState()``."""

    trace: Tree  # shape of the leaf; accumulator_dtype, or the leaf's dtype


class Accumulating(StatefulStage):
    """What averages and sums of updates share: moments in a dtype of their own."""

    decay: Hyperparameter  # fields of the subclasses
    accumulator_dtype: torch.dtype | None

    def hyper(self) -> dict[str, Any]:
        return {"decay": self.decay}

    def start(self, p: Tensor) -> list[Tensor]:
        return [torch.zeros_like(p, dtype=moment_dtype(p, self.accumulator_dtype))]

    def fitting(self, spec: Any, kept: dict[str, list[Any]], updates: list[Any]) -> list[Any]:
        del updates
        *steps, (name, moments) = kept.items()
        checks.moments(spec, {name: moments})
        for field, column in steps:
            checks.scalars(spec, column, moments, f"state.{field}")
        return moments


@dataclass(frozen=True, eq=False, repr=False)
class Ema(Accumulating):
    """An exponential moving average of the updates."""

    state: ClassVar[type[Any]] = EmaState

    decay: Hyperparameter
    debias: bool = True
    accumulator_dtype: torch.dtype | None = None

    def start(self, p: Tensor) -> list[Tensor]:
        step = torch.zeros((), dtype=step_dtype(p.device), device=p.device)
        return [step, *super().start(p)]

    def rule(self, x: LeafUpdate) -> tuple[Tensor, dict[str, Any]]:
        t, m, decay = x.kept["step"], x.kept["exp_avg"], x.h["decay"]
        decay = decay.to(t.dtype) if isinstance(decay, Tensor) else decay
        t = t + 1
        m = blend(m, x.u.to(m.dtype), 1 - decay)
        wider = m.to(torch.promote_types(m.dtype, torch.float32))
        update = scaled(wider, 1 / (1 - decay**t)) if self.debias else wider
        return update, {"step": t, "exp_avg": m}


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Accumulating):
    """A decaying sum of the updates."""

    state: ClassVar[type[Any]] = TraceState

    decay: Hyperparameter
    nesterov: bool = False
    accumulator_dtype: torch.dtype | None = None

    def rule(self, x: LeafUpdate) -> tuple[Tensor, dict[str, Any]]:
        before, decay = x.kept["trace"], x.h["decay"]
        g = x.u.to(before.dtype)
        trace = add_scaled(g, before, decay)
        return add_scaled(g, trace, decay) if self.nesterov else trace, {"trace": trace}


def per_leaf(p: Any, make: Callable[[Tensor], Tensor]) -> Any:
    """Return what ``make`` makes for a parameter that can have state."""
    return make(p) if checks.trainable(p) else EmptyState()


def ema(
    decay: Hyperparameter, debias: bool = True, accumulator_dtype: torch.dtype | None = None
) -> GradientTransformation:
    """Replace the updates by their exponential moving average.

        m_t = decay * m_{t-1} + (1 - decay) * update_t
        update <- m_t / (1 - decay^t)  if debias, else m_t

    ``t`` counts the updates of each leaf; one that is None leaves its leaf as it is. Complex
    leaves go by components.

    Args:
        decay: in [0, 1): a number, a tensor, or a tree of them.
        debias: divide by the sum of the weights. Default: True.
        accumulator_dtype: dtype of ``m``. Default: None, that of each parameter.

    Returns:
        A transform with the state ``EmaState(step, exp_avg)``. Updates have the dtype of ``m``,
        float32 if that is a half.

    Raises:
        ValueError: a number out of range, or updates that do not fit the state.

    Example:
        >>> tx = ema(0.5)
        >>> state = tx.init(torch.zeros(1))
        >>> for g in (1.0, 4.0):
        ...     updates, state = tx.update(torch.tensor([g]), state)
        >>> updates
        tensor([3.])
    """
    hyper.check("decay", decay, 1.0)
    hyper.check_dtype("accumulator_dtype", accumulator_dtype)
    return Ema(decay, debias, accumulator_dtype).pair()


def trace(
    decay: Hyperparameter, nesterov: bool = False, accumulator_dtype: torch.dtype | None = None
) -> GradientTransformation:
    """Replace the updates by a decaying sum of them: momentum, as in ``torch.optim.SGD``.

        s_t = update_t + decay * s_{t-1}
        update <- update_t + decay * s_t  if nesterov, else s_t

    An update that is None leaves its leaf as it is.

    Args:
        decay: in [0, inf): a number, a tensor, or a tree of them.
        nesterov: look one step ahead. Default: False.
        accumulator_dtype: dtype of ``s`` and of the updates. Default: None, that of each
            parameter.

    Returns:
        A transform with the state ``TraceState(trace)``.

    Raises:
        ValueError: a number out of range, or updates that do not fit the state.

    Example:
        >>> tx = trace(0.5)
        >>> state = tx.init(torch.zeros(1))
        >>> for g in (1.0, 4.0):
        ...     updates, state = tx.update(torch.tensor([g]), state)
        >>> updates
        tensor([4.5000])

    Source: Sutskever et al. 2013, in the form of torch, without the learning rate.
    """
    hyper.check("decay", decay)
    hyper.check_dtype("accumulator_dtype", accumulator_dtype)
    return Trace(decay, nesterov, accumulator_dtype).pair()
