"""Lion: the sign of an interpolation between the gradient and its running average.

Every element moves by the learning rate, so it wants one 3 to 10 times smaller than Adam's,
and a weight decay as much larger. ``lion`` is the whole optimizer, ``scale_by_lion`` the
direction alone, for chains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._core.hyper import Hyperparameter
from .._core.node import public_node
from .._core.numerics import average, cast, sign, wide
from .._core.pytree import Tree
from .._core.transform import GradientTransformation
from .._schedules.scheduled import Schedule
from .method import Direction, Method, Moments


@public_node
class LionState(NamedTuple):
    """State of Lion: two trees of the structure of params."""

    step: Tree  # (), float64: number of gradients the leaf has seen
    exp_avg: Tree  # shape of the leaf; state_dtype, or the leaf's dtype: m


@dataclass(frozen=True, eq=False, repr=False)
class Lion(Method):
    """Lion with decoupled weight decay."""

    state: ClassVar[type[Any]] = LionState
    decoupled: ClassVar[bool] = True

    lr: Hyperparameter | Schedule = 1e-4
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.99)
    weight_decay: Hyperparameter = 0.0
    maximize: bool = False
    state_dtype: torch.dtype | None = None

    def hyper(self) -> dict[str, Hyperparameter]:
        return {"b1": self.betas[0], "b2": self.betas[1]}

    def rule(
        self, t: Tensor, g: Tensor, moments: Moments, h: dict[str, Any]
    ) -> tuple[Tensor, Moments]:
        del t
        m = moments["exp_avg"]
        direction = sign(average(wide(m), wide(g), h["b1"]))
        return direction * cast(-h["lr"], direction), {"exp_avg": average(m, g, h["b2"])}


@dataclass(frozen=True, eq=False, repr=False)
class ScaleByLion(Direction):
    """The direction of Lion: the update of ``Lion`` with a learning rate of -1."""

    kind: ClassVar[type[Method]] = Lion

    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.99)
    state_dtype: torch.dtype | None = None


def lion(
    lr: Hyperparameter | Schedule = 1e-4,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.99),
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Lion, an optimizer found by a search over programs: sign descent with two averages.

    For each leaf with gradient ``g``::

        g   <- -g                                          if maximize
        c    = b1 m_{t-1} + (1 - b1) g
        m_t  = b2 m_{t-1} + (1 - b2) g
        update = -lr * sign(c) - lr * weight_decay * p

    A leaf whose gradient is None keeps its state, is not decayed, and gets the update None.
    The sign of 0 is 0 and that of NaN is NaN; complex leaves go by their real and imaginary
    parts. Derivatives by gradients, moments and betas are 0 almost everywhere. Every
    hyperparameter is a number, a tensor of shape () or (1,), or a tree of them, as in
    ``adamax``.

    Args:
        lr: learning rate, in [0, inf); also a schedule, see ``adamax``. Default: 1e-4.
        betas: weights of ``m`` in the step and in the next ``m``, each in [0, 1). Default:
            (0.9, 0.99).
        weight_decay: decoupled weight decay, in [0, inf). ``update`` then needs ``params``.
            Default: 0.
        maximize: ascend instead of descend; does not turn the decay round. Default: False.
        state_dtype: dtype of the moment and of the arithmetic (complex leaves take its
            complex counterpart). None keeps the dtype of each parameter. Default: None.

    Returns:
        The pair ``(init, update)``. The state is ``LionState(step, exp_avg)``; with a schedule
        it is ``ScheduledState(count, inner)`` around that. Updates have the dtype of the
        moment, float32 if that is a half.

    Raises:
        ValueError: a number out of its range.
        TypeError: a hyperparameter that is no number, tensor or tree of them.

    Example:
        >>> tx, params = lion(lr=0.1, weight_decay=0.5), torch.tensor([2.0, 0.0])
        >>> tx.update(torch.tensor([7.0, -0.3]), tx.init(params), params)[0]
        tensor([-0.2000,  0.1000])

    Source: Chen et al. 2023, arXiv 2302.06675, Algorithm 2.
    """
    return Lion(lr, betas, weight_decay, maximize, state_dtype).made()


def scale_by_lion(
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.99),
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """The direction of Lion, for chains.

        update = sign(b1 m_{t-1} + (1 - b1) g)

    The direction points along the gradient: follow it with ``scale_by_learning_rate``, which
    turns it round. Args, returns and errors are those of ``lion``.

    Example:
        >>> tx = scale_by_lion()
        >>> tx.update(torch.tensor([0.5, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 1., -1.])
    """
    return ScaleByLion(betas, state_dtype).made()
