"""Checks on the tensors of a tree, each error naming the leaf, what was wanted and what came.

The file is longer than others: messages take lines, and their wording has one place.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import memory, pytree
from .pytree import Tree

ORDER = "; update takes (grads, state, params), and step returns (params, state)"
"""What to look at where a state is none: the end of a message."""

FITTING = "; a missing gradient is None, and dict(zip(params, grads)) gives a tuple its keys"
"""What makes gradients fit: the end of a message."""

INITIAL = "the params that init was given"
"""What trees must have the structure of, as messages call it."""

_PACKAGE = __name__.split(".")[0]


def parameters(params: Tree) -> tuple[list[Any], Any]:
    """Return leaves and structure of ``params``.

    Raises:
        TypeError: a leaf is neither a tensor nor None.
    """
    leaves, spec = pytree.flatten(params)
    for i, leaf in enumerate(leaves):
        if leaf is not None and not isinstance(leaf, Tensor):
            named = ": take {name: p.detach() for name, p in module.named_parameters()}"
            hint = named if isinstance(leaf, (torch.nn.Module, Iterator, str)) else ""
            if isinstance(leaf, (int, float, complex)) or hasattr(leaf, "__array__"):
                hint = ": make a tensor of it, torch.as_tensor(value)"
            raise TypeError(
                f"{pytree.paths(spec, 'params')[i]} must be a tensor or None, "
                f"got {type(leaf).__name__}{hint}"
            )
    return leaves, spec


def state(given: Any, kind: type, hint: str = "") -> None:
    """Check that a state is of the kind that ``init`` returns.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(given, kind):
        raise TypeError(
            f"state must be the {kind.__name__} that init returned, "
            f"got {type(given).__name__}{hint}{ORDER}"
        )


def warn(text: str) -> None:
    """Warn at the user's own line: the first frame outside of this library and torch."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals["__name__"].split(".")[0] in (_PACKAGE, "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)


def warn_if_tied(leaves: list[Any], spec: Any) -> None:
    """Warn where two leaves are one tensor: each would get an update of its own."""
    pair = memory.tied(leaves)
    if pair is not None:
        a, b = (pytree.paths(spec, "params")[i] for i in pair)
        warn(
            f"{a} and {b} are the same tensor, but a tree holds values: after one update they "
            "are two tensors that drift apart. List a tied tensor once "
            "(module.named_parameters() does, state_dict() does not) and let "
            "torch.func.functional_call tie it again"
        )


def trainable(leaf: Any) -> bool:
    """Whether a leaf, such as a parameter, can have a gradient, and so state."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def gradients(spec: Any, grads: list[Any], like: list[Any], what: str, name: str = "grads") -> None:
    """Check every gradient against the tensor it belongs to (``EmptyState`` where there is none).

    Raises:
        RuntimeError: a sparse gradient (torch's type and words).
        TypeError: a gradient for a leaf that can have none, or real for complex.
        ValueError: another shape or device.
    """
    for i in range(len(grads)):  # which Dynamo traces in fewer operations than enumerate
        g, x = grads[i], like[i]
        if g is None or (
            isinstance(x, Tensor)
            and isinstance(g, Tensor)
            and g.shape == x.shape
            and g.dtype == x.dtype
            and g.device == x.device
            and g.layout == torch.strided
        ):
            continue  # the common case
        problem = _problem(g, x, what)
        if problem is not None:
            kind, text = problem
            raise kind(f"{pytree.paths(spec, name)[i]}{text}")


def _problem(g: Any, x: Any, what: str) -> tuple[type[Exception], str] | None:
    if not isinstance(g, Tensor):
        return TypeError, f" must be a tensor or None, got {describe(g)}"
    if not isinstance(x, Tensor):
        return TypeError, (
            f" must be None, because its parameter is None or not floating and has no "
            f"state, got {describe(g)}"
        )
    if g.layout != torch.strided:
        return RuntimeError, (
            f": {what} does not support sparse gradients, got layout {g.layout}; "
            "pass grad.to_dense()"
        )
    if not (g.is_floating_point() or g.is_complex()) or g.is_complex() != x.is_complex():
        wanted = "complex" if x.is_complex() else "real floating"
        return TypeError, f" must be a {wanted} tensor like its parameter, got {describe(g)}"
    if g.shape != x.shape:
        return ValueError, (
            f" must have the shape of its parameter, {tuple(x.shape)}, got {tuple(g.shape)}"
        )
    if g.device != x.device:
        return ValueError, f" must be on the device of its state, {x.device}, got {g.device}"
    return None


def kind(x: Tensor) -> str:
    """What a tensor is by its numbers, ``a complex`` one; precision does not matter."""
    if x.is_complex():
        return "a complex"
    if x.is_floating_point():
        return "a real floating"
    return "a boolean" if x.dtype == torch.bool else "an integer"


def describe(x: Any) -> str:
    """``a torch.float32 tensor of shape (2, 3)``."""
    if isinstance(x, Tensor):
        return f"a {x.dtype} tensor of shape {tuple(x.shape)}"
    return "None" if x is None else type(x).__name__


def placed(x: Any) -> str:
    """``describe``, with the device of a tensor."""
    return f"{describe(x)} on {x.device}" if isinstance(x, Tensor) else describe(x)


