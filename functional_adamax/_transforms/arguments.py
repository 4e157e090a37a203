"""What a factory takes: its arguments by name, and which of them are hyperparameters.

A function given for a hyperparameter is a schedule; for another argument it may be anything, such
as a mask. The factory's annotations tell them apart: a hyperparameter may be a float or a tensor.
Without one its default does, which is a float. Where neither says it, what the function returns
for a count does.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .._core import context, pytree
from .._core.spelling import answer
from .._schedules.scheduled import Schedule, ask, is_schedule


def arguments(
    factory: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[set[str], dict[str, Any]]:
    """Return the names given, and all arguments of ``factory`` by name, defaults included.

    Raises:
        TypeError: an argument is missing or unknown, or one that cannot be given by name.
    """
    signature = inspect.signature(factory)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(factory, "__name__", repr(factory))
        raise TypeError(f"{name}: {error}{answer(factory, args, kwargs)}") from None
    explicit = set(bound.arguments)
    bound.apply_defaults()
    given: dict[str, Any] = {}
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise TypeError(
                f"{name} of {factory!r} cannot be given by name: give the transform that it makes, "
                "or a function of hyperparameters that makes it"
            )
        value = bound.arguments[name]
        given.update(value if parameter.kind is parameter.VAR_KEYWORD else {name: value})
    return explicit, given


@context.constant
def declared(factory: Callable[..., Any]) -> dict[str, bool | None]:
    """Whether each argument of ``factory`` is a hyperparameter; None where it does not say."""
    try:
        signature = inspect.signature(factory, eval_str=True)
    except Exception:  # whatever evaluating an annotation raises, such as a name for checkers only
        signature = inspect.signature(factory)
    return {name: _is_declared(x) for name, x in signature.parameters.items()}


def _is_declared(parameter: inspect.Parameter) -> bool | None:
    hint = parameter.annotation
    unknown = hint is parameter.empty or isinstance(hint, str)
    kinds = set() if unknown else set(_kinds(hint)) - {types.NoneType}
    if kinds <= {Any, None}:
        return True if is_numeric(parameter.default, ints=False) else None
    return not kinds.isdisjoint({float, Tensor})


def _kinds(hint: Any) -> list[Any]:
    """The types in an annotation; Any and None for what may be anything, functions too."""
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        return [next((kind for kind in (float, Tensor) if issubclass(hint, kind)), hint)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, typing.Annotated):
        return [kind for part in typing.get_args(hint) for kind in _kinds(part)]
    return [None]


def schedules_in(
    factory: Callable[..., Any], values: dict[str, Any], static: Sequence[str] = ()
) -> tuple[dict[str, Schedule], dict[str, Any]]:
    """Return the schedules among ``values``, and what they say for the first update.

    The factory checks the values, those of the schedules included. Those named in ``static`` are
    no schedules.

    Raises:
        Exception: what the factory raises, and what a schedule raises, with a note that names it.
    """
    functions = {k: v for k, v in values.items() if k not in static and is_schedule(v)}
    known = declared(factory) if functions else {}
    schedules, first, refused = {}, {}, {}
    for name, function in functions.items():
        is_one = known.get(name)
        if is_one is False:
            continue
        try:
            said = ask(function, torch.zeros((), dtype=torch.int64, device="cpu"))
        except Exception as error:
            if is_one:
                error.add_note(f"raised by the schedule given as {name}, for a count of 0")
                raise
            refused[name] = error  # as of a mask, or of another function
            continue
        if is_one or is_numeric(said):
            schedules[name], first[name] = function, said
    try:
        factory(**values | first)
    except Exception as error:
        for name, cause in refused.items():
            error.add_note(f"{name} is taken for no schedule: for a count of 0 it raised {cause!r}")
        raise
    return schedules, first


def is_numeric(value: Any, *, ints: bool = True) -> bool:
    """Whether ``value`` is a number or a real tensor, or a tree of them; bools are none."""
    leaves = [x for x in pytree.flatten(value)[0] if x is not None]
    return len(leaves) > 0 and all(is_fractional(x) or (ints and _is_integral(x)) for x in leaves)


def is_fractional(value: Any) -> bool:
    """Whether ``value`` is a float, of Python or NumPy, or a floating tensor."""
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return isinstance(value, Real) and not isinstance(value, Integral)


def _is_integral(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not (value.dtype == torch.bool or value.is_floating_point() or value.is_complex())
    return isinstance(value, Integral) and not isinstance(value, bool)
