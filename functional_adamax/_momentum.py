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

from . import _check, _hyper, _rule, _tree
from ._hyper import Hyperparameter
from ._node import public_node
from ._spelling import explains_misfits
from ._transform import GradientTransformation, Transform
from ._tree import EmptyState, Tree


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


@dataclass(frozen=True, eq=False, repr=False)
class Ema(Transform):
    """An exponential moving average of the updates."""

    name: ClassVar[str] = "ema"

    decay: Hyperparameter
    debias: bool = True
    accumulator_dtype: torch.dtype | None = None

    def init(self, params: Tree) -> EmaState:
        leaves, spec = _check.parameters(params)
        steps = [per_leaf(p, _counter) for p in leaves]
        return EmaState(_tree.unflatten(spec, steps), _zeros(spec, leaves, self.accumulator_dtype))

    def update(
        self, updates: Tree, state: EmaState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmaState]:
        del params, extra
        _check.state(state, EmaState)
        moments, spec = _tree.flatten(state.exp_avg)
        steps = _tree.match(spec, state.step, "state.step", "state.exp_avg")
        _check.moments(spec, {"exp_avg": moments})
        given = _given(spec, updates, moments, "ema")
        _check.scalars(spec, steps, moments, "state.step")
        decays = _hyper.per_leaf("decay", self.decay, state.exp_avg, moments)
        new: list[Any] = [None] * len(given)
        for i, (u, decay) in enumerate(zip(given, decays, strict=True)):
            if u is not None:
                new[i], steps[i], moments[i] = self._step(u, moments[i], steps[i], decay)
        state = EmaState(_tree.unflatten(spec, steps), _tree.unflatten(spec, moments))
        return _tree.unflatten(spec, new), state

    def _step(self, g: Tensor, m: Tensor, t: Tensor, decay: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(update, t, m)`` after the update ``g``."""
        decay = decay.to(t.dtype) if isinstance(decay, Tensor) else decay
        t = t + 1
        m = blend(m, g.to(m.dtype), 1 - decay)
        wide = m.to(torch.promote_types(m.dtype, torch.float32))
        return (_rule.scaled(wide, 1 / (1 - decay**t)) if self.debias else wide), t, m


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Transform):
    """A decaying sum of the updates."""

    name: ClassVar[str] = "trace"

    decay: Hyperparameter
    nesterov: bool = False
    accumulator_dtype: torch.dtype | None = None

    def init(self, params: Tree) -> TraceState:
        leaves, spec = _check.parameters(params)
        return TraceState(_zeros(spec, leaves, self.accumulator_dtype))

    def update(
        self, updates: Tree, state: TraceState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, TraceState]:
        del params, extra
        _check.state(state, TraceState)
        sums, spec = _tree.flatten(state.trace)
        _check.moments(spec, {"trace": sums})
        given = _given(spec, updates, sums, "trace")
        decays = _hyper.per_leaf("decay", self.decay, state.trace, sums)
        new: list[Any] = [None] * len(given)
        for i, (u, decay) in enumerate(zip(given, decays, strict=True)):
            if u is not None:
                g = u.to(sums[i].dtype)
                sums[i] = _rule.add_scaled(g, sums[i], decay)
                new[i] = _rule.add_scaled(g, sums[i], decay) if self.nesterov else sums[i]
        return _tree.unflatten(spec, new), TraceState(_tree.unflatten(spec, sums))


def blend(old: Tensor, new: Tensor, weight: Any) -> Tensor:
    """``old + weight * (new - old)`` in the dtype of ``old``; halves are computed in float32."""
    if old.is_complex():
        old, new = _rule.real_views(old, new)
        return torch.view_as_complex(blend(old, new, _rule.over_components(weight)))
    wide = torch.promote_types(old.dtype, torch.float32)
    x, y = old.to(wide), new.to(wide)
    return torch.lerp(x, y, _hyper.cast(weight, x)).to(old.dtype)


def _counter(p: Tensor) -> Tensor:
    return torch.zeros((), dtype=_rule.step_dtype(p.device), device=p.device)


def per_leaf(p: Any, make: Callable[[Tensor], Tensor]) -> Any:
    """Return what ``make`` makes for a parameter that can have state."""
    return make(p) if _check.trainable(p) else EmptyState()


def _zeros(spec: Any, leaves: list[Any], dtype: torch.dtype | None) -> Tree:
    def zeros(p: Tensor) -> Tensor:
        return torch.zeros_like(p, dtype=_rule.moment_dtype(p, dtype))

    return _tree.unflatten(spec, [per_leaf(p, zeros) for p in leaves])


def _given(spec: Any, updates: Tree, kept: list[Any], what: str) -> list[Any]:
    given = _tree.match(spec, updates, "updates", "the params that init was given")
    _check.gradients(spec, given, kept, what, "updates")
    return given


@explains_misfits
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
    _hyper.check("decay", decay, 1.0)
    _hyper.check_dtype("accumulator_dtype", accumulator_dtype)
    return Ema(decay, debias, accumulator_dtype).pair()


@explains_misfits
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
    _hyper.check("decay", decay)
    _hyper.check_dtype("accumulator_dtype", accumulator_dtype)
    return Trace(decay, nesterov, accumulator_dtype).pair()