def reject_missing_params(updates: Tree, what: str = "for weight decay") -> None:
    """Raise unless there is nothing to change: every update is None."""
    if any(update is not None for update in pytree.flatten(updates)[0]):
        params_given(None, what)


def params_given(params: Tree, what: str, more: str = "") -> None:
    """Check that ``params`` are there, to be given to, or for, something.

    Raises:
        ValueError: they are not.
    """
    if params is None:
        raise ValueError(
            f"params must be given {what}, got None: call update(grads, state, params{more})"
        )


def same_places(spec: Any, leaves: list[Any], like: list[Any], name: str) -> None:
    """Check that leaves with state have the shape, device and kind the state was made for."""
    for i in range(len(leaves)):
        y, x = leaves[i], like[i]
        if isinstance(x, Tensor) and not (
            isinstance(y, Tensor)
            and y.shape == x.shape
            and y.device == x.device
            and y.is_complex() == x.is_complex()
        ):
            raise ValueError(
                f"{pytree.paths(spec, name)[i]} must fit its state, {placed(x)}, got {placed(y)}"
            )


def beside(
    spec: Any, kept: list[Any], params: Tree, updates: Tree, what: str
) -> tuple[list[Any], list[Any]]:
    """Return the leaves of ``params`` and of ``updates``, which fit what is kept beside them.

    Raises:
        TypeError, ValueError, RuntimeError: they do not fit.
    """
    leaves = pytree.match(spec, params, "params", INITIAL)
    given = pytree.match(spec, updates, "updates", INITIAL)
    gradients(spec, given, kept, what, "updates")
    same_places(spec, leaves, kept, "params")
    return leaves, given


def states(given: Any, names: list[str]) -> None:
    """Check that the state of named transforms is a dict with one for each.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(given, dict) or given.keys() != set(names):
        raise ValueError(
            f"state must be the dict of the states that init returned, with the keys {names}, "
            f"got {list(given) if isinstance(given, dict) else type(given).__name__}{ORDER}"
        )


def moments(spec: Any, columns: dict[str, list[Any]]) -> None:
    """Check that what a state keeps of a leaf is floating, and of one shape, dtype and device.

    Raises:
        TypeError: a moment is not floating.
        ValueError: two moments of a leaf differ.
    """
    if not columns:
        return
    (first, like), *rest = columns.items()
    for i, x in enumerate(like):
        if not isinstance(x, Tensor):
            continue
        if not trainable(x):
            path = pytree.paths(spec, f"state.{first}")[i]
            raise TypeError(f"{path} must be a floating or complex tensor, got {describe(x)}")
        for name, column in rest:
            y = column[i]
            if isinstance(y, Tensor) and (y.shape, y.dtype, y.device) == (
                x.shape,
                x.dtype,
                x.device,
            ):
                continue
            path = pytree.paths(spec, f"state.{name}")[i]
            raise ValueError(f"{path} must fit state.{first}, {placed(x)}, got {placed(y)}")


def kept(spec: Any, columns: dict[str, list[Any]], updates: list[Any]) -> list[Any]:
    """Check that what a state keeps of a leaf is of one shape, or a number, of shape ().

    Return what the updates have to fit, which is what they are where only numbers are kept.

    Raises:
        ValueError: it is of several shapes, or kept in some fields alone.
    """
    like: list[Any] = []
    for u, *row in zip(updates, *columns.values(), strict=True):
        largest: Any = pytree.EmptyState()
        for x in row:
            if isinstance(x, Tensor) and not (
                isinstance(largest, Tensor) and largest.dim() > x.dim()
            ):
                largest = x
        like.append(u if isinstance(largest, Tensor) and largest.dim() == 0 else largest)
    for name, column in columns.items():
        for i, (x, y) in enumerate(zip(column, like, strict=True)):
            fits = isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape in ((), y.shape)
            if isinstance(y, Tensor) and not fits:
                wanted = "()" if y.dim() == 0 else f"{tuple(y.shape)} or ()"
                raise ValueError(
                    f"{pytree.paths(spec, f'state.{name}')[i]} must be a tensor of shape {wanted}, "
                    f"got {describe(x)}"
                )
    return like


def scalars(spec: Any, leaves: list[Any], like: list[Any], name: str) -> None:
    """Check that leaves with state have a 0-d tensor."""
    for i in range(len(leaves)):
        t, x = leaves[i], like[i]
        if isinstance(x, Tensor) and not (isinstance(t, Tensor) and t.dim() == 0):
            raise ValueError(
                f"{pytree.paths(spec, name)[i]} must be a tensor of shape (), got {describe(t)}"
            )


def warn_if_eps_vanishes(eps: Any, leaves: list[Any], state_dtype: torch.dtype | None) -> None:
    """Warn once if ``eps`` rounds to zero in the dtype of a leaf's moments."""
    if torch.compiler.is_compiling():
        return
    dtypes = {state_dtype or leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)}
    for dtype in dtypes & {torch.float16, torch.bfloat16}:
        numbers = (x for x in pytree.flatten(eps)[0] if isinstance(x, (int, float)) and x > 0)
        for number in numbers:
            if torch.tensor(number, dtype=dtype, device="cpu") == 0:
                warn(
                    f"eps={number:g} rounds to zero in {dtype}, so an element whose gradient is "
                    "zero becomes 0/0 = NaN; pass state_dtype=torch.float32 to keep the moments "
                    "and the arithmetic in float32"
                )
                return
