"""SGD: a step along the gradient, or along a running sum of gradients.

The one method without a memory of scale. Without momentum it is
``scale_by_learning_rate`` with torch's options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._core import hyper
from .._core.hyper import Hyperparameter
from .._core.node import public_node
from .._core.numerics import add_scaled, cast, wide
from .._core.pytree import Tree
from .._core.transform import GradientTransformation
from .._schedules.scheduled import Schedule
from .method import Method, Moments


@public_node
class SgdState(NamedTuple):
    """State of SGD: two trees of the structure of params."""

    step: Tree  # (), float64: number of gradients the leaf has seen
    momentum_buffer: Tree  # shape and dtype of the leaf; one EmptyState() if momentum is 0


@dataclass(frozen=True, eq=False, repr=False)
class Sgd(Method):
    """Gradient descent with momentum."""

    state: ClassVar[type[Any]] = SgdState

    lr: Hyperparameter | Schedule
    momentum: Hyperparameter = 0.0
    dampening: Hyperparameter = 0.0
    weight_decay: Hyperparameter = 0.0
    nesterov: bool = False
    maximize: bool = False

    def moments(self) -> tuple[str, ...]:
        return () if hyper.is_zero(self.momentum) else ("momentum_buffer",)

    def hyper(self) -> dict[str, Hyperparameter]:
        return {"momentum": self.momentum, "dampening": self.dampening}

    def rule(
        self, t: Tensor, g: Tensor, moments: Moments, h: dict[str, Any]
    ) -> tuple[Tensor, Moments]:
        if not moments:
            return wide(g) * cast(-h["lr"], wide(g)), {}
        b = moments["momentum_buffer"]
        kept = wide(b) * cast(h["momentum"], wide(b))
        later = add_scaled(kept, wide(g), 1 - h["dampening"])
        b = torch.where(t == 1, wide(g), later).to(g.dtype)
        direction = add_scaled(wide(g), wide(b), h["momentum"]) if self.nesterov else wide(b)
        return direction * cast(-h["lr"], direction), {"momentum_buffer": b}


def sgd(
    lr: Hyperparameter | Schedule,
    momentum: Hyperparameter = 0.0,
    dampening: Hyperparameter = 0.0,
    weight_decay: Hyperparameter = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD`` does it.

    For each leaf with gradient ``g``, at its ``t``-th gradient::

        g   <- -g                                                  if maximize
        g   <- g + weight_decay * p
        b_t  = g                                                   for t = 1
        b_t  = momentum * b_{t-1} + (1 - dampening) * g            for t > 1
        update = -lr * (g + momentum * b_t)                        if nesterov
        update = -lr * b_t                                         if not

    A leaf whose gradient is None keeps its state, is not decayed, and gets the update None.
    Every hyperparameter is a number, a tensor of shape () or (1,), or a tree of them, as in
    ``adamax``.

    Args:
        lr: learning rate, in [0, inf); also a schedule, see ``adamax``.
        momentum: in [0, inf). The number 0 keeps no buffer, ``b_t = g``. Default: 0.
        dampening: a number of either sign. Default: 0.
        weight_decay: coupled L2 penalty, in [0, inf). ``update`` then needs ``params``.
            Default: 0.
        nesterov: look ahead by one step; needs momentum, and a dampening of 0. Default: False.
        maximize: ascend instead of descend. Default: False.

    Returns:
        The pair ``(init, update)``. The state is ``SgdState(step, momentum_buffer)``; with a
        schedule it is ``ScheduledState(count, inner)`` around that. Updates have the dtype of
        the leaf, float32 if that is a half.

    Raises:
        ValueError: a number out of its range, or ``nesterov`` without momentum.
        TypeError: a hyperparameter that is no number, tensor or tree of them.

    Example:
        >>> tx, params = sgd(0.1, momentum=0.5), torch.tensor([1.0, 2.0])
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(torch.ones(2), state)
        >>> updates
        tensor([-0.1500, -0.1500])

    Source: Sutskever et al. 2013, "On the importance of initialization and momentum in deep
    learning", in torch's form: the learning rate is outside the buffer. Buffers equal torch's
    to the bit. Parameters differ by a rounding a step, because torch does not round the update
    before it adds it.
    """
    transform = Sgd(lr, momentum, dampening, weight_decay, nesterov, maximize).made()
    if nesterov and (hyper.is_zero(momentum) or not _may_be_zero(dampening)):
        raise ValueError(
            "nesterov needs a momentum above 0 and a dampening of 0, got "
            f"momentum={momentum!r} and dampening={dampening!r}"
        )
    return transform


def _may_be_zero(value: Hyperparameter) -> bool:
    return isinstance(value, Tensor) or hyper.is_zero(value)
