"""Executor: the native kernel of ``native/``, one call for many tensors, one pass over memory.

It takes plain tensors on the CPU whose elements lie side by side in the same order. For every kind
of leaves, when first used, the kernel is held against the rule, and stays off if a bit differs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _kernel_proof, _rule, _tree
from ._rule import Columns, Leaf, Pull

_native: Any = None
if os.environ.get("FUNCTIONAL_ADAMAX_NATIVE", "1") != "0":
    with contextlib.suppress(ImportError):  # built without a compiler
        from . import _native

# in C, so that neither a signal nor another thread comes between the count and the write
_increment = getattr(torch._C, "_increment_version", torch.autograd.graph.increment_version)
_LARGE_PAGE = 2**21  # bytes
_PLAIN = {Tensor, torch.nn.Parameter}
_NO_DECAY, _COUPLED, _DECOUPLED = range(3)
_KINDS = {
    (torch.float32, torch.float32): (_NO_DECAY, _COUPLED, _DECOUPLED),
    (torch.float64, torch.float64): (_NO_DECAY, _COUPLED, _DECOUPLED),
    (torch.bfloat16, torch.float32): (_NO_DECAY, _COUPLED, _DECOUPLED),
    (torch.float16, torch.float32): (_NO_DECAY, _COUPLED, _DECOUPLED),
    (torch.bfloat16, torch.bfloat16): (_NO_DECAY, _DECOUPLED),
    (torch.float16, torch.float16): (_NO_DECAY, _DECOUPLED),
    (torch.complex64, torch.complex64): (_NO_DECAY,),
    (torch.complex128, torch.complex128): (_NO_DECAY,),
}
"""The dtypes of parameter and moments, in the order of ``native/rows.h``, and the decays taken.

In halves torch's own bits of a coupled decay depend on layout and threads; complex numbers torch
decays by complex products. Nor are complex gradients turned round here: which zeros torch makes
negative depends on where they lie.
"""


class Group(NamedTuple):
    """Parameters, where they are given, and the hyperparameters that they share."""

    params: list[Tensor] | None
    lr: Any
    b1: Any
    b2: Any
    eps: Any
    weight_decay: Any
    maximize: bool
    decoupled: bool


def ready(
    leaves: list[Leaf], maximize: bool, decoupled: bool, members: int = 0
) -> list[Leaf] | None:
    """Return ``leaves`` as the kernel reads them, or None if it cannot take them all.

    All have gradients; each is plain, of one shape and layout, in one of the kinds, and its
    hyperparameters are numbers or tensors of one element. With ``members`` the tensors are those
    of so many members, stacked, t too, and hyperparameters may be vectors.
    """
    if _native is None or torch.compiler.is_compiling():
        return None
    if _native.are_ready(leaves, members, maximize, decoupled):
        return leaves
    if not all(_is_kind_active(leaf, decoupled) for leaf in leaves):
        return None
    leaves = [leaf._replace(g=laid_out(leaf.g, leaf.m)) for leaf in leaves]
    return leaves if _native.are_ready(leaves, members, maximize, decoupled) else None


def _is_kind_active(leaf: Leaf, decoupled: bool) -> bool:
    """Whether the kernel is proven for leaves like this one, whose gradient is plain."""
    g, m = leaf.g, leaf.m
    if not (type(g) in _PLAIN and g.is_cpu and isinstance(m, Tensor)):
        return False
    if g.layout != torch.strided:
        return False
    return is_active(g.dtype, m.dtype, mode_of(leaf, decoupled))


def mode_of(leaf: Leaf, decoupled: bool) -> int:
    """The decay of a leaf, as ``is_active`` takes it."""
    return _NO_DECAY if not _rule.decays(leaf) else _DECOUPLED if decoupled else _COUPLED


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` in the layout of ``like``, if it is a tensor of the same shape."""
    if x.shape != like.shape or (x.stride() == like.stride() and not x.is_neg()):
        return x
    return torch.empty_like(like, dtype=x.dtype).copy_(x)


def step(
    leaves: list[Leaf],
    maximize: bool = False,
    decoupled: bool = False,
    add: bool = False,
    scales: Sequence[Any] = (),
    members: int = 0,
) -> list[list[Any]]:
    """Step leaves that are ``ready``; return [update, t, m, u, scale] of each, all new.

    With ``add``, the new parameters take the place of the updates. ``scale``, the factor of m / u,
    follows from lr, b1 and t where ``scales`` does not give it.
    """
    given = list(scales) or [None] * len(leaves)
    results: list[list[Any]] = _native.step(
        leaves, given, members, maximize, decoupled, add, torch.get_num_threads()
    )
    return results


