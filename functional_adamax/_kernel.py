"""Executor: the native kernel of ``native/``, one call for many tensors, one pass over memory.

It takes plain float32 and float64 tensors on the CPU, whose elements lie side by side in the same
order. When a dtype is first used the kernel is held against the rule, and stays off if a bit
differs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _rule, _tree
from ._rule import Leaf

_native: Any = None
if os.environ.get("FUNCTIONAL_ADAMAX_NATIVE", "1") != "0":
    with contextlib.suppress(ImportError):  # built without a compiler
        from . import _native

_DTYPES = (torch.float32, torch.float64)
_PLAIN = {Tensor, torch.nn.Parameter, torch.nn.Buffer}


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


def ready(leaves: list[Leaf]) -> list[Leaf] | None:
    """Return ``leaves`` as the kernel reads them, or None if it cannot take them all.

    All have gradients; each is plain, of one shape and dtype.
    """
    if _native is None:
        return None
    if not _native.are_ready(leaves):
        if not all(map(_takes, leaves)):
            return None
        leaves = [leaf._replace(g=laid_out(leaf.g, leaf.m)) for leaf in leaves]
    return leaves if all(is_active(leaf.m.dtype) for leaf in leaves) else None


def _takes(leaf: Leaf) -> bool:
    p, g, m, u, t, lr, b1, b2, eps, weight_decay, floor = leaf
    return (
        _fits(m, m)
        and m.dtype in _DTYPES
        and _fits(u, m)
        and (p is None or _fits(p, m))
        and type(g) in _PLAIN
        and (g.shape, g.dtype, g.device) == (m.shape, m.dtype, m.device)
        and _fits(t, t)
        and t.dtype in _DTYPES
        and t.dim() == 0
        and floor is None
        and all(isinstance(x, (int, float)) for x in (b1, b2, eps, weight_decay))
        and (isinstance(lr, (int, float)) or (isinstance(lr, Tensor) and lr.dim() == 0))
        and (p is not None or weight_decay == 0)
    )


def _fits(x: Any, like: Tensor) -> bool:
    """Whether ``x`` is plain memory in the layout of ``like``."""
    return (
        type(x) in _PLAIN
        and x.is_cpu
        and (x.shape, x.dtype) == (like.shape, like.dtype)
        and x.layout == torch.strided
        and not x.is_neg()
        and (x.is_contiguous() or _tree.is_dense(x))
        and (x.stride() == like.stride() or (x.is_contiguous() and like.is_contiguous()))
    )


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` in the layout of ``like``."""
    return x if _fits(x, like) else torch.empty_like(like).copy_(x)


def step(
    leaves: list[Leaf],
    maximize: bool = False,
    decoupled: bool = False,
    add: bool = False,
    scales: Sequence[Any] = (),
) -> list[list[Any]]:
    """Step leaves that are ``ready``; return [update, t, m, u, scale] of each, all new.

    With ``add``, the new parameters take the place of the updates. ``scale``, the factor of m / u,
    follows from lr, b1 and t where ``scales`` does not give it.
    """
    factors = [
        _rule.scale(leaf, leaf.t + 1) if scale is None and isinstance(leaf.lr, Tensor) else scale
        for leaf, scale in zip(leaves, scales or [None] * len(leaves), strict=True)
    ]
    results: list[list[Any]] = _native.step(
        leaves, factors, maximize, decoupled, add, torch.get_num_threads()
    )
    return results


def are_apart(leaves: list[Leaf]) -> bool:
    """Whether no tensor that ``write`` would write shares memory with another of the leaves."""
    return bool(_native.are_apart(leaves))


def write(leaves: list[Leaf], maximize: bool, decoupled: bool) -> bool:
    """Step leaves that are ``ready`` over their p, m, u and t.

    False, with nothing written, if tensors share memory, so that the order of writes counts.
    """
    factors = [
        _rule.scale(leaf, leaf.t + 1) if isinstance(leaf.lr, Tensor) else None for leaf in leaves
    ]
    threads = torch.get_num_threads()
    done: bool = _native.write(leaves, factors, maximize, decoupled, threads)
    if done:
        torch.autograd.graph.increment_version(
            [x for leaf in leaves for x in (leaf.p, leaf.m, leaf.u, leaf.t)]
        )
    return done


