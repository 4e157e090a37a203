"""The definition of Adamax, for one tensor, out of place.

Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 2, with torch's place for eps and
torch's coupled weight decay. Everything else in the library carries tensors to
these functions, or is an executor that a test holds to them bit for bit.

Where the spelling decides the last bit it follows torch: ``lerp`` for m, a decay
by a fused multiply-add, the scale in double precision, and half-precision
updates in float32, rounded once when they are added to the parameter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._bounded import quotient
from ._hyper import cast

HALF = (torch.float16, torch.bfloat16)


class Leaf(NamedTuple):
    """Everything one step of one leaf needs; hyperparameters broadcast to the leaf."""

    p: Any  # the parameter; None where nothing asks for it
    g: Any  # its gradient, or None
    m: Any  # exp_avg
    u: Any  # exp_inf
    t: Any  # step, ()
    lr: Any
    b1: Any
    b2: Any
    eps: Any
    weight_decay: Any
    floor: float | None = None  # for derivatives, see _bounded.py


class Columns(NamedTuple):
    """The tensors of many leaves, each field a list."""

    p: list[Any]
    g: list[Any]
    m: list[Any]
    u: list[Any]
    t: list[Any]


class Pull(NamedTuple):
    """A step of one leaf, without decay, to be differentiated in reverse."""

    g: Tensor
    u: Tensor
    m_new: Tensor
    u_new: Tensor
    d_out: Tensor  # cotangents of the results
    d_m_new: Tensor | None  # both or none
    d_u_new: Tensor | None
    scale: Any  # a number or a tensor of shape ()
    b1: float
    b2: float
    eps: float
    wants_state: bool  # whether the cotangents of m and u are asked for


def step(leaf: Leaf, maximize: bool, decoupled: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The whole step of one leaf that has a gradient; returns ``(update, t, m, u)``.

    g <- -g                              if maximize
    g <- g + weight_decay * p            coupled decay
    update, t, m, u <- adamax(g, m, u, t)
    update <- update - lr * weight_decay * p     decoupled decay, instead of the coupled one
    """
    g = conditioned(leaf, maximize, decoupled)
    m, u, t, lr, b1, b2, eps, _, floor = leaf[2:]
    update, t, m, u = adamax(g, m, u, t, lr=lr, b1=b1, b2=b2, eps=eps, floor=floor)
    return (decayed(update, leaf) if decoupled else update), t, m, u


def conditioned(leaf: Leaf, maximize: bool, decoupled: bool) -> Tensor:
    """The gradient that enters the moments: in their dtype, turned round, with the decay."""
    g: Tensor = leaf.g if leaf.g.dtype == leaf.m.dtype else leaf.g.to(leaf.m.dtype)
    if maximize:
        g = -g
    if decays(leaf) and not decoupled:
        g = add_scaled(g, leaf.p.to(g.dtype), leaf.weight_decay)
    return g


def decayed(update: Tensor, leaf: Leaf) -> Tensor:
    """The update with the decoupled decay."""
    if not decays(leaf):
        return update
    return add_scaled(update, leaf.p.to(update.dtype), -(leaf.lr * leaf.weight_decay))


def decays(leaf: Leaf) -> bool:
    """Whether there is a weight decay, as far as can be told without reading a tensor."""
    return isinstance(leaf.weight_decay, Tensor) or leaf.weight_decay != 0


def add_scaled(x: Tensor, y: Tensor, factor: Any) -> Tensor:
    """``x + factor * y`` as a fused multiply-add, for a number or a tensor alike."""
    if torch.compiler.is_compiling() and not isinstance(factor, Tensor):
        factor = x.new_ones(()) * factor  # as alpha, every other number would be compiled anew
    if isinstance(factor, Tensor):
        return torch.addcmul(x, y, cast(factor, x))
    return torch.add(x, y, alpha=factor)


def scaled(x: Tensor, factor: Any) -> Tensor:
    """``factor * x`` in the dtype of ``x``; halves in float32, complex numbers by components."""
    if x.is_complex():
        (parts,) = real_views(x)
        return torch.view_as_complex(scaled(parts, over_components(factor)))
    product: Tensor = wide(x) * cast(factor, wide(x))
    return product.to(x.dtype)


