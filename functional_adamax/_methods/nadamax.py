"""Nadamax: Adamax that looks ahead, with Nadam's first moment over Adamax's infinity norm.

Adamax steps along m_t. Nesterov's momentum steps along what m will be at the next step, as far
as it is known now. ``nadamax`` is the whole optimizer, ``scale_by_nadamax`` the direction
alone, for chains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._core.hyper import Hyperparameter
from .._core.node import public_node
from .._core.numerics import average, cast, double, maximum_norm, over_bias, wide
from .._core.pytree import Tree
from .._core.transform import GradientTransformation
from .._schedules.scheduled import Schedule
from .method import Direction, Method, Moments


@public_node
class NadamaxState(NamedTuple):
    """State of Nadamax: three trees of the structure of params."""

    step: Tree  # (), float64: number of gradients the leaf has seen
    exp_avg: Tree  # shape of the leaf; state_dtype, or the leaf's dtype: m
    exp_inf: Tree  # as exp_avg: u


@dataclass(frozen=True, eq=False, repr=False)
class Nadamax(Method):
    """Nadamax with coupled weight decay."""

    state: ClassVar[type[Any]] = NadamaxState

    lr: Hyperparameter | Schedule = 2e-3
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999)
    eps: Hyperparameter = 1e-8
    weight_decay: Hyperparameter = 0.0
    maximize: bool = False
    state_dtype: torch.dtype | None = None

    def hyper(self) -> dict[str, Hyperparameter]:
        return {"b1": self.betas[0], "b2": self.betas[1], "eps": self.eps}

    def rule(
        self, t: Tensor, g: Tensor, moments: Moments, h: dict[str, Any]
    ) -> tuple[Tensor, Moments]:
        m = average(moments["exp_avg"], g, h["b1"])
        u = maximum_norm(moments["exp_inf"], g, h["b2"], h["eps"])
        b1, lr = double(h["b1"]), double(h["lr"])
        ahead = cast(over_bias(-lr * b1, b1, t + 1), wide(m))
        now = cast(over_bias(-lr * (1 - b1), b1, t), wide(m))
        update = (wide(m) * ahead + wide(g) * now) / wide(u)
        return update, {"exp_avg": m, "exp_inf": u}


@dataclass(frozen=True, eq=False, repr=False)
class ScaleByNadamax(Direction):
    """The direction of Nadamax: the update of ``Nadamax`` with a learning rate of -1."""

    kind: ClassVar[type[Method]] = Nadamax

    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999)
    eps: Hyperparameter = 1e-8
    state_dtype: torch.dtype | None = None


def nadamax(
    lr: Hyperparameter | Schedule = 2e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Adamax with Nesterov's momentum.

    For each leaf with gradient ``g``, at its ``t``-th gradient::

        g   <- -g                                       if maximize
        g   <- g + weight_decay * p
        m_t  = b1 m_{t-1} + (1 - b1) g
        u_t  = max(b2 u_{t-1}, |g| + eps)
        n_t  = b1 m_t / (1 - b1^{t+1}) + (1 - b1) g / (1 - b1^t)
        update = -lr * n_t / u_t

    A leaf whose gradient is None keeps its state, is not decayed, and gets the update None.
    Complex leaves go by their real and imaginary parts. Every hyperparameter is a number, a
    tensor of shape () or (1,), or a tree of them, as in ``adamax``.

    Args:
        lr: learning rate, in [0, inf); also a schedule, see ``adamax``. Default: 2e-3.
        betas: decay rates of ``m`` and ``u``, each in [0, 1). Default: (0.9, 0.999).
        eps: added to |g| inside the maximum, in [0, inf); with 0, an element whose
            gradients have all been zero is 0/0 = NaN. Default: 1e-8.
        weight_decay: coupled L2 penalty, in [0, inf). ``update`` then needs ``params``.
            Default: 0.
        maximize: ascend instead of descend. Default: False.
        state_dtype: dtype of both moments and of the arithmetic (complex leaves take its
            complex counterpart). None keeps the dtype of each parameter. Pass torch.float32
            for float16 and bfloat16 parameters. Default: None.

    Returns:
        The pair ``(init, update)``. The state is ``NadamaxState(step, exp_avg, exp_inf)``;
        with a schedule it is ``ScheduledState(count, inner)`` around that. Updates have the
        dtype of the moments, float32 if that is a half.

    Raises:
        ValueError: a number out of its range.
        TypeError: a hyperparameter that is no number, tensor or tree of them.

    Example:
        >>> tx = nadamax(lr=0.1, betas=(0.5, 0.999))
        >>> tx.update(torch.tensor([0.5, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([-0.1333,  0.1333])

    Source: the moment is that of Dozat 2016, "Incorporating Nesterov Momentum into Adam",
    Algorithm 2, with a constant b1 in place of the schedule mu_t; the norm that of Kingma & Ba
    2015, arXiv 1412.6980, Algorithm 2, with torch's eps, as in ``adamax``.
    """
    return Nadamax(lr, betas, eps, weight_decay, maximize, state_dtype).made()


def scale_by_nadamax(
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """The direction of Nadamax, for chains.

        update = n_t / u_t

    The direction points along the gradient: follow it with ``scale_by_learning_rate``, which
    turns it round. Args, returns and errors are those of ``nadamax``.

    Example:
        >>> tx = scale_by_nadamax(betas=(0.5, 0.999))
        >>> tx.update(torch.tensor([0.5, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 1.3333, -1.3333])
    """
    return ScaleByNadamax(betas, eps, state_dtype).made()