def pull(steps: list[Pull]) -> list[list[Tensor | None]] | None:
    """Return the cotangents of g, m and u of steps the kernel took, or None if it cannot."""
    if not _native.are_pullable(steps):
        if not all(map(_is_pullable, steps)):
            return None
        steps = [
            x._replace(
                d_out=laid_out(x.d_out, x.g),
                d_m_new=None if x.d_m_new is None else laid_out(x.d_m_new, x.g),
                d_u_new=None if x.d_u_new is None else laid_out(x.d_u_new, x.g),
            )
            for x in steps
        ]
    results: list[list[Tensor | None]] = _native.pull(steps, torch.get_num_threads())
    return results


def _is_pullable(x: Pull) -> bool:
    cotangents = (x.d_out, x.d_m_new, x.d_u_new)
    return all(d is None or (type(d) in _PLAIN and d.dtype == x.g.dtype) for d in cotangents)


def taken() -> list[torch.dtype]:
    """The dtypes in which the kernel runs."""
    return [dtype for dtype in _DTYPES if is_active(dtype)]


def report() -> dict[torch.dtype, str]:
    """Whether the kernel runs in each of its dtypes, and why not."""
    why = "no: the bits of the rule are not met on this machine"
    if os.environ.get("FUNCTIONAL_ADAMAX_NATIVE", "1") == "0":
        why = "no: switched off by FUNCTIONAL_ADAMAX_NATIVE=0"
    elif _native is None:
        why = "no: built without a C compiler"
    return {dtype: "yes" if is_active(dtype) else why for dtype in _DTYPES}


@cache
def is_active(dtype: torch.dtype) -> bool:
    """Whether the kernel is there and gives the bits of the rule in ``dtype``."""
    if _native is None or dtype not in _DTYPES:
        return False
    with torch.no_grad():
        return all(map(_agrees, _trials(dtype)))


def _trials(dtype: torch.dtype) -> Iterator[tuple[Leaf, bool, bool, bool]]:
    """Steps of a few thousand random elements of all magnitudes, special values among them."""
    generator = torch.Generator().manual_seed(0)
    special = [0.0, -0.0, 1e-45, 5e-324, 1e-38, 1e-30, 1e30, torch.inf, -torch.inf, torch.nan, 1.0]
    pairs = torch.tensor(list(product(special, special)), dtype=dtype, device="cpu").unbind(1)

    def numbers(i: int) -> Tensor:
        x, magnitude = torch.randn(2, 2003, generator=generator, dtype=dtype, device="cpu")
        return torch.cat([x * 10 ** (4 * magnitude), pairs[i]])

    p, g, m, u = numbers(1), numbers(0), numbers(1), numbers(1).abs()
    cases = product((0.9, 0.3), (0.0, 0.1), (False, True), (False, True), (False, True))
    for i, (b1, decay, maximize, decoupled, add) in enumerate(cases):
        t = torch.tensor(float(i**2), dtype=torch.float64, device="cpu")
        yield Leaf(p, g, m, u, t, 0.002, b1, 0.999, 1e-8, decay), maximize, decoupled, add


def _agrees(trial: tuple[Leaf, bool, bool, bool]) -> bool:
    leaf, maximize, decoupled, add = trial
    update, *state = _rule.step(leaf, maximize, decoupled)
    (found,) = step([leaf], maximize, decoupled, add)
    return all(map(_same_bits, found[:4], [leaf.p + update if add else update, *state]))


def _same_bits(x: Tensor, y: Tensor) -> bool:
    """Equality that tells zeros apart by their sign, and takes every NaN for the same."""
    alike = (x == y) & (x.signbit() == y.signbit()) | (x.isnan() & y.isnan())
    return bool(alike.all())