def adamax(
    g: Tensor,
    m: Tensor,
    u: Tensor,
    t: Tensor,
    *,
    lr: Any,
    b1: Any,
    b2: Any,
    eps: Any,
    floor: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One Adamax step for a real or complex leaf; returns ``(update, t, m, u)``.

        m <- b1 m + (1 - b1) g
        u <- max(b2 u, |g| + eps)
        update = -lr / (1 - b1^t) * m / u        (t counts from 1)

    Complex tensors go by components: |g| is taken of the real and of the
    imaginary part, not of the modulus.

    ``g`` is the conditioned gradient; ``m`` and ``u`` have its shape and dtype; ``t``, of
    shape (), is the number of steps taken before; the hyperparameters are numbers, or tensors
    that broadcast to ``g``. ``update`` is float32 where ``m`` is a half. ``floor`` bounds the
    derivative of the quotient.
    """
    if g.is_complex():
        g, m, u = real_views(g, m, u)
        lr, b1, b2, eps = (over_components(x) for x in (lr, b1, b2, eps))
        update, t, m, u = adamax(g, m, u, t, lr=lr, b1=b1, b2=b2, eps=eps, floor=floor)
        return torch.view_as_complex(update), t, torch.view_as_complex(m), torch.view_as_complex(u)
    t = t + 1
    factor = cast(-bias_corrected(lr, b1, t), wide(m))
    update, m, u = direction(g, m, u, factor, b1, b2, eps, floor)
    return update, t, m, u


def direction(
    g: Tensor, m: Tensor, u: Tensor, factor: Any, b1: Any, b2: Any, eps: Any, floor: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``(factor * m / u, m, u)`` after a real gradient."""
    dtype = m.dtype
    m = torch.lerp(wide(m), wide(g), cast(1 - double(b1), wide(m))).to(dtype)
    u = torch.maximum((wide(u) * cast(b2, wide(u))).to(dtype), g.abs() + cast(eps, g))
    return quotient(wide(m), factor, wide(u), floor), m, u


def pull(x: Pull) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of ``direction``, in reverse: the cotangents of g, m and u.

    A tie in the maximum shares a cotangent in halves and a NaN hands it to both sides, as torch's
    maximum does.
    """
    g, u, m_new, u_new, d_out, d_m, d_u, scale, b1, b2, eps, _ = x
    by_m = d_out * scale / u_new
    by_u = -(by_m * m_new / u_new)
    if d_m is not None:
        by_m, by_u = by_m + d_m, by_u + d_u
    old, new = u * b2, g.abs() + eps
    half = torch.where(old == new, by_u / 2, by_u)
    by_new, by_old = half.masked_fill(new < old, 0), half.masked_fill(old < new, 0)
    return by_m * (1 - b1) + by_new * g.sgn(), by_m * b1, by_old * b2


def real_views(*tensors: Tensor) -> list[Tensor]:
    """Complex tensors as real ones with a last dimension of two; only a lazy view is copied."""
    return [torch.view_as_real(x.resolve_conj().resolve_neg()) for x in tensors]


def bias_corrected(lr: Any, b1: Any, t: Tensor) -> Any:
    """``lr / (1 - b1^t)`` in double precision; a tensor ``lr`` divides in its own dtype."""
    bias = 1 - double(b1) ** double(t)
    if not isinstance(lr, Tensor):
        return torch.ones_like(bias) * lr / bias  # not full_like, which compiles a number in
    lr = lr if lr.is_floating_point() else lr.to(torch.get_default_dtype())
    rate = wide(lr)
    return (rate / bias.to(dtype=rate.dtype, device=lr.device)).to(lr.dtype)


def scale(leaf: Leaf, t: Tensor) -> Tensor:
    """The factor of m / u in the step that makes ``t``, for a real leaf that is no half."""
    factor: Tensor = cast(-bias_corrected(leaf.lr, leaf.b1, t), leaf.m)
    return factor


def step_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def moment_dtype(p: Tensor, state_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of the moments of ``p``."""
    if state_dtype is None:
        return p.dtype
    dtype: torch.dtype = state_dtype.to_complex() if p.is_complex() else state_dtype
    return dtype


def double(x: Any) -> Any:
    """A tensor in the dtype of steps; a number as it is."""
    return x.to(step_dtype(x.device)) if isinstance(x, Tensor) else x


def wide(x: Tensor) -> Tensor:
    """Half precision as float32, in which torch's own kernels compute it; the rest as it is."""
    return x.float() if x.dtype in HALF else x


def over_components(x: Any) -> Any:
    """A hyperparameter as it meets the components of a complex leaf."""
    return x.unsqueeze(-1) if isinstance(x, Tensor) and x.dim() else x
