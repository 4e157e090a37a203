"""Executor: the native kernel of ``native/``, one call for many tensors, one pass over memory.

It takes plain tensors on the CPU whose elements lie side by side in the same order. For every kind
of leaves, when first used, the kernel is held against the rule, and stays off if a bit differs. The
file is longer than others: whatever calls the C code is here, so that one name switches it off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._core import context, memory, pytree
from ..._core.private import modes, transforms
from ..adamax_rule import AdamaxLeaf, adamax
from ..rule import decays
from ..work import Columns, MethodLike, Row, Work, leaves_of
from . import loaded, proof

_native, _why_not = loaded("_native")
_increment = modes.increment_version
_LARGE_PAGE = 2**21  # bytes
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

    params: list[Any] | None
    lr: Any
    b1: Any
    b2: Any
    eps: Any
    weight_decay: Any
    maximize: bool
    decoupled: bool


def is_there() -> bool:
    """Whether the kernel is built, and not switched off."""
    return _native is not None


def group_of(
    method: MethodLike, params: list[Any] | None, rates: dict[str, Any] | None = None
) -> Group | None:
    """Return what the kernel reads of a method and its ``rates``; None if it has another rule."""
    if method.rule is not adamax:
        return None
    h = rates or method.rates()
    if h["derivative_floor"] is not None:
        return None
    numbers = h["lr"], h["b1"], h["b2"], h["eps"], h["weight_decay"]
    return Group(params, *numbers, method.maximize, method.decoupled)


def compute(work: Work, add: bool) -> Columns | None:
    """Step all leaves into new tensors, checks included, or return None."""
    group = group_of(work.method, work.p if work.given else None, work.rates)
    if group is None:
        return None
    columns = work.p, work.g, work.moments["exp_avg"], work.moments["exp_inf"], work.t
    return stepped(group, columns, add)


def stepped(group: Group, columns: Columns, add: bool) -> Columns | None:
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
    found: Columns | None = _native.stepped(columns, group, add, recording, torch.get_num_threads())
    return found


def part(work: Work, where: list[int], add: bool) -> dict[int, Row]:
    """Step those of the leaves that the kernel takes, each with its own hyperparameters."""
    taken: dict[int, AdamaxLeaf] = {}
    for i, leaf in leaves_of(work, where).items():
        ready = None if context.recorded(pytree.tensors(list(leaf))) else as_read([leaf])
        if ready is not None:
            taken[i] = ready[0]
    return dict(zip(taken, step([*taken.values()], add=add), strict=True)) if taken else {}


def as_read(leaves: list[AdamaxLeaf]) -> list[AdamaxLeaf] | None:
    """Return ``leaves`` as the kernel reads them, or None if it cannot take them all.

    All have gradients; each is plain, of one shape and layout, in one of the kinds, and its
    hyperparameters are numbers or tensors of one element.
    """
    if _native is None:
        return None
    maximize, decoupled = leaves[0].maximize, leaves[0].decoupled
    if _native.are_ready(leaves, maximize, decoupled):
        return leaves
    if not all(map(_is_kind_active, leaves)):
        return None
    leaves = [leaf._replace(g=laid_out(leaf.g, leaf.m)) for leaf in leaves]
    return leaves if _native.are_ready(leaves, maximize, decoupled) else None


def _is_kind_active(leaf: AdamaxLeaf) -> bool:
    """Whether the kernel is proven for leaves like this one, whose gradient is plain."""
    g, m = leaf.g, leaf.m
    if not (type(g) in memory.PLAIN and g.is_cpu and isinstance(m, Tensor)):
        return False
    if g.layout != torch.strided:
        return False
    return is_active(g.dtype, m.dtype, mode_of(leaf.weight_decay, leaf.decoupled))


def why_not(leaf: AdamaxLeaf) -> str | None:
    """Why the kernel takes no leaf of this kind on a CPU, or None if it does."""
    kind, mode = (leaf.g.dtype, leaf.m.dtype), mode_of(leaf.weight_decay, leaf.decoupled)
    if _native is None or not leaf.g.is_cpu or is_active(*kind, mode):
        return None
    decay = ("no", "a coupled", "a decoupled")[mode]
    return f"the kernel does not take {_name(*kind)} with {decay} weight decay"


def mode_of(decay: Any, decoupled: bool) -> int:
    """A decay, as ``is_active`` takes it."""
    return _NO_DECAY if not decays(decay) else _DECOUPLED if decoupled else _COUPLED


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` in the layout of ``like``, if it is a tensor of the same shape."""
    if x.shape != like.shape or (x.stride() == like.stride() and not x.is_neg()):
        return x
    return torch.empty_like(like, dtype=x.dtype).copy_(x)


