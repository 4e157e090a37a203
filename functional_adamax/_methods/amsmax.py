"""The direction of Adamax whose denominator never decreases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .._core.hyper import Hyperparameter
from .._core.transform import GradientTransformation
from .adamax import Adamax
from .method import Direction, Method


@dataclass(frozen=True, eq=False, repr=False)
class ScaleByAmsmax(Direction):
    """The direction of Adamax over the largest u so far, which is Adamax with b2 = 1."""

    kind: ClassVar[type[Method]] = Adamax

    beta: Hyperparameter = 0.9
    eps: Hyperparameter = 1e-8
    state_dtype: torch.dtype | None = None
    derivative_floor: float | None = None

    def method(self) -> Adamax:
        dtype, floor = self.state_dtype, self.derivative_floor
        betas = (self.beta, 1.0)
        return Adamax(-1.0, betas, self.eps, state_dtype=dtype, derivative_floor=floor)


def scale_by_amsmax(
    beta: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-8,
    state_dtype: torch.dtype | None = None,
    *,
    derivative_floor: float | None = None,
) -> GradientTransformation:
    """The direction of Adamax with AMSGrad's rule: the denominator never decreases.

        update = 1 / (1 - beta^t) * m_t / max(u_1, ..., u_t)

    In that maximum the decay of u has no part, for u_t = max_s b2^(t-s) (|g_s| + eps) is
    largest where s = t. So it is max_s (|g_s| + eps), there is no second beta, and the state is
    that of Adamax.

    The direction points along the gradient: follow it with ``scale_by_learning_rate``, which
    turns it round.

    Args:
        beta: decay rate of ``m``, in [0, 1): a number, a tensor of shape () or (1,), or a tree
            of them, as in ``adamax``. Default: 0.9.
        eps: as in ``adamax``. Default: 1e-8.
        state_dtype: as in ``adamax``. Default: None.
        derivative_floor: as in ``adamax``. Default: None.

    Returns:
        The pair ``(init, update)``. The state is ``AdamaxState(step, exp_avg, exp_inf)``.

    Raises:
        ValueError: a number out of its range.
        TypeError: a hyperparameter that is no number, tensor or tree of them.

    Example:
        >>> tx = chain(scale_by_amsmax(beta=0.0), scale_by_learning_rate(0.1))
        >>> state = tx.init(torch.zeros(1))
        >>> for g in (4.0, 1.0):
        ...     updates, state = tx.update(torch.tensor([g]), state)
        >>> updates
        tensor([-0.0250])

    Source: Reddi et al. 2018, arXiv 1904.09237, Algorithm 2 (AMSGrad), its maximum taken of
    the infinity norm of Kingma & Ba 2015, arXiv 1412.6980, Algorithm 2.
    """
    return ScaleByAmsmax(beta, eps, state_dtype, derivative_floor).made()
