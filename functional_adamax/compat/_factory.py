"""What an optimizer is made of: a transform, or a function that makes one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch

from .._core.links import checked_link
from .._core.transform import GradientTransformation

Factory = Callable[..., GradientTransformation]
"""A function from hyperparameters to a transform."""

_PACKAGE = __name__.split(".")[0]
_CONSTANTS = (int, float, bool, str, torch.dtype, type(None))
"""What cannot be changed in place."""


def check_factory(given: Any) -> Factory:
    """Return a function that makes a transform, also of a transform that is there.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(given, tuple):
        return partial(_itself, checked_link("factory", given))
    if isinstance(given, type) and issubclass(given, torch.optim.Optimizer):
        raise TypeError(
            f"factory must make a transform, got the class {given.__name__}: use it as it is, or "
            "compat.as_transform makes a transform of it"
        )
    if not callable(given) or isinstance(given, torch.nn.Module):
        got = repr(given) if isinstance(given, (int, float, str)) else type(given).__name__
        raise TypeError(
            f"factory must be a transform or make one, got {got}: the order is (params, factory)"
        )
    factory: Factory = given
    return factory


def is_settled(factory: Factory, values: dict[str, Any]) -> bool:
    """Whether ``factory`` makes the same of the same ``values`` whenever it is called.

    The library does, of constants; a factory of somebody else may read what changes.
    """
    if isinstance(factory, partial):
        return factory.func is _itself
    ours = isinstance(factory, FunctionType) and factory.__module__.split(".")[0] == _PACKAGE
    return ours and all(map(_is_constant, values.values()))


def _is_constant(value: Any) -> bool:
    return type(value) in _CONSTANTS or (type(value) is tuple and all(map(_is_constant, value)))


def _itself(transform: GradientTransformation) -> GradientTransformation:
    return transform