def step(leaves: list[AdamaxLeaf], add: bool = False) -> list[list[Any]]:
    """Step leaves that are ``as_read``; return [update, t, m, u] of each, all new.

    With ``add``, the new parameters take the place of the updates.
    """
    how = leaves[0].maximize, leaves[0].decoupled, add, torch.get_num_threads()
    results: list[list[Any]] = _native.step(leaves, *how)
    return results


def zeros_like(p: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros like ``p``; large ones lie in large pages, where the system has them.

    A page may have 4 kB or 2 MB, and a step looks up fewer of the latter: it takes 4 % less time.
    """
    if _native is None or not (p.is_cpu and memory.has_address(p) and p.nbytes >= _LARGE_PAGE):
        return torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
    zeros = torch.empty_like(p, dtype=dtype, memory_format=torch.preserve_format)
    _native.expect_writes(zeros)
    return zeros.zero_()


def plan(work: Work) -> Callable[[], bool] | None:
    """Return what steps all leaves over their p, m, u and t, if the kernel takes them, or None.

    It writes nothing and returns False if memory was moved meanwhile, or a counter is an odd one.
    """
    leaves = list(leaves_of(work, work.stepped()).values())
    ready = as_read(leaves) if leaves else None
    return None if ready is None else planned(ready)


def planned(leaves: list[AdamaxLeaf]) -> Callable[[], bool] | None:
    """``plan`` for leaves that are ``as_read``; None where the order of their writes counts."""
    how = leaves[0].maximize, leaves[0].decoupled
    capsule = _native.plan(leaves, *how)
    return None if capsule is None else partial(_run, capsule)


def _run(capsule: object) -> bool:
    done: bool = _native.run(capsule, _increment, torch.get_num_threads())
    return done


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


def overwrite(work: Work) -> bool:
    """Step, in place, all parameters of ``work`` that have a gradient, checks included.

    False, with nothing written, where ``advance`` returns None, or autograd records.
    """
    group = group_of(work.method, work.p, work.rates)
    if group is None or (torch.is_grad_enabled() and any(map(_is_learned, group[1:6]))):
        return False
    columns = work.g, work.moments["exp_avg"], work.moments["exp_inf"], work.t
    return overwritten(group, columns)


def _is_learned(rate: Any) -> bool:
    return isinstance(rate, Tensor) and rate.requires_grad


def overwritten(group: Group, columns: Columns) -> bool:
    """``overwrite`` the parameters of ``group`` whose g, m, u and t are in ``columns``."""
    if _native is None:
        return False
    recording, threads = torch.is_grad_enabled(), torch.get_num_threads()
    return _native.overwrite(columns, group, recording, _increment, threads) is not None


def report() -> dict[str, str]:
    """Whether the kernel runs, for each kind of parameters and moments, and why not."""
    why = _why_not or "the bits of the rule are not met on this machine"
    return {
        _name(*kind): "yes" if all(is_active(*kind, mode) for mode in modes) else f"no: {why}"
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
    held = partial(proof.holds, value, moment, decay, mode == _DECOUPLED, step)
    if not transforms.outside(held):  # a vmap may be running
        return False
    _native.activate(list(_KINDS).index(kind), mode)
    return True
