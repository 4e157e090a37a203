"""Executor: the native kernel of ``native/``, one call for many tensors, one pass over memory.

It takes plain tensors on the CPU whose elements lie side by side in the same order. For every kind
of leaves, when first used, the kernel is held against the rule, and stays off if a bit differs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from . import _apply, _rule, _tree
from ._rule import Columns, Leaf

_native: Any = None
if os.environ.get("FUNCTIONAL_ADAMAX_NATIVE", "1") != "0":
    with contextlib.suppress(ImportError):  # built without a compiler
        from . import _native

_LARGE_PAGE = 2**21  # bytes
_PLAIN = {Tensor, torch.nn.Parameter, torch.nn.Buffer}
_RATE_DTYPES = (torch.float32, torch.float64)
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
    """Parameters whose state lies in an optimizer's entries, by torch's names, and their rates."""

    params: list[Tensor] | None
    lr: Any
    b1: Any
    b2: Any
    eps: Any
    weight_decay: Any
    maximize: bool
    decoupled: bool


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
    written = _native.write(leaves, maximize, decoupled, torch.get_num_threads())
    if written:
        torch.autograd.graph.increment_version(written)
    return written is not None


def advance(
    groups: list[Group], state: Mapping[Tensor, Any], known: list[Tensor]
) -> list[Tensor] | None:
    """Step, in place, all parameters of ``groups`` that have a gradient.

    Return what was written; ``known`` is that of the step before, whose moments and counters are
    not asked again whether they are lazy views or inference tensors. None, with nothing written, if
    the kernel cannot take them all as they are, or is not proven for them yet, or one of them has
    no state in ``state``.
    """
    if _native is None:
        return None
    written: list[Tensor] | None = _native.advance(groups, state, known, torch.get_num_threads())
    if written:
        torch.autograd.graph.increment_version(written)
    return written


def overwrite(group: Group, columns: tuple[list[Any], ...]) -> bool:
    """Step, in place, the parameters of ``group`` whose g, m, u and t are in ``columns``.

    False, with nothing written, where ``advance`` returns None, or autograd records.
    """
    if _native is None:
        return False
    written = _native.overwrite(columns, group, torch.is_grad_enabled(), torch.get_num_threads())
    if written:
        torch.autograd.graph.increment_version(written)
    return written is not None


def pull(steps: list[Pull]) -> list[list[Tensor | None]] | None:
    """Return the cotangents of g, m and u of steps the kernel took, or None if it cannot."""
    if not _native.are_pullable(steps):
        steps = [
            x._replace(
                d_out=laid_out(x.d_out, x.g),
                d_m_new=None if x.d_m_new is None else laid_out(x.d_m_new, x.g),
                d_u_new=None if x.d_u_new is None else laid_out(x.d_u_new, x.g),
            )
            for x in steps
        ]
        if not _native.are_pullable(steps):
            return None
    results: list[list[Tensor | None]] = _native.pull(steps, torch.get_num_threads())
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
    """Whether the kernel is there and gives the bits of the rule, for a kind and a decay."""
    kind = (value, moment)
    if _native is None or mode not in _KINDS.get(kind, ()):
        return False
    with temporarily_clear_interpreter_stack(), torch.no_grad():  # a vmap may be running
        if not all(map(_agrees, _trials(value, moment, mode))):
            return False
    _native.activate(list(_KINDS).index(kind), mode)
    return True


def _trials(
    value: torch.dtype, moment: torch.dtype, mode: int
) -> Iterator[tuple[Leaf, bool, bool, bool]]:
    """Steps of a few thousand random elements of all magnitudes, special values among them."""
    generator = torch.Generator().manual_seed(0)
    special = [0.0, -0.0, 1e-45, 5e-324, 1e-38, 1e-30, 1e30, torch.inf, -torch.inf, torch.nan, 1.0]
    real = moment.to_real() if moment.is_complex else moment
    wide = torch.float64 if real == torch.float64 else torch.float32
    pairs = torch.tensor(list(product(special, special)), dtype=wide, device="cpu").unbind(1)

    def numbers(i: int, dtype: torch.dtype) -> Tensor:
        x, magnitude = torch.randn(2, 2004, generator=generator, dtype=wide, device="cpu")
        row = torch.cat([x * 10 ** (4 * magnitude), pairs[i], pairs[i][:1]])
        return torch.view_as_complex(row.view(-1, 2)) if dtype.is_complex else row.to(dtype)

    p, g, m = numbers(1, value), numbers(0, value), numbers(1, moment)
    u = numbers(1, moment)
    u = torch.complex(u.real.abs(), u.imag.abs()) if moment.is_complex else u.abs()
    rates = [0.002, *(torch.tensor(0.002, dtype=x, device="cpu") for x in _RATE_DTYPES)]
    cases = product(((0.9, 0.999, 1e-8), (0.3, 0.7, 0.1)), (False, True), (False, True), rates)
    for i, ((b1, b2, eps), maximize, add, lr) in enumerate(cases):
        t = torch.tensor(float(i**2), dtype=torch.float64, device="cpu")
        if maximize and value.is_complex:
            continue
        decay = 0.0 if mode == _NO_DECAY else 0.1
        leaf = Leaf(p, g, m, u, t, lr, b1, b2, eps, decay)
        yield leaf, maximize, mode == _DECOUPLED, add


def _agrees(trial: tuple[Leaf, bool, bool, bool]) -> bool:
    leaf, maximize, decoupled, add = trial
    update, *state = _rule.step(leaf, maximize, decoupled)
    (found,) = step([leaf], maximize, decoupled, add)
    wanted = [_apply.add(leaf.p, update) if add else update, *state]
    return all(map(_same_bits, found[:4], wanted))


def _same_bits(x: Tensor, y: Tensor) -> bool:
    """Equality that tells zeros apart by their sign, and takes every NaN for the same."""
    if x.is_complex():
        x, y = torch.view_as_real(x), torch.view_as_real(y)
    alike = (x == y) & (x.signbit() == y.signbit()) | (x.isnan() & y.isnan())
    return x.dtype == y.dtype and bool(alike.all())
