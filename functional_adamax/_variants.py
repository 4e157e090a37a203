"""Variants of a method, as links of a chain or around another transform.

A sign in front makes sign-Adamax, ``scale_by_amsmax`` in the place of ``scale_by_adamax``
makes its AMS variant, and ``cautious`` around either leaves out the elements that would climb.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import _tree
from ._adamax import Adamax
from ._hyper import Hyperparameter
from ._links import call_update, checked_link
from ._method import Direction, Method
from ._numerics import real_views, sign
from ._spelling import explains_misfits
from ._stage import Seen, Stage
from ._transform import GradientTransformation, Transform
from ._tree import Tree


@dataclass(frozen=True, eq=False, repr=False)
class ScaleBySign(Stage):
    """The sign of each element."""

    name: ClassVar[str] = "scale_by_sign"
    strict: ClassVar[bool] = False

    def rule(self, x: Seen) -> Tensor:
        if x.u.is_complex():
            return torch.view_as_complex(sign(*real_views(x.u)))
        return sign(x.u)


@dataclass(frozen=True, eq=False, repr=False)
class ScaleByAmsmax(Direction):
    """The direction of Adamax over the largest u so far, which is Adamax with b2 = 1."""

    name: ClassVar[str] = "scale_by_amsmax"
    kind: ClassVar[type[Method]] = Adamax

    beta: Hyperparameter = 0.9
    eps: Hyperparameter = 1e-8
    state_dtype: torch.dtype | None = None
    derivative_floor: float | None = None

    def method(self) -> Adamax:
        dtype, floor = self.state_dtype, self.derivative_floor
        betas = (self.beta, 1.0)
        return Adamax(-1.0, betas, self.eps, state_dtype=dtype, derivative_floor=floor)


@dataclass(frozen=True, eq=False, repr=False)
class Cautious(Transform):
    """``inner`` without the elements of its updates that go against the gradient."""

    name: ClassVar[str] = "cautious"

    inner: GradientTransformation
    ascending: bool = False

    def init(self, params: Tree) -> Any:
        return self.inner.init(params)

    def update(
        self, updates: Tree, state: Any, params: Tree = None, **extra: Any
    ) -> tuple[Tree, Any]:
        grads, spec = _tree.flatten(updates)
        new, state = call_update(self.inner, updates, state, params, extra)
        given = _tree.match(spec, new, "the updates of inner", "the gradients")
        leaves = [
            _agreeing(u, g, self.ascending) if isinstance(u, Tensor) and g is not None else u
            for u, g in zip(given, grads, strict=True)
        ]
        return _tree.unflatten(spec, leaves), state


def _agreeing(u: Tensor, g: Tensor, ascending: bool) -> Tensor:
    """``u`` where it goes the way of ``g``, scaled up by one over the share of those elements."""
    if u.is_complex():
        u, g = real_views(u, g)
        return torch.view_as_complex(_agreeing(u, g, ascending))
    g = g if ascending else -g
    against = ((u >= 0) & (g <= 0)) | ((u <= 0) & (g >= 0))  # neither for NaN, which stays
    dtype = torch.promote_types(u.dtype, torch.float32)
    share = torch.mean((~against).to(dtype)).clamp(min=1e-3)
    return torch.where(against, 0.0, u.to(dtype) / share).to(u.dtype)


@explains_misfits
def scale_by_sign() -> GradientTransformation:
    """Replace each update by its sign.

        update <- sign(update)

    The sign of 0 is 0 and that of NaN is NaN; complex updates go by their real and imaginary
    parts. Its derivative is 0. In front of a method it gives that method signs for gradients;
    behind it, every element moves by the learning rate.

    Returns:
        A transform without state.

    Example:
        >>> tx = chain(scale_by_sign(), scale_by_adamax(), scale_by_learning_rate(0.1))
        >>> params = torch.zeros(2)
        >>> tx.update(torch.tensor([1e-4, -7.0]), tx.init(params))[0]
        tensor([-0.1000,  0.1000])

    Source: Bernstein et al. 2018, "signSGD", arXiv 1802.04434.
    """
    return ScaleBySign().pair()


@explains_misfits
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


@explains_misfits
def cautious(inner: GradientTransformation, *, ascending: bool = False) -> GradientTransformation:
    """Leave out the elements of the updates of ``inner`` that go against the gradient.

        update <- inner(g)
        update <- update * [update * g < 0] / max(mean[update * g < 0], 1e-3)

    The mean is over the elements of a leaf. Momentum can carry an element uphill; such
    elements wait, and the others are scaled up in their stead. An element that is 0, or whose
    gradient is, counts as against. NaN stays NaN. Complex leaves go by their real and imaginary
    parts.

    Args:
        inner: the transform. Weight decay belongs outside of it, or it is masked too.
        ascending: the updates of ``inner`` point along the gradient, so keep those with
            update * g > 0: for a direction such as ``scale_by_adamax()``, and for an optimizer
            with ``maximize``. Default: False.

    Returns:
        A transform with the state of ``inner``.

    Raises:
        TypeError: ``inner`` is not a pair of functions.

    Example:
        >>> tx = cautious(sgd(0.1, momentum=0.9))
        >>> state = tx.init(torch.zeros(2))
        >>> for g in ([1.0, 1.0], [-0.5, 1.0]):
        ...     updates, state = tx.update(torch.tensor(g), state)
        >>> updates
        tensor([ 0.0000, -0.3800])

    Source: Liang et al. 2024, arXiv 2411.16085, Algorithm 1, with the scale of the authors'
    code, one over the mean bounded by 1e-3, for the paper's d / (|mask| + 1).
    """
    return Cautious(checked_link("inner", inner), ascending).pair()
