"""Adam: the direction of a step from the first and the second moment.

``adam`` is the whole optimizer, ``adamw`` the same with decoupled weight decay,
``scale_by_adam`` the direction alone, for chains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._core import numerics
from .._core.hyper import Hyperparameter
from .._core.node import public_node
from .._core.numerics import average, average_square, cast, double, root, wide
from .._core.pytree import Tree
from .._core.transform import GradientTransformation
from .._schedules.scheduled import Schedule
from .method import Direction, Method, Moments


@public_node
class AdamState(NamedTuple):
    """State of Adam: four trees of the structure of params."""

    step: Tree  # (), float64: number of gradients the leaf has seen
    exp_avg: Tree  # shape of the leaf; state_dtype, or the leaf's dtype: m
    exp_avg_sq: Tree  # as exp_avg: v
    max_exp_avg_sq: Tree  # as exp_avg: the largest v so far; without amsgrad one EmptyState()


@dataclass(frozen=True, eq=False, repr=False)
class Adam(Method):
    """Adam with coupled weight decay."""

    state: ClassVar[type[Any]] = AdamState

    lr: Hyperparameter | Schedule = 1e-3
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999)
    eps: Hyperparameter = 1e-8
    weight_decay: Hyperparameter = 0.0
    amsgrad: bool = False
    maximize: bool = False
    state_dtype: torch.dtype | None = None

    def moments(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if self.amsgrad else 2]

    def hyper(self) -> dict[str, Hyperparameter]:
        return {"b1": self.betas[0], "b2": self.betas[1], "eps": self.eps}

    def rule(
        self, t: Tensor, g: Tensor, moments: Moments, h: dict[str, Any]
    ) -> tuple[Tensor, Moments]:
        m = average(moments["exp_avg"], g, h["b1"])
        v = average_square(moments["exp_avg_sq"], g, h["b2"])
        new = {"exp_avg": m, "exp_avg_sq": v}
        if self.amsgrad:
            v = new["max_exp_avg_sq"] = torch.maximum(moments["max_exp_avg_sq"], v)
        r = root(wide(v))
        bias = 1 - double(h["b2"]) ** double(t)
        bias = bias ** torch.full_like(bias, 0.5)  # rounds as Python does in torch; sqrt does not
        denominator = r / cast(bias, r) + cast(h["eps"], r)
        step = cast(-numerics.bias_corrected(h["lr"], h["b1"], t), r)
        return wide(m) * step / denominator, new


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    name: ClassVar[str] = "adamw"
    decoupled: ClassVar[bool] = True


@dataclass(frozen=True, eq=False, repr=False)
class ScaleByAdam(Direction):
    """The direction of Adam: the update of ``Adam`` with a learning rate of -1."""

    kind: ClassVar[type[Method]] = Adam

    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999)
    eps: Hyperparameter = 1e-8
    amsgrad: bool = False
    state_dtype: torch.dtype | None = None


def adam(
    lr: Hyperparameter | Schedule = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Adam, as ``torch.optim.Adam`` does it.

    For each leaf with gradient ``g``, at its ``t``-th gradient::

        g   <- -g                                       if maximize
        g   <- g + weight_decay * p
        m_t  = b1 m_{t-1} + (1 - b1) g
        v_t  = b2 v_{t-1} + (1 - b2) g^2
        w_t  = max(w_{t-1}, v_t) if amsgrad, else v_t
        update = -lr / (1 - b1^t) * m_t / (sqrt(w_t) / sqrt(1 - b2^t) + eps)

    A leaf whose gradient is None keeps its state, is not decayed, and gets the update None.
    Complex leaves go by their real and imaginary parts. Every hyperparameter is a number, a
    tensor of shape () or (1,), or a tree of them, as in ``adamax``.

    Args:
        lr: learning rate, in [0, inf); also a schedule, see ``adamax``. Default: 1e-3.
        betas: decay rates of ``m`` and ``v``, each in [0, 1). Default: (0.9, 0.999).
        eps: added to the root, in [0, inf). Default: 1e-8.
        weight_decay: coupled L2 penalty, in [0, inf). ``update`` then needs ``params``.
            Default: 0.
        amsgrad: divide by the root of the largest ``v`` so far. Default: False.
        maximize: ascend instead of descend. Default: False.
        state_dtype: dtype of the moments and of the arithmetic (complex leaves take its
            complex counterpart). None keeps the dtype of each parameter. Pass torch.float32
            for float16 and bfloat16 parameters: by default a float16 ``v`` loses the square
            of any gradient below 5e-3. Default: None.

    Returns:
        The pair ``(init, update)``. The state is
        ``AdamState(step, exp_avg, exp_avg_sq, max_exp_avg_sq)``; with a schedule it is
        ``ScheduledState(count, inner)`` around that. Updates have the dtype of the moments,
        float32 if that is a half.

    Raises:
        ValueError: a number out of its range.
        TypeError: a hyperparameter that is no number, tensor or tree of them.

    Example:
        >>> tx = adam(lr=0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> tx.update({"w": torch.tensor([0.5, -3.0])}, tx.init(params))[0]
        {'w': tensor([-0.1000,  0.1000])}

    Source: Kingma & Ba 2015, arXiv 1412.6980, Algorithm 1; ``amsgrad`` is Reddi et al. 2018,
    arXiv 1904.09237, Algorithm 2. Departures, all torch's: the coupled weight decay, the bias
    corrections, which AMSGrad has not, and the correction after the maximum. One departure from
    torch: at ``v = 0`` the root has an infinite derivative, and torch's ``differentiable=True``
    gives NaN; here it is taken as 0, so that d update / d g is -lr / eps at a first gradient of
    0, which is right. The float32 root is IEEE's, as in torch's fused form, whose bits the
    parameters have; torch's other forms take that of a math library on CPUs, and their parameters
    differ by up to 5 roundings a step. Moments equal torch's to the bit.
    """
    return Adam(lr, betas, eps, weight_decay, amsgrad, maximize, state_dtype).made()


def adamw(
    lr: Hyperparameter | Schedule = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Adam with decoupled weight decay, as ``torch.optim.AdamW`` does it.

    ``adam`` without its decay, and then::

        update <- update - lr * weight_decay * p

    Args, returns and errors are those of ``adam``; ``weight_decay`` defaults to 1e-2 and
    ``maximize`` does not turn the decay round. Moments equal torch's to the bit. Parameters
    differ from those of its fused form by a rounding a step, because torch shrinks the parameter
    before it adds the rest.

    Example:
        >>> tx, params = adamw(lr=0.1, weight_decay=0.5), torch.tensor([2.0])
        >>> tx.update(torch.tensor([1.0]), tx.init(params), params)[0]
        tensor([-0.2000])

    Source: Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 2, the decay scaled by the
    learning rate as in torch.
    """
    return AdamW(lr, betas, eps, weight_decay, amsgrad, maximize, state_dtype).made()


def scale_by_adam(
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    amsgrad: bool = False,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """The direction of Adam, for chains.

        update = 1 / (1 - b1^t) * m_t / (sqrt(v_t) / sqrt(1 - b2^t) + eps)

    The direction points along the gradient: follow it with ``scale_by_learning_rate``, which
    turns it round. Args, returns and errors are those of ``adam``.

    Example:
        >>> tx = scale_by_adam()
        >>> tx.update(torch.tensor([0.5, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 1.0000, -1.0000])
    """
    return ScaleByAdam(betas, eps, amsgrad, state_dtype).made()
