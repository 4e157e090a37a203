"""RMSprop: the gradient over the root of a running average of its square.

``rmsprop`` is the whole optimizer, ``scale_by_rms`` the direction alone, for chains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._core import hyper
from .._core.hyper import Hyperparameter
from .._core.node import public_node
from .._core.numerics import average, average_square, cast, root, wide
from .._core.pytree import Tree
from .._core.transform import GradientTransformation
from .._schedules.scheduled import Schedule
from .method import Direction, Method, Moments


@public_node
class RmspropState(NamedTuple):
    """State of RMSprop: four trees of the structure of params."""

    step: Tree  # (), float64: number of gradients the leaf has seen
    square_avg: Tree  # shape of the leaf; state_dtype, or the leaf's dtype: v
    momentum_buffer: Tree  # as square_avg; one EmptyState() if momentum is 0
    grad_avg: Tree  # as square_avg; one EmptyState() unless centered


@dataclass(frozen=True, eq=False, repr=False)
class Rmsprop(Method):
    """RMSprop with coupled weight decay."""

    state: ClassVar[type[Any]] = RmspropState

    lr: Hyperparameter | Schedule = 1e-2
    alpha: Hyperparameter = 0.99
    eps: Hyperparameter = 1e-8
    weight_decay: Hyperparameter = 0.0
    momentum: Hyperparameter = 0.0
    centered: bool = False
    maximize: bool = False
    state_dtype: torch.dtype | None = None

    def moments(self) -> tuple[str, ...]:
        buffer = () if hyper.is_zero(self.momentum) else ("momentum_buffer",)
        return ("square_avg", *buffer, *(("grad_avg",) if self.centered else ()))

    def hyper(self) -> dict[str, Hyperparameter]:
        return {"alpha": self.alpha, "eps": self.eps, "momentum": self.momentum}

    def rule(
        self, t: Tensor, g: Tensor, moments: Moments, h: dict[str, Any]
    ) -> tuple[Tensor, Moments]:
        del t
        new = {"square_avg": average_square(moments["square_avg"], g, h["alpha"])}
        square = wide(new["square_avg"])
        if self.centered:
            m = new["grad_avg"] = average(moments["grad_avg"], g, h["alpha"])
            square = torch.addcmul(square, -wide(m), wide(m))
        denominator = root(square)
        denominator = denominator + cast(h["eps"], denominator)
        step = cast(-h["lr"], denominator)
        if "momentum_buffer" not in moments:
            return wide(g) * step / denominator, new
        b = wide(moments["momentum_buffer"])
        b = (b * cast(h["momentum"], b) + wide(g) / denominator).to(g.dtype)
        return wide(b) * step, {**new, "momentum_buffer": b}


@dataclass(frozen=True, eq=False, repr=False)
class ScaleByRms(Direction):
    """The direction of RMSprop: the update of ``Rmsprop`` with a learning rate of -1."""

    kind: ClassVar[type[Method]] = Rmsprop

    alpha: Hyperparameter = 0.99
    eps: Hyperparameter = 1e-8
    centered: bool = False
    state_dtype: torch.dtype | None = None


def rmsprop(
    lr: Hyperparameter | Schedule = 1e-2,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    momentum: Hyperparameter = 0.0,
    centered: bool = False,
    *,
    maximize: bool = False,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """RMSprop, as ``torch.optim.RMSprop`` does it.

    For each leaf with gradient ``g``, at its ``t``-th gradient::

        g   <- -g                                          if maximize
        g   <- g + weight_decay * p
        v_t  = alpha v_{t-1} + (1 - alpha) g^2
        m_t  = alpha m_{t-1} + (1 - alpha) g               if centered, else 0
        b_t  = momentum * b_{t-1} + g / (sqrt(v_t - m_t^2) + eps)
        update = -lr * b_t

    A leaf whose gradient is None keeps its state, is not decayed, and gets the update None.
    Complex leaves go by their real and imaginary parts. Every hyperparameter is a number, a
    tensor of shape () or (1,), or a tree of them, as in ``adamax``.

    Args:
        lr: learning rate, in [0, inf); also a schedule, see ``adamax``. Default: 1e-2.
        alpha: decay rate of the averages, in [0, 1). Default: 0.99.
        eps: added to the root, in [0, inf). Default: 1e-8.
        weight_decay: coupled L2 penalty, in [0, inf). ``update`` then needs ``params``.
            Default: 0.
        momentum: in [0, inf). The number 0 keeps no buffer. Default: 0.
        centered: divide by the standard deviation. As in torch, gradients that hardly change
            for long can make ``v - m^2`` negative by rounding, and its root NaN. Default: False.
        maximize: ascend instead of descend. Default: False.
        state_dtype: dtype of the moments and of the arithmetic (complex leaves take its
            complex counterpart). None keeps the dtype of each parameter. Pass torch.float32
            for float16 and bfloat16 parameters. Default: None.

    Returns:
        The pair ``(init, update)``. The state is
        ``RmspropState(step, square_avg, momentum_buffer, grad_avg)``; with a schedule it is
        ``ScheduledState(count, inner)`` around that. Updates have the dtype of the moments,
        float32 if that is a half.

    Raises:
        ValueError: a number out of its range.
        TypeError: a hyperparameter that is no number, tensor or tree of them.

    Example:
        >>> tx = rmsprop(lr=0.1, alpha=0.75)
        >>> tx.update(torch.tensor([0.5, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([-0.2000,  0.2000])

    Source: Hinton 2012, "Neural Networks for Machine Learning", lecture 6e; centered: Graves
    2013, arXiv 1308.0850, equations 38 to 45, with torch's eps outside of the root. Averages
    equal torch's to the bit. In float64 parameters do without momentum, and with it differ by a
    rounding a step. The float32 root is IEEE's, and torch's on CPUs that of a math library, so
    that parameters differ by up to 4 roundings a step, which a momentum gathers. Where
    ``v - m^2 = 0``, whose root has an infinite derivative, the derivative is taken as 0; values
    are the same.
    """
    method = Rmsprop(lr, alpha, eps, weight_decay, momentum, centered, maximize, state_dtype)
    return method.made()


def scale_by_rms(
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    centered: bool = False,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """The direction of RMSprop, for chains.

        update = g / (sqrt(v_t - m_t^2) + eps)

    The direction points along the gradient: follow it with ``scale_by_learning_rate``, which
    turns it round. Args, returns and errors are those of ``rmsprop``.

    Example:
        >>> tx = scale_by_rms(alpha=0.75)
        >>> tx.update(torch.tensor([0.5, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 2., -2.])
    """
    return ScaleByRms(alpha, eps, centered, state_dtype).made()
