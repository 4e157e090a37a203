"""Adamax: the direction of a step from the first moment and the infinity norm.

``adamax`` is the whole optimizer, ``adamaxw`` the same with decoupled weight
decay, ``scale_by_adamax`` the direction alone, for chains. All three carry the
leaves of the trees to the one rule in ``_execution/adamax_rule.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from .._core.hyper import Hyperparameter
from .._core.node import public_node
from .._core.pytree import Tree
from .._core.transform import GradientTransformation
from .._execution import adamax_rule
from .._schedules.scheduled import Schedule
from .method import Direction, Method


@public_node
class AdamaxState(NamedTuple):
    """State of Adamax: three trees of the structure of params.

    A leaf without state (None, or not floating) holds ``EmptyState()``.
    """

    step: Tree  # (), float64: number of gradients the leaf has seen
    exp_avg: Tree  # shape of the leaf; state_dtype, or the leaf's dtype: m
    exp_inf: Tree  # shape of the leaf; state_dtype, or the leaf's dtype: u


@dataclass(frozen=True, eq=False, repr=False)
class Adamax(Method):
    """Adamax with coupled weight decay."""

    title: ClassVar[str] = "Adamax"
    state: ClassVar[type[Any]] = AdamaxState
    rule = staticmethod(adamax_rule.adamax)

    lr: Hyperparameter | Schedule = 2e-3
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999)
    eps: Hyperparameter = 1e-8
    weight_decay: Hyperparameter = 0.0
    maximize: bool = False
    state_dtype: torch.dtype | None = None
    derivative_floor: float | None = None

    def hyper(self) -> dict[str, Any]:
        b1, b2 = self.betas
        return {"b1": b1, "b2": b2, "eps": self.eps, "derivative_floor": self.derivative_floor}


class AdamaxW(Adamax):
    """Adamax with decoupled weight decay."""

    name: ClassVar[str] = "adamaxw"
    decoupled: ClassVar[bool] = True


@dataclass(frozen=True, eq=False, repr=False)
class ScaleByAdamax(Direction):
    """The direction of Adamax: the update of ``Adamax`` with a learning rate of -1."""

    kind: ClassVar[type[Method]] = Adamax

    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999)
    eps: Hyperparameter = 1e-8
    state_dtype: torch.dtype | None = None
    derivative_floor: float | None = None


def adamax(
    lr: Hyperparameter | Schedule = 2e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
    state_dtype: torch.dtype | None = None,
    derivative_floor: float | None = None,
) -> GradientTransformation:
    """Adamax, the variant of Adam based on the infinity norm, as ``torch.optim.Adamax`` does it.

    For each leaf with gradient ``g``, at its ``t``-th gradient::

        g   <- -g                                       if maximize
        g   <- g + weight_decay * p
        m_t  = b1 m_{t-1} + (1 - b1) g
        u_t  = max(b2 u_{t-1}, |g| + eps)
        update = -lr / (1 - b1^t) * m_t / u_t

    A leaf whose gradient is None keeps its moments and its step, is not decayed, and
    gets the update None. Complex leaves go by their real and imaginary parts.

    Every hyperparameter is a number; or a tensor of shape () or (1,), which may require
    grad or be batched by ``vmap``; or a tree shaped like params, or a prefix of it, whose
    leaves are numbers or tensors that broadcast to the parameter.

    Args:
        lr: learning rate, in [0, inf). Also a schedule: a function of the number of
            ``update`` calls so far, 0 at the first. Default: 2e-3.
        betas: decay rates of ``m`` and ``u``, each in [0, 1). Default: (0.9, 0.999).
        eps: added to |g| inside the maximum, in [0, inf); with 0, an element whose
            gradients have all been zero is 0/0 = NaN. Default: 1e-8.
        weight_decay: coupled L2 penalty, in [0, inf). ``update`` then needs ``params``.
            Default: 0.
        maximize: ascend instead of descend. Default: False.
        state_dtype: dtype of both moments and of the arithmetic (complex leaves take its
            complex counterpart). None keeps the dtype of each parameter, with torch's
            bits. Pass torch.float32 for float16 and bfloat16 parameters.
        derivative_floor: for differentiating through steps: derivatives by gradients and
            moments are taken as if u were at least this, a number in (0, inf); values keep
            their bits, and derivatives by the learning rate are exact. Then
            |d update_t / d g_s| <= (1 + r) lr / derivative_floor for all t, s and g, with
            r = (1 - b1) / (1 - b1 / b2), for b1 < b2. Without it the bound is
            that with eps for the floor. Default: None, exact derivatives.

    Returns:
        The pair ``(init, update)``. The state is ``AdamaxState(step, exp_avg, exp_inf)``;
        with a schedule it is ``ScheduledState(count, inner)`` around that. Updates have the
        dtype of the moments, float32 if that is a half.

    Raises:
        ValueError: a number out of its range.
        TypeError: a hyperparameter that is no number, tensor or tree of them.

    Example:
        >>> tx = adamax(lr=0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> updates, state = tx.update({"w": torch.tensor([0.5, -3.0])}, tx.init(params))
        >>> updates
        {'w': tensor([-0.1000,  0.1000])}

    Source: Kingma & Ba 2015, arXiv 1412.6980, Algorithm 2. Departures, both torch's: eps
    inside the maximum, and the coupled weight decay.
    """
    return Adamax(lr, betas, eps, weight_decay, maximize, state_dtype, derivative_floor).made()


def adamaxw(
    lr: Hyperparameter | Schedule = 2e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 1e-2,
    *,
    maximize: bool = False,
    state_dtype: torch.dtype | None = None,
    derivative_floor: float | None = None,
) -> GradientTransformation:
    """Adamax with decoupled weight decay: the decay does not pass through the moments.

    ``adamax`` without its decay, and then::

        update = -lr / (1 - b1^t) * m_t / u_t - lr * weight_decay * p

    Args, returns and errors are those of ``adamax``; ``weight_decay`` defaults to 1e-2 and
    ``maximize`` does not turn the decay round.

    Example:
        >>> tx = adamaxw(lr=0.1, weight_decay=0.5)
        >>> params = {"w": torch.tensor([2.0])}
        >>> tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)[0]
        {'w': tensor([-0.2000])}

    Source: the decay is that of Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 2,
    scaled by the learning rate as in ``torch.optim.AdamW``.
    """
    return AdamaxW(lr, betas, eps, weight_decay, maximize, state_dtype, derivative_floor).made()


def scale_by_adamax(
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    state_dtype: torch.dtype | None = None,
    *,
    derivative_floor: float | None = None,
) -> GradientTransformation:
    """The direction of Adamax, for chains.

        update = 1 / (1 - b1^t) * m_t / u_t

    The direction points along the gradient: follow it with ``scale_by_learning_rate``,
    which turns it round. Args, returns and errors are those of ``adamax``.

    Example:
        >>> tx = scale_by_adamax()
        >>> tx.update(torch.tensor([0.5, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 1., -1.])
    """
    return ScaleByAdamax(betas, eps, state_dtype, derivative_floor).made()
