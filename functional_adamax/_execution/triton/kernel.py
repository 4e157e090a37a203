"""The kernels of ``executor.py``: the rule on one block of one tensor of a table.

A row of the table has eight entries: the addresses of p, g, m, u, t and lr, the number of elements,
and how many of them lie in whole blocks whose addresses are multiples of 16 bytes. Those are read
in vectors; the others one by one, under a mask.

The functions are plain until ``compiled`` hands them to Triton, which need not be installed. What
decides the last bit is spelled out: fused multiply-adds where torch fuses, IEEE division, and no
contraction (``OPTIONS``) elsewhere.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

tl: Any = None  # triton.language
libdevice: Any = None
tensor: TypeAlias = Any  # and these three are of it, by names that it knows in annotations
float64: TypeAlias = Any
constexpr: TypeAlias = Any

ROW = 8
BLOCK = 1024  # elements of a program of ``step``
LEAVES = 128  # leaves of a program of ``count``
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


def count(
    table: tensor,
    scales: tensor,
    n: tensor,
    lr: float64,
    b1: float64,
    weight_decay: float64,
    t_type: constexpr,
    lr_type: constexpr,
    decoupled: constexpr,
    leaves: constexpr,
) -> None:
    """Count the steps of ``n`` leaves: t <- t + 1, scales <- (scale of m / u, factor of p)."""
    i = tl.program_id(0) * leaves + tl.arange(0, leaves)
    inside = i < n
    row = table + i * 8
    at_t = tl.load(row + 4, inside, 0).to(tl.pointer_type(t_type))
    t = tl.load(at_t, inside, 0) + 1
    tl.store(at_t, t, inside)
    bias = 1 - libdevice.pow(tl.full((leaves,), b1, tl.float64), t.to(tl.float64))
    decay = tl.full((leaves,), weight_decay, tl.float64)
    if lr_type is None:
        rate = tl.full((leaves,), lr, tl.float64)
    else:
        rate = tl.load(tl.load(row + 5, inside, 0).to(tl.pointer_type(lr_type)), inside, 0)
    scale = -_over(rate, bias.to(rate.dtype))
    if decoupled:
        decay = -(rate * decay.to(rate.dtype)).to(tl.float64)
    tl.store(scales + i, scale.to(tl.float64), inside)
    tl.store(scales + n + i, decay, inside)


def step(
    table: tensor,
    blocks: tensor,
    scales: tensor,
    n: tensor,
    scale: float64,
    decay: float64,
    w: float64,
    b2: float64,
    eps: float64,
    p_type: constexpr,
    g_type: constexpr,
    m_type: constexpr,
    decays: constexpr,
    maximize: constexpr,
    counted: constexpr,
    size: constexpr,
) -> None:
    """Step the leaf and the block that this program's entry of ``blocks`` names.

    ``scale`` and ``decay`` are those of every leaf, or, where ``counted``, in ``scales``; ``w`` is
    1 - b1. ``decays`` is 0 for no decay, 1 for a coupled and 2 for a decoupled one.
    """
    block = tl.load(blocks + tl.program_id(0))
    leaf = block >> 32
    start = (block & 0xFFFFFFFF) * size
    row = table + leaf * 8
    factor = tl.full((), scale, tl.float64)
    alpha = tl.full((), decay, tl.float64)
    if counted:
        factor = tl.load(scales + leaf)
        alpha = tl.load(scales + n + leaf)
    factor, alpha = factor.to(m_type), alpha.to(m_type)
    w_ = tl.full((), w, tl.float64).to(m_type)
    b2_ = tl.full((), b2, tl.float64).to(m_type)
    eps_ = tl.full((), eps, tl.float64).to(m_type)
    p, g, m, u = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    if start < tl.load(row + 7):
        _rule(
            p, g, m, u, row, start, factor, alpha, w_, b2_, eps_,
            p_type, g_type, m_type, decays, maximize, True, size,
        )  # fmt: skip
    else:
        _rule(
            p, g, m, u, row, start, factor, alpha, w_, b2_, eps_,
            p_type, g_type, m_type, decays, maximize, False, size,
        )  # fmt: skip


def _rule(
    p: tensor,
    g: tensor,
    m: tensor,
    u: tensor,
    row: tensor,
    start: tensor,
    factor: tensor,
    alpha: tensor,
    w: tensor,
    b2: tensor,
    eps: tensor,
    p_type: constexpr,
    g_type: constexpr,
    m_type: constexpr,
    decays: constexpr,
    maximize: constexpr,
    whole: constexpr,
    size: constexpr,
) -> None:
    """Step one block, given addresses of tensors, by ``_execution.rule.step``."""
    at_p = p.to(tl.pointer_type(p_type))
    at_g = g.to(tl.pointer_type(g_type))
    at_m = m.to(tl.pointer_type(m_type))
    at_u = u.to(tl.pointer_type(m_type))
    i = start + tl.arange(0, size)
    inside = None
    if whole:
        at_p, at_g = tl.multiple_of(at_p, 16), tl.multiple_of(at_g, 16)
        at_m, at_u = tl.multiple_of(at_m, 16), tl.multiple_of(at_u, 16)
    else:
        inside = i < tl.load(row + 6)
    p = tl.load(at_p + i, inside).to(m_type)
    g = tl.load(at_g + i, inside).to(m_type)
    m = tl.load(at_m + i, inside)
    u = tl.load(at_u + i, inside)
    if maximize:
        g = g * -1.0  # in some versions -g is 0 - g, of another sign where g is 0
    if decays == 1:
        g = _fused(alpha, p, g)
    m = _fused(tl.where(w < 0.5, w, w - 1), g - m, tl.where(w < 0.5, m, g))
    u = u * b2
    g = tl.abs(g) + eps
    u = tl.where((u > g) | (u != u), u, g)
    update = _over(m * factor, u)
    if decays == 2:
        update = _fused(alpha, p, update)
    tl.store(at_p + i, (p + update).to(p_type), inside)
    tl.store(at_m + i, m, inside)
    tl.store(at_u + i, u, inside)


def _fused(factor: tensor, x: tensor, y: tensor) -> tensor:
    """Return ``factor * x + y``, rounded once."""
    return tl.fma(tl.zeros_like(x) + factor, x, y)


def _over(x: tensor, y: tensor) -> tensor:
    """Return ``x / y`` by IEEE; of float32, Triton's sign for division is an approximation."""
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@cache
def compiled() -> tuple[Any, Any]:
    """``count`` and ``step`` as Triton's kernels."""
    jit, language = import_module("triton").jit, import_module("triton.language")
    globals().update(
        tl=language,
        libdevice=import_module("triton.language.extra.libdevice"),
        **{name: getattr(language, name) for name in ("tensor", "float64", "constexpr")},
        **{f.__name__: jit(f) for f in (_rule, _fused, _over)},
    )
    return jit(count, do_not_specialize=["n"]), jit(step, do_not_specialize=["n"])


def is_interpreted() -> bool:
    """Whether Triton interprets the kernels, as TRITON_INTERPRET=1 in the environment asks for."""
    return not isinstance(compiled()[1], import_module("triton").JITFunction)


def named(dtype: Any) -> Any:
    """Triton's type for torch's ``dtype``; None for None."""
    return dtype and getattr(tl, str(dtype).removeprefix("torch."))
