"""Arithmetic on one tensor that has torch's bits: precision, components, averages, biases.

Where the spelling decides the last bit it follows torch: ``lerp`` for an average, a decay by a
fused multiply-add, scales in double precision, and halves in float32, rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import sharded

HALF = (torch.float16, torch.bfloat16)
REAL = (torch.float32, torch.float64)


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


def cast(value: Any, like: Tensor) -> Any:
    """Return a tensor ``value`` in the dtype and on the device of ``like``; a number as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.to(dtype=like.dtype, device=like.device)


def over_components(x: Any) -> Any:
    """A hyperparameter as it meets the components of a complex leaf."""
    return x.unsqueeze(-1) if isinstance(x, Tensor) and x.dim() else x


def real_views(*tensors: Tensor) -> list[Tensor]:
    """Complex tensors as real ones with a last dimension of two; only a lazy view is copied."""
    return [torch.view_as_real(x.resolve_conj().resolve_neg()) for x in tensors]


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


def bias_corrected(lr: Any, b1: Any, t: Tensor) -> Any:
    """``lr / (1 - b1^t)`` in double precision; a tensor ``lr`` divides in its own dtype."""
    bias = 1 - double(b1) ** double(t)
    if not isinstance(lr, Tensor):
        return torch.ones_like(bias) * lr / bias  # not full_like, which compiles a number in
    lr = lr if lr.is_floating_point() else lr.to(torch.get_default_dtype())
    rate = wide(lr)
    return (rate / bias.to(dtype=rate.dtype, device=lr.device)).to(lr.dtype)


def over_bias(factor: Any, decay: Any, t: Tensor) -> Any:
    """``factor / (1 - decay^t)`` in double precision."""
    bias = 1 - double(decay) ** double(t)
    return torch.ones_like(bias) * double(factor) / bias  # number / tensor would round twice


def average(m: Tensor, g: Tensor, decay: Any) -> Tensor:
    """``decay * m + (1 - decay) * g``, as torch's ``lerp``."""
    wider = wide(m)
    return torch.lerp(wider, wide(g), complement(decay, wider)).to(m.dtype)


def average_square(v: Tensor, g: Tensor, decay: Any) -> Tensor:
    """``decay * v + (1 - decay) * g * g``, as torch's ``addcmul`` after a product."""
    wider = wide(v)
    kept = wide((wider * cast(decay, wider)).to(v.dtype))
    return torch.addcmul(kept, wide(g) * complement(decay, wider), wide(g)).to(v.dtype)


def maximum_norm(u: Tensor, g: Tensor, decay: Any, eps: Any) -> Tensor:
    """``max(decay * u, |g| + eps)``."""
    wider = wide(u)
    return torch.maximum((wider * cast(decay, wider)).to(u.dtype), g.abs() + cast(eps, g))


def complement(decay: Any, like: Tensor) -> Any:
    """``1 - decay`` in double precision; of a tensor, rounded to the dtype of ``like``."""
    return cast(1 - double(decay), like) if isinstance(decay, Tensor) else 1 - decay


def sign(x: Tensor) -> Tensor:
    """The sign, with NaN kept, which ``torch.sign`` takes for 0."""
    return torch.where(x.isnan(), x, x.sign())


def root(x: Tensor) -> Tensor:
    """The square root, with the derivative 0, and not infinity, at 0.

    In float32 it is the float nearest to the root, on every computer. On CPUs torch's own comes
    from a library that may miss it by one; the root in float64, rounded, does not.
    """
    zero = x == 0
    inside = torch.where(zero, 1.0, x)
    found = inside.double().sqrt().to(x.dtype) if x.is_cpu else inside.sqrt()
    return torch.where(zero, 0.0, found)


def exact_root(x: Tensor) -> Tensor:
    """``root`` of a number in float64: the one nearest to the root, on every computer.

    What torch's own misses by one on a CPU is found by the rest ``x - r * r``, which is exact. Not
    for numbers below 2^-900 or above 2^900.
    """
    found = root(x)
    if not x.is_cpu:
        return found
    r, x = found.detach(), x.detach()
    split = r * (2.0**27 + 1)
    high = split - (split - r)
    low = r - high
    product = r * r
    rest = (x - product) - (((high * high - product) + 2 * high * low) + low * low)
    nearest = r + rest / (2 * r)
    return found + torch.where((r > 0) & (r < torch.inf), nearest - r, 0.0)


def blend(old: Tensor, new: Tensor, weight: Any) -> Tensor:
    """``old + weight * (new - old)`` in the dtype of ``old``; halves are computed in float32."""
    if old.is_complex():
        old, new = real_views(old, new)
        return torch.view_as_complex(blend(old, new, over_components(weight)))
    wide = torch.promote_types(old.dtype, torch.float32)
    x, y = old.to(wide), new.to(wide)
    return torch.lerp(x, y, cast(weight, x)).to(old.dtype)


def add(p: Tensor, update: Tensor) -> Any:
    """``p + update`` in the wider dtype, rounded once to the dtype of ``p``.

    Complex tensors add by components, so that a NaN in one does not reach the other.
    """
    if p.is_complex():
        parts, update = real_views(p, update)
        new = torch.view_as_complex((parts + update).to(parts.dtype))
    else:
        new = (p + update).to(p.dtype)
    return sharded.placed_like(p, new)