def zeros_like(p: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros like ``p``; large ones lie in large pages, where the system has them.

    A page may have 4 kB or 2 MB, and a step looks up fewer of the latter: it takes 4 % less time.
    """
    if _native is None or not (p.is_cpu and _tree.has_address(p) and p.nbytes >= _LARGE_PAGE):
        return torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
    zeros = torch.empty_like(p, dtype=dtype, memory_format=torch.preserve_format)
    _native.expect_writes(zeros)
    return zeros.zero_()


def stepped(group: Group, columns: Columns, add: bool) -> Sequence[list[Any]] | None:
    """Step the leaves of ``columns`` with the rates of ``group``, into new tensors.

    Return the columns of the update, or with ``add`` of the new parameter, t, m and u; a leaf
    without gradient has the update None, or what it had. The parameters of ``group`` are None where
    none are given. None where the kernel cannot take all leaves as they are, or is not proven for
    them yet, or autograd records.
    """
    if _native is None:
        return None
    recording = torch.is_grad_enabled()
    if recording and any(isinstance(x, Tensor) and x.requires_grad for x in group[1:6]):
        return None
    found: Sequence[list[Any]] | None = _native.stepped(
        columns, group, add, recording, torch.get_num_threads()
    )
    return found


def are_apart(leaves: list[Leaf]) -> bool:
    """Whether no tensor that ``write`` would write shares memory with another of the leaves."""
    return bool(_native.are_apart(leaves))


def write(leaves: list[Leaf], maximize: bool, decoupled: bool) -> bool:
    """Step leaves that are ``ready`` over their p, m, u and t.

    False, with nothing written, if tensors share memory, so that the order of writes counts.
    """
    threads = torch.get_num_threads()
    return _native.write(leaves, maximize, decoupled, _increment, threads) is not None


def advance(
    groups: list[Group], state: Mapping[Tensor, Any], known: list[Tensor]
) -> list[Tensor] | None:
    """Step, in place, all parameters of ``groups`` that have a gradient.

    Return what was written; ``known`` is that of the step before, which is not asked again whether
    it was made in inference mode. None, with nothing written, if the kernel cannot take them all as
    they are, or is not proven for them yet, or one of them has no state in ``state``, or a
    hyperparameter is out of its range.
    """
    if _native is None:
        return None
    threads = torch.get_num_threads()
    written: list[Tensor] | None = _native.advance(groups, state, known, _increment, threads)
    return written


def overwrite(group: Group, columns: tuple[list[Any], ...]) -> bool:
    """Step, in place, the parameters of ``group`` whose g, m, u and t are in ``columns``.

    False, with nothing written, where ``advance`` returns None, or autograd records.
    """
    if _native is None:
        return False
    recording, threads = torch.is_grad_enabled(), torch.get_num_threads()
    return _native.overwrite(columns, group, recording, _increment, threads) is not None


def pull(steps: list[Pull]) -> list[list[Tensor | None]] | None:
    """Return the cotangents of g, m and u of steps the kernel took, or None if it cannot."""
    threads = torch.get_num_threads()
    results: list[list[Tensor | None]] | None = _native.pull(steps, threads)
    if results is None:
        steps = [
            x._replace(
                d_out=laid_out(x.d_out, x.g),
                d_m_new=None if x.d_m_new is None else laid_out(x.d_m_new, x.g),
                d_u_new=None if x.d_u_new is None else laid_out(x.d_u_new, x.g),
            )
            for x in steps
        ]
        results = _native.pull(steps, threads)
    return results


def report() -> dict[str, str]:
    """Whether the kernel runs, for each kind of parameters and moments, and why not."""
    why = "no: the bits of the rule are not met on this machine"
    if os.environ.get("FUNCTIONAL_ADAMAX_NATIVE", "1") == "0":
        why = "no: switched off by FUNCTIONAL_ADAMAX_NATIVE=0"
    elif _native is None:
        why = "no: built without a C compiler"
    return {
        _name(*kind): "yes" if all(is_active(*kind, mode) for mode in modes) else why
        for kind, modes in _KINDS.items()
    }


def _name(value: torch.dtype, moment: torch.dtype) -> str:
    words = [str(dtype).removeprefix("torch.") for dtype in (value, moment)]
    return words[0] if value == moment else f"{words[0]}, moments in {words[1]}"


@cache
def is_active(value: torch.dtype, moment: torch.dtype, mode: int) -> bool:
    """Whether the kernel is there and has the bits of the rule, for a kind and a decay."""
    kind = (value, moment)
    if _native is None or mode not in _KINDS.get(kind, ()):
        return False
    decay = 0.0 if mode == _NO_DECAY else 0.1
    if not _kernel_proof.holds(value, moment, decay, mode == _DECOUPLED, step, pull):
        return False
    _native.activate(list(_KINDS).index(kind), mode)
    return True
