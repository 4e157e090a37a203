"""Executor: the native kernel under ``torch.compile``, as one operator for many leaves.

The compiler sees an opaque operation, so the graph is small whatever the number of leaves, and the
bits are those of the kernel. Under ``vmap`` and where a derivative is wanted it sees the rule. A
compiler spends its time by the bytecode it follows, so there is little of it for each leaf.

The file is longer than others: what a compiler follows, what it is told of an operator, and what
then runs have to agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._core import context, hyper, memory, numerics, pytree
from .._core.numerics import REAL
from .._core.private import compiler
from . import adamax_rule
from .adamax_rule import AdamaxLeaf
from .native import kernel
from .native.kernel import Group
from .work import Columns, Work

_RATES = 5  # lr to weight_decay
_PART = 32  # leaves that one operator overwrites: a compiler looks at each for each of them
Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
"""The results: the updates or the new p, t, m, u. A compiler looks through one list for each of its
elements, so four short ones are better than a long one."""


def compute(work: Work, add: bool) -> Columns | None:
    """Step all leaves, or return None.

    None where a transform of ``torch.func`` is running, autograd records, or the kernel is not to
    take all leaves that have a gradient.
    """
    group = kernel.group_of(work.method, None, work.rates)
    if group is None:
        return None
    p, g, m, u, t = work.p, work.g, work.moments["exp_avg"], work.moments["exp_inf"], work.t
    rates = [tuple(map(hyper.single, group[1:6]))]
    if any(x is None for x in rates[0]):
        names = Group._fields[1:6]
        like = [hyper.per_leaf(name, work.rates[name], work.tree, m) for name in names]
        rates = list(zip(*like, strict=True))
    old = (p if add else [None] * len(p), t, m, u)
    where = None
    if type(None) in frozenset(map(type, g)):
        places = zip(p if work.given else m, m, u, strict=True)
        if not all(_is_one_shape(*x) for x in places):
            return None
        where = work.stepped()
        p, g, m, u, t = ([column[i] for i in where] for column in (p, g, m, u, t))
        rates = rates if len(rates) == 1 else [rates[i] for i in where]
    columns = (p if work.given else g, g, m, u, t)
    if not g or (add and not work.given) or not _fit(columns, rates, group):
        return None
    numbers, tensors, among = _split(rates)
    how = group.maximize, group.decoupled, add
    results: list[list[Any]] = torch.ops.functional_adamax.step.default(
        p if work.given else [], g, m, u, t, tensors, among, numbers, *how
    )
    if where is None:
        return results
    return [pytree.placed(x, where, new) for x, new in zip(old, results, strict=True)]


def _is_one_shape(p: Any, m: Any, u: Any) -> bool:
    """Whether a leaf has no state, or a state that fits its parameter."""
    if not isinstance(m, Tensor):
        return True
    return isinstance(p, Tensor) and isinstance(u, Tensor) and p.shape == m.shape == u.shape


def advance(groups: list[Group], state: Mapping[Tensor, Any]) -> bool:
    """Step, in place, all parameters of ``groups`` that have a gradient.

    False, with nothing written, where the kernel is not to take them all, or one has no state.
    """
    parts: list[tuple[Any, ...]] = []
    for group in groups:
        params = [p for p in group.params or () if p.grad is not None]
        if not params:
            continue
        entries = [state.get(p) or {} for p in params]
        if not all(entries):
            return False
        m, u, t = ([entry[name] for entry in entries] for name in ("exp_avg", "exp_inf", "step"))
        columns = params, [p.grad for p in params], m, u, t
        rates = tuple(map(hyper.single, group[1:6]))
        if any(x is None for x in rates) or not _fit(columns, [rates], group):
            return False
        numbers, tensors, places = _split([rates])
        how = tensors, places, numbers, group.maximize, group.decoupled
        for i in range(0, len(params), _PART):
            parts.append((*(column[i : i + _PART] for column in columns), *how))
    for part in parts:
        torch.ops.functional_adamax.step_.default(*part)
    return True


def _fit(columns: Columns, rates: list[tuple[Any, ...]], group: Group) -> bool:
    """Whether the kernel is to take these leaves, and they are what they have to be."""
    if torch.compiler.is_exporting() or _transforming():
        return False
    p, g, m, u, t = columns
    if not frozenset(map(type, p + g + m + u + t)) <= memory.PLAIN:
        return False
    recording, kinds = torch.is_grad_enabled(), set()
    for p_, g_, m_, u_, t_ in zip(p, g, m, u, t, strict=True):
        shape = m_.shape
        if not (p_.shape == shape and g_.shape == shape and u_.shape == shape and t_.dim() == 0):
            return False
        if not (p_.is_cpu and g_.is_cpu and m_.is_cpu and u_.is_cpu and t_.is_cpu):
            return False
        if recording and (
            p_.requires_grad
            or g_.requires_grad
            or m_.requires_grad
            or u_.requires_grad
            or t_.requires_grad
        ):
            return False
        kind = (p_.dtype, m_.dtype)
        if (g_.dtype, u_.dtype) != kind or g_.layout != torch.strided:
            return False
        kinds.add(kind)
    if group.maximize and any(moment.is_complex for _, moment in kinds):
        return False
    modes = {kernel.mode_of(row[-1], group.decoupled) for row in rates}
    return all(_is_rate(x, recording) for row in rates for x in row) and all(
        _is_active(*kind, mode) for kind in kinds for mode in modes
    )


def _is_rate(x: Any, recording: bool) -> bool:
    """Whether the operator takes a hyperparameter."""
    return not isinstance(x, Tensor) or (
        x.is_cpu and x.dim() == 0 and x.dtype in REAL and not (recording and x.requires_grad)
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _transforming() -> bool:
    return context.transforming() or context.forward_mode()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_active(value: torch.dtype, moment: torch.dtype, mode: int) -> bool:
    return kernel.is_active(value, moment, mode)


def _split(rates: list[tuple[Any, ...]]) -> tuple[list[float], list[Tensor], list[int]]:
    """The hyperparameters in one list of numbers, tensors, and the places of those in the list.

    A number that the compiler knows to change becomes a tensor, or each would be compiled anew; in
    double precision it has the same bits.
    """
    numbers: list[float] = []
    tensors: list[Tensor] = []
    places: list[int] = []
    for x in (x for row in rates for x in row):
        if not isinstance(x, Tensor) and not compiler.is_static(x):
            x = torch.ones((), dtype=torch.float64, device="cpu") * x
        if isinstance(x, Tensor):
            places.append(len(numbers))
            tensors.append(x)
        numbers.append(0.0 if isinstance(x, Tensor) else float(x))
    return numbers, tensors, places


_STEP, _STEP_ = "functional_adamax::step", "functional_adamax::step_"
_HOW = "Tensor[] tensors, int[] places, float[] numbers, bool maximize, bool decoupled"
torch.library.define(
    _STEP,
    f"(Tensor[] p, Tensor[] g, Tensor[] m, Tensor[] u, Tensor[] t, {_HOW}, bool add)"
    " -> (Tensor[], Tensor[], Tensor[], Tensor[])",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    _STEP_,
    f"(Tensor(a!)[] p, Tensor[] g, Tensor(b!)[] m, Tensor(c!)[] u, Tensor(d!)[] t, {_HOW}) -> ()",
    tags=torch.Tag.pt2_compliant_tag,
)


def _step(*arguments: Any) -> Lists:
    """Step leaves.

    ``p`` may be empty. ``numbers`` are the hyperparameters, lr to weight_decay, of each leaf, or
    once those of all; ``tensors`` take the ``places`` among them.
    """
    p, g, m, u, t, tensors, places, numbers, maximize, decoupled, add = arguments
    rates = _joined(numbers, tensors, places)
    columns = (p or [None] * len(g), g, m, u, t)
    shared = len(rates) == _RATES
    plain = not context.forward_mode()  # which may have begun after the compilation
    if plain and shared:
        lr, b1, b2, eps, weight_decay = rates
        group = Group(p or None, lr, b1, b2, eps, weight_decay, maximize, decoupled)
        found = kernel.stepped(group, columns, add)
        if found is not None:
            return _four(found)
    if shared:
        rates = rates * len(g)
    rows = (rates[i : i + _RATES] for i in range(0, len(rates), _RATES))
    pairs = zip(*columns, rows, strict=True)
    leaves = [AdamaxLeaf._make([*row, *own, None, maximize, decoupled]) for *row, own in pairs]
    ready = kernel.as_read(leaves) if plain else None
    if ready is not None:
        stepped = kernel.step(ready, add)
        return _four([row[k] for row in stepped] for k in range(4))
    # forward mode, another machine than it was compiled on, or odd layouts
    results: Lists = _fake(p, g, m, u, t, add)
    for leaf, *new in zip(leaves, *results, strict=True):
        for result, x in zip(new, adamax_rule.step(leaf, add), strict=True):
            result.copy_(x)
    return results


torch.library.impl(_STEP, "cpu", _step)


@torch.library.register_fake(_STEP)  # type: ignore[untyped-decorator]
def _fake(
    p: list[Tensor], g: list[Tensor], m: list[Tensor], u: list[Tensor], t: list[Tensor], *how: Any
) -> Lists:
    """Return new tensors for the results; the last of ``how`` is ``add``."""
    compiler.leave_unread(t)
    first = (p or g) if how[-1] else map(numerics.wide, m)
    return _four([torch.empty_like(x) for x in column] for column in (first, t, m, u))


@torch.no_grad()
def _step_(*arguments: Any) -> None:
    """Step leaves of one set of hyperparameters, lr to weight_decay, over p, m, u and t."""
    p, g, m, u, t, tensors, places, numbers, maximize, decoupled = arguments
    lr, b1, b2, eps, weight_decay = rates = _joined(numbers, tensors, places)
    group = Group(p, lr, b1, b2, eps, weight_decay, maximize, decoupled)
    if kernel.overwritten(group, (g, m, u, t)):
        return
    for row in zip(p, g, m, u, t, strict=True):
        leaf = AdamaxLeaf._make([*row, *rates, None, maximize, decoupled])
        new = adamax_rule.step(leaf, add=True)
        for old, x in zip((leaf.p, leaf.t, leaf.m, leaf.u), new, strict=True):
            old.copy_(x)


torch.library.impl(_STEP_, "cpu", _step_)


@torch.library.register_fake(_STEP_)  # type: ignore[untyped-decorator]
def _(*arguments: Any) -> None:
    compiler.leave_unread(arguments[4])


def _joined(numbers: list[float], tensors: list[Tensor], places: list[int]) -> list[Any]:
    """Put together what ``_split`` took apart."""
    rates: list[Any] = list(numbers)
    for i, x in zip(places, tensors, strict=True):
        rates[i] = x
    return rates


def _four(columns: Iterable[list[Tensor]]) -> Lists:
    first, t, m, u = columns
    return first, t, m, u
