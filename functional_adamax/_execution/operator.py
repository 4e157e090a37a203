"""Executor: whole steps under ``torch.compile``, each one operator that a compiler does not enter.

What the operator runs is the step of eager code, so that the graph is small whatever the number of
leaves, and the bits are the same. Where eager code has neither programs nor the kernel for all
leaves, under ``vmap``, and where a derivative is wanted, the compiler follows the rule.

A transform is taken apart while the compiler follows the code: its tensors, and the numbers that
change, become inputs of the operator, and all else is a constant. ``_noted`` makes the transform
again, and takes a step of small leaves, which says what the results are like. A compiler spends its
time by the bytecode it follows, so there is little of it for each leaf. The file is longer than
others: what a compiler follows, what it is told of an operator, and what then runs have to agree.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, chain
from threading import local
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core import context, donation, memory, plans, pytree, traced_pytree
from .._core.links import Chosen
from .._core.plans import Plan
from .._core.pytree import EmptyState, Tree
from .._core.transform import Data, GradientTransformation, Transform, Update
from .native import kernel
from .program import whole
from .program.columns import Walker
from .program.graph import Declined
from .work import Work

_LISTS = 8
"""Among which results are divided: a compiler looks through a list for each of its elements."""
_NEW, _SAME, _NONE = "+=-"
"""What becomes of a leaf: a new tensor, nothing, or None."""
_CONSTANTS = (bool, int, float, str, type(None), torch.dtype)
_LEAVES = memory.PLAIN | {type(None), EmptyState}
_PACKAGE = __name__.partition(".")[0]
_TENSOR = object()


class Known(NamedTuple):
    """A step that the operators take by its name."""

    form: Any  # of the transform, as ``_apart`` made it
    transform: Transform | None  # the same, where it has no inputs
    given: tuple[list[Any], ...]  # the leaves of grads, params and state; _TENSOR for each tensor
    spec: Any
    state_spec: Any
    add: bool
    new: list[tuple[int, int, int, torch.dtype]]
    """Which results are new, and what each is like: a tree, a tensor of it, and a dtype."""


_known: dict[str, Known] = {}


class Trees(NamedTuple):
    """The trees of a step, flat, as a compiler follows them."""

    g: list[Any]
    p: list[Any]  # empty where no params are given
    state: list[Any]
    outlines: tuple[Any, Any]  # of the first two, and of the state

    def tensors(self) -> list[list[Tensor]]:
        """The tensors of each."""
        return [[x for x in tree if isinstance(x, Tensor)] for tree in self[:3]]


class Found(NamedTuple):
    """A step that the operators know."""

    name: str
    first: str  # what becomes of each leaf of the updates, or the parameters
    kept: str  # and of the state
    inputs: list[Tensor]


def update(transform: Transform, updates: Tree, state: Any, params: Tree) -> Any:
    """Return the updates and the state, or None."""
    return _stepped(transform, updates, state, params, add=False)


def plan(transform: Transform, grads: Tree, state: Any, params: Tree, donate: bool) -> Plan | None:
    """Return a step, which is not written over its trees, or None."""
    del donate
    new = _stepped(transform, grads, state, params, add=True)
    return None if new is None else Pure(new)


def over(transform: Transform, trees: Trees) -> Callable[[], None] | None:
    """Return a step that is written over trees, which share no memory, or None."""
    found = _found(transform, trees, add=True)
    if found is None:
        return None
    g, p, state = trees.tensors()
    step_ = torch.ops.functional_adamax.step_.default
    return partial(step_, found.name, g, p, state, found.inputs)


class Pure(Plan):
    """A step of which the results are there."""

    def __init__(self, new: tuple[Tree, Any]) -> None:
        self.new = new

    def check(self) -> None:
        """Do nothing: all is checked."""

    def __call__(self) -> tuple[Tree, Any]:
        assert self.new is not None
        return self.new


def _stepped(transform: Transform, grads: Tree, state: Any, params: Tree, add: bool) -> Any:
    """Return the updates, or the parameters, and the state, or None."""
    g, spec = pytree.flatten(grads)
    p, p_spec = ([], spec) if params is None else pytree.flatten(params)
    flat, state_spec = pytree.flatten(state)
    if spec != p_spec:
        return None
    trees = Trees(g, p, flat, (outline(spec), outline(state_spec)))
    found = _found(transform, trees, add)
    if found is None:
        return None
    parts = torch.ops.functional_adamax.step.default(found.name, *trees.tensors(), found.inputs)
    new: list[Tensor] = []
    for part in parts:
        new += part
    count = found.first.count(_NEW)
    first = _placed(p if add else g, found.first, new[:count])
    return spec.unflatten(first), state_spec.unflatten(_placed(flat, found.kept, new[count:]))


def _placed(old: list[Any], what: str, new: list[Tensor]) -> list[Any]:
    """The leaves that come in the places of ``old`` ones."""
    if len(old) == len(new):
        return new
    rest = iter(new)
    pairs = zip(old, what, strict=True)
    return [next(rest) if x == _NEW else y if x == _SAME else None for y, x in pairs]


def _found(transform: Transform, trees: Trees, add: bool) -> Found | None:
    g, p, state, outlines = trees
    types = frozenset(map(type, g + p + state))
    if _followed_otherwise() or not types <= _LEAVES:
        return None
    inputs: list[Tensor] = []
    try:
        form = _apart(transform, inputs)
    except Declined:
        return None
    signs = [
        tuple(
            [
                (x.dtype, x.ndim, x.device, x.layout, x.requires_grad)
                if isinstance(x, Tensor)
                else x is None
                for x in leaves
            ]
        )
        for leaves in (g, p, state, inputs)
    ]
    noted = _noted(form, outlines, tuple(signs), torch.is_grad_enabled(), add)
    if noted is None:
        return None
    name, first, kept, starts = noted
    columns = [g] if p else []
    columns += [state[i : i + len(g)] for i, x in enumerate(starts) if x == _NEW]
    is_full, like = types <= memory.PLAIN, p or g
    for column in columns:
        for x, y in zip(like, column, strict=True):
            both = is_full or (isinstance(x, Tensor) and isinstance(y, Tensor))
            if both and x.shape != y.shape:
                return None
    return Found(name, first, kept, inputs)


@context.constant
def _followed_otherwise() -> bool:
    """Whether not a compiler alone follows the code; some compilers take all for exports."""
    exporting = torch.compiler.is_exporting()
    return _here.is_running or exporting or context.transforming() or context.forward_mode()


class _Here(local):
    is_running = False  # an operator, while another thread may compile


_here = _Here()


@contextmanager
def _running() -> Iterator[None]:
    _here.is_running = True
    try:
        with torch.no_grad():
            yield
    finally:
        _here.is_running = False


def outline(spec: Any) -> Any:
    """A structure in constants: None for a leaf, else the kind, keys and children of a container.

    A tuple stands for what is not built in.
    """
    kind, keys = spec.kind, None
    if kind is None:
        return None
    below = [None] * len(spec.keys) if spec.children is None else map(outline, spec.children)
    if issubclass(kind, dict) and frozenset(map(type, spec.keys)) <= {str}:
        kind, keys = dict, spec.keys
    elif kind is not list and not issubclass(kind, tuple):
        kind = tuple
    return kind, keys, tuple(below)


def outline_of(tree: Tree) -> str:
    """The name of the outline of a tree of eager code, of which a compiler takes no types."""
    found = outline(traced_pytree.flatten(tree)[1])
    if found not in _outlines:
        _outlines.append(found)
    return str(_outlines.index(found))


_outlines: list[Any] = []


def _apart(value: Any, inputs: list[Tensor]) -> Any:
    """A transform in constants; its tensors, and numbers that change, are added to ``inputs``.

    A part is ``(kind, keys, parts)``, an input ``(None, place, is a number)``. In double precision
    a number keeps its bits.

    Raises:
        Declined: it cannot be taken apart.
    """
    from .._core.private import compiler  # late, for the compiler is long to import

    if isinstance(value, Tensor):
        if type(value) not in memory.PLAIN or value.numel() != 1:
            raise Declined("a hyperparameter is no plain tensor of one number")
        inputs.append(value)
        return None, len(inputs) - 1, False
    if isinstance(value, (int, float)) and not compiler.is_static(value):
        dtype = torch.float64 if isinstance(value, float) else torch.int64
        inputs.append(torch.ones((), dtype=dtype, device="cpu") * value)
        return None, len(inputs) - 1, True
    if isinstance(value, _CONSTANTS):
        return value
    if isinstance(value, GradientTransformation):
        if not isinstance(value.update, Update):
            raise Declined("a link is a pair of functions")
        return GradientTransformation, None, (_apart(value.update.transform, inputs),)
    if isinstance(value, Data):
        values = value._values()
        return type(value), tuple(values), tuple([_apart(x, inputs) for x in values.values()])
    if isinstance(value, Chosen):
        return Chosen, ("values",), (_apart(value.values, inputs),)
    if type(value) in (tuple, list):
        return type(value), None, tuple([_apart(x, inputs) for x in value])
    if type(value) is dict and frozenset(map(type, value)) <= {str}:
        return dict, tuple(value), tuple([_apart(x, inputs) for x in value.values()])
    if isinstance(value, FunctionType) and value.__module__.partition(".")[0] == _PACKAGE:
        return value
    raise Declined("it holds something else than numbers")


def _together(form: Any, inputs: list[Tensor]) -> Any:
    """Make what ``_apart`` took apart."""
    if type(form) is not tuple:
        return form
    kind, keys, rest = form
    if kind is None:
        return inputs[keys].item() if rest else inputs[keys]
    values = [_together(x, inputs) for x in rest]
    if kind is GradientTransformation:
        return values[0].pair()
    return kind(values) if keys is None else kind(**dict(zip(keys, values, strict=True)))


@context.constant
def _noted(
    form: Any, outlines: Sequence[Any], signs: tuple[Any, ...], recording: bool, add: bool
) -> tuple[str, str, str, str] | None:
    """Note a step, and return its name, and what becomes of the leaves of both results.

    The last is where parts of the state begin that hold a tensor like each parameter. ``signs`` are
    what is to be known of the leaves of grads, params and state, and of the inputs. None where
    eager code has no executor for all leaves, or autograd records the step.
    """
    for sign in chain(*signs):
        if not isinstance(sign, bool):
            _, _, device, layout, is_recorded = sign
            if device.type != "cpu" or layout != torch.strided or (recording and is_recorded):
                return None
    outlines = [_outlines[int(x)] if isinstance(x, str) else x for x in outlines]
    g, p, state, inputs = lists = [[_sample(x) for x in row] for row in signs]
    if any(x is not None and y is None for x, y in zip(g, p, strict=False)):
        return None
    try:
        with context.eager(), torch.no_grad():
            transform = _together(form, inputs)
            grads, tree = _built(outlines[0], iter(g)), _built(outlines[1], iter(state))
            spec, state_spec = (pytree.flatten(x)[1] for x in (grads, tree))
            params = pytree.unflatten(spec, p) if p else None
            found = _results(transform, grads, tree, params, add)
            first, after = (pytree.flatten(x)[0] for x in found)
            starts = _starts(spec, tree, state, len(g))
    except Exception:  # of whatever kind; the code that is followed raises what is wrong
        return None
    pairs = [*zip(p if add else g, first, strict=True), *zip(state, after, strict=True)]
    what = "".join(_becomes(old, x) for old, x in pairs)
    given = set(map(id, chain(g, p, state)))
    if any(what[i] == _NEW and id(x) in given for i, (_, x) in enumerate(pairs)):
        return None
    places = [(1 if p else 0, at) for at in _places(p or g)] + [(2, at) for at in _places(state)]
    new = [(i, *places[i], x.dtype) for i, (_, x) in enumerate(pairs) if what[i] == _NEW]
    name = f"{transform.name} {len(_known)}"
    kept = tuple([_TENSOR if isinstance(x, Tensor) else x for x in leaves] for leaves in lists[:3])
    _known[name] = Known(form, None if inputs else transform, kept, spec, state_spec, add, new)
    return name, what[: len(g)], what[len(g) :], starts


def _results(transform: Any, grads: Tree, state: Any, params: Tree, add: bool) -> Any:
    """The step by programs, or by the kernel.

    Raises:
        Declined: they do not take all leaves.
    """
    now = transform.settled(state, grads, params)
    found = None
    if whole.why_not(now, grads, state, params, add) is None:
        step = whole.plan(now, grads, state, params, donate=False) if add else None
        found = step() if step else whole.update(now, grads, state, params)
    elif hasattr(now, "work"):
        work: Work = now.work(grads, state, params)
        work.check()
        where = work.stepped()
        rows = kernel.part(work, where, add)
        if len(rows) == len(where):
            found = work.method.results(work, work.columns(rows, add))
    if found is None:
        raise Declined("no executor takes all leaves")
    return found


def _becomes(old: Any, new: Any) -> str:
    if isinstance(new, Tensor):
        return _SAME if new is old else _NEW
    return _NONE if new is None and old is not None else _SAME


def _sample(sign: Any) -> Any:
    """A leaf of one element."""
    if isinstance(sign, bool):
        return None if sign else EmptyState()
    dtype, dimensions, *_ = sign
    value = 0.5 if dtype.is_floating_point or dtype.is_complex else 1
    return torch.full((1,) * dimensions, value, dtype=dtype, device="cpu")


def _built(outline: Any, leaves: Iterator[Any]) -> Tree:
    """The tree of an outline."""
    if outline is None:
        return next(leaves)
    kind, keys, below = outline
    children = [_built(x, leaves) for x in below]
    if keys is not None:
        return dict(zip(keys, children, strict=True))
    return kind(*children) if hasattr(kind, "_fields") else kind(children)


def _places(leaves: list[Any]) -> list[int]:
    """The place of each leaf among the tensors."""
    return list(accumulate((isinstance(x, Tensor) for x in leaves), initial=0))[:-1]


def _starts(spec: Any, tree: Tree, state: list[Any], n: int) -> str:
    """Which leaves of a state are the first of a tree like the parameters, not of numbers."""
    found, single = set[int](), spec.is_leaf()
    Walker(spec, found.add, lambda i, _: found.add(i) if single else None).walk(tree)
    vectors = [any(isinstance(x, Tensor) and x.dim() for x in state[i : i + n]) for i in found]
    starts = {i for i, is_vector in zip(found, vectors, strict=True) if is_vector}
    return "".join(_NEW if i in starts else _SAME for i in range(len(state)))


_INPUTS = "(str name, Tensor[] g, Tensor{}[] p, Tensor{}[] state, Tensor[] inputs) -> ({})"
torch.library.define(
    "functional_adamax::step",
    _INPUTS.format("", "", ", ".join(["Tensor[]"] * _LISTS)),
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "functional_adamax::step_",
    _INPUTS.format("(a!)", "(b!)", ""),
    tags=torch.Tag.pt2_compliant_tag,
)


def _taken(name: str, lists: Any) -> tuple[Known, Any, tuple[Tree, Any, Tree]]:
    """A step that is taken, its transform and its trees."""
    known, (*tensors, inputs) = _known[name], lists
    transform = known.transform or _together(known.form, inputs)
    g, p, state = (_filled(x, y) for x, y in zip(known.given, tensors, strict=True))
    params = known.spec.unflatten(p) if p else None
    return known, transform, (known.spec.unflatten(g), known.state_spec.unflatten(state), params)


def _filled(given: list[Any], tensors: list[Tensor]) -> list[Any]:
    """The leaves of which ``tensors`` are given."""
    if len(given) == len(tensors):
        return tensors
    rest = iter(tensors)
    return [next(rest) if x is _TENSOR else x for x in given]


@_running()
def _step(name: str, *lists: list[Tensor]) -> tuple[list[Tensor], ...]:
    """Step as eager code does."""
    known, transform, trees = _taken(name, lists)
    found = transform.plan(*trees)() if known.add else Update(transform)(*trees)
    leaves = [x for tree in found for x in pytree.flatten(tree)[0]]
    given, results = set(map(id, chain(*lists))), []
    for i, tree, at, dtype in known.new:
        x, like = leaves[i], lists[tree][at]
        if id(x) in given or x.stride() != like.stride():  # a new one, with what the fake says
            x = torch.empty_like(like, dtype=dtype).copy_(x)
        results.append(x)
    return _divided(results)


torch.library.impl("functional_adamax::step", "cpu", _step)


@torch.library.register_fake("functional_adamax::step")  # type: ignore[untyped-decorator]
def _(name: str, *lists: list[Tensor]) -> tuple[list[Tensor], ...]:
    _leave_unread(lists)
    new = _known[name].new
    return _divided([torch.empty_like(lists[tree][at], dtype=x) for _, tree, at, x in new])


def _divided(results: list[Tensor]) -> tuple[list[Tensor], ...]:
    size = -(-len(results) // _LISTS)
    return tuple(results[i * size : (i + 1) * size] for i in range(_LISTS))


@_running()
def _step_(name: str, *lists: list[Tensor]) -> None:
    """Step as eager code does over trees that are donated."""
    _, transform, (grads, state, params) = _taken(name, lists)
    step = transform.plan(grads, state, params, donate=True)
    new = step()
    if not step.in_place:
        donation.write_over((params, state), new)()


torch.library.impl("functional_adamax::step_", "cpu", _step_)


@torch.library.register_fake("functional_adamax::step_")  # type: ignore[untyped-decorator]
def _(name: str, *lists: list[Tensor]) -> None:
    del name
    _leave_unread(lists)


def _leave_unread(lists: tuple[list[Tensor], ...]) -> None:
    from .._core.private import compiler

    compiler.leave_unread(x for x in lists[2] if x.dim() == 0)


plans.compiled.append(sys.modules[__name__])
