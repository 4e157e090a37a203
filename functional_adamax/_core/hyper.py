"""Hyperparameters: a number, a tensor, or a tree of them, checked once and read per leaf.

A number, Python's or NumPy's, is checked where a transform is made. A tensor is never read, only
its shape is looked at: it may be differentiated, batched by ``vmap`` or traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import pytree
from .pytree import Tree
from .spelling import about_parameters

Hyperparameter: TypeAlias = float | Tensor | Tree
"""A number; a tensor of shape () or (1,); or a tree shaped like params (or a prefix of it)
of numbers and of tensors that broadcast to the leaf."""


def check(
    name: str, value: Hyperparameter, upper: float = math.inf, *, signed: bool = False
) -> None:
    """Check that every number in ``value`` lies in [0, upper), or is finite if ``signed``.

    Raises:
        ValueError: a number is out of range or NaN.
        TypeError: something is neither a number nor a real tensor.
    """
    if isinstance(value, (int, float)):
        _check_number(name, value, upper, signed)
        return
    leaves, spec = pytree.flatten(value)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and not leaf.is_complex():
            continue
        if leaf is None and not spec.is_leaf():  # beside a parameter that is None
            continue
        if is_number(leaf) and _is_in_range(leaf, upper, signed):
            continue
        path = name if spec.is_leaf() else pytree.paths(spec, name)[i]
        if not is_number(leaf):
            got = f"a {leaf.dtype} tensor" if isinstance(leaf, Tensor) else repr(leaf)
            raise TypeError(
                f"{path} must be a real number or a real tensor, got {got}{about_parameters(leaf)}"
            )
        _check_number(path, leaf, upper, signed)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number, of Python or of NumPy."""
    return isinstance(value, (int, float, Real))


def plain(value: Tree) -> Tree:
    """Return ``value`` with Python's numbers for those of NumPy, also for arrays of shape ()."""
    return (
        _plain(value) if isinstance(value, (Tensor, int, float)) else pytree.tree_map(_plain, value)
    )


def _plain(leaf: Any) -> Any:
    if isinstance(leaf, (Tensor, bool)) or type(leaf) in (int, float):
        return leaf
    if isinstance(leaf, Real):
        return int(leaf) if isinstance(leaf, Integral) else float(leaf)
    return _plain(leaf.item()) if getattr(leaf, "shape", None) == () else leaf


def _is_in_range(value: float, upper: float, signed: bool) -> bool:
    return math.isfinite(value) if signed else 0.0 <= value < upper


def _check_number(path: str, value: float, upper: float, signed: bool) -> None:
    if not _is_in_range(value, upper, signed):
        wanted = "finite" if signed else f"in [0, {upper:g})"
        raise ValueError(f"{path} must be {wanted}, got {value}")


def check_pair(name: str, value: Any) -> None:
    """Check that ``value`` is a pair of hyperparameters in [0, 1)."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(
            f"{name} must be a pair of hyperparameters, such as (0.9, 0.999), got {value!r}"
        )
    for i, item in enumerate(value):
        check(f"{name}[{i}]", item, 1.0)


def check_dtype(name: str, value: Any) -> None:
    """Check that ``value`` is None or a real floating dtype."""
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise TypeError(f"{name} must be a real floating dtype or None, got {value!r}")


def check_int(name: str, value: Any, low: int) -> None:
    """Check that ``value`` is an int of at least ``low``."""
    if not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be an int in [{low}, inf), got {value!r}")


def check_floor(name: str, value: Any) -> None:
    """Check that ``value`` is None or a positive number."""
    if value is not None and not (is_number(value) and 0.0 < value < math.inf):
        raise ValueError(f"{name} must be None or a number in (0, inf), got {value!r}")


def check_named(values: dict[str, Any]) -> None:
    """Check the hyperparameters that mean the same in every method, by their names."""
    for name, value in values.items():
        known = _RANGES.get(name)
        if known is not None:
            known(name, value)


_RANGES: dict[str, Callable[[str, Any], None]] = {
    "alpha": partial(check, upper=1.0),
    "beta": partial(check, upper=1.0),
    "betas": check_pair,
    "dampening": partial(check, signed=True),
    "derivative_floor": check_floor,
    "eps": check,
    "momentum": check,
    "state_dtype": check_dtype,
    "weight_decay": check,
}


def is_zero(value: Hyperparameter) -> bool:
    """Whether ``value`` is known to be zero everywhere, without reading a tensor."""
    return all(not isinstance(leaf, Tensor) and not leaf for leaf in pytree.flatten(value)[0])


def single(value: Hyperparameter) -> Any:
    """Return the number or the tensor of shape () that is meant for every element, or None."""
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, Tensor) and value.numel() == 1 and value.dim() <= 1:
        return value.reshape(()) if value.dim() else value
    return float(value) if isinstance(value, Real) else None


def per_leaf(name: str, value: Hyperparameter, tree: Tree, leaves: Sequence[Any]) -> list[Any]:
    """Return, for each leaf of ``tree``, its own number or tensor of a shape that broadcasts.

    A tensor of shape (1,) becomes one of shape (), so that it cannot widen a 0-d leaf.

    Raises:
        ValueError: the structure does not fit, or a tensor does not broadcast to its leaf.
    """
    one = single(value)
    if one is not None:
        return [one] * len(leaves)
    values = pytree.spread(value, tree, name)
    for i, (item, leaf) in enumerate(zip(values, leaves, strict=True)):
        if not isinstance(item, Tensor):
            if isinstance(leaf, Tensor):
                if not is_number(item):
                    path = pytree.paths(pytree.flatten(tree)[1], name)[i]
                    raise TypeError(f"{path} must be a real number or a real tensor, got {item!r}")
                values[i] = single(item)
            continue
        if item.shape == (1,):
            values[i] = item.reshape(())
        elif isinstance(leaf, Tensor) and not _broadcasts(item.shape, leaf.shape):
            path = pytree.paths(pytree.flatten(tree)[1], "params")[i]
            raise ValueError(
                f"{name} must be a number, a tensor of shape () or (1,), or a tree shaped like "
                f"params whose leaves broadcast to the parameters; for {path} of shape "
                f"{tuple(leaf.shape)} came a tensor of shape {tuple(item.shape)}"
            )
    return values


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(a in (1, b) for a, b in pairs)
