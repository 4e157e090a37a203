"""What an optimizer is made of: a transform, or a function that makes one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import is_
from types import FunctionType
from typing import Any

import torch

from .._core.links import checked_link
from .._core.transform import GradientTransformation
from .._execution.program.captured import OWN, Getter, captured
from .._execution.program.graph import Declined
from .._schedules.scheduled import is_pure
from ._shown import Asked

Factory = Callable[..., GradientTransformation]
"""A function from hyperparameters to a transform."""

_CONSTANTS = (int, float, bool, str, torch.dtype, type(None), Asked)
"""What cannot be changed in place. Nor is a schedule that stands for that of a group."""


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


class Reads:
    """What the result of a factory depends on beside its arguments."""

    def __init__(self, factory: Factory) -> None:
        self._function, given = factory, ()
        if isinstance(factory, partial):
            self._function, given = factory.func, (*factory.args, *factory.keywords.values())
        self._getters: list[Getter] | None = [] if self._function is _itself else None
        self._values: tuple[Any, ...] = ()
        self._is_told = self._getters is not None or (
            isinstance(self._function, FunctionType) and all(map(_is_constant, given))
        )

    def now(self) -> tuple[Any, ...] | None:
        """The values that it reads, the same object while they are; None where it is not told."""
        if not self._is_told:
            return None
        if self._getters is None or not all(map(is_, self._values, self._read())):
            if torch.compiler.is_compiling():  # which cannot follow a look at bytecode
                return None
            try:
                self._getters = captured(self._function, trusted=OWN)
                self._values = self._read()
            except Declined:
                self._is_told = False
                return None
        return self._values

    def _read(self) -> tuple[Any, ...]:
        """What the getters find, or something new where a name is gone."""
        try:
            return tuple(get() for get in self._getters or ())
        except (KeyError, ValueError):
            return (object(),)


def are_constant(values: dict[str, Any]) -> bool:
    """Whether nothing can be changed in any of ``values``."""
    return all(map(_is_constant, values.values()))


def _is_constant(value: Any) -> bool:
    known = type(value) in _CONSTANTS or is_pure(value)
    return known or (type(value) is tuple and all(map(_is_constant, value)))


def _itself(transform: GradientTransformation) -> GradientTransformation:
    return transform
