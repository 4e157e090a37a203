"""Hyperparameters in the state, where they can be read, set, saved, batched and scheduled.

A factory such as ``adamax`` makes its transform anew at each update, from the tensors in the state.
They are float64 (float32 on a device without float64) whatever the parameters are, so the numbers
are those that the factory would have computed with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from . import _check, _rule, _tree
from ._chain import call_update
from ._node import public_node
from ._schedule import is_schedule
from ._spelling import answer, explains_misfits
from ._transform import GradientTransformation, Transform
from ._tree import Tree


@public_node
class InjectState(NamedTuple):
    """State of a transform whose hyperparameters are injected."""

    count: Tensor  # type: ignore[assignment]  # (), int64: number of update calls so far
    hyperparams: dict[str, Any]  # (), float64, or trees of them: those of the last update
    inner: Any  # state of the transform


@dataclass(frozen=True, eq=False, repr=False)
class Injected(Transform):
    """A factory, and the arguments of its that are not in the state."""

    name: ClassVar[str] = "inject_hyperparams"

    factory: Callable[..., GradientTransformation]
    numbers: dict[str, Any]
    schedules: dict[str, Callable[[Tensor], Any]]
    static: dict[str, Any]

    def init(self, params: Tree) -> InjectState:
        count = _tree.count(params)
        tensor = partial(_tensor, count.device)
        hyperparams = {k: _tree.tree_map(tensor, v) for k, v in self._at(count)}
        return InjectState(count, hyperparams, self._made(hyperparams).init(params))

    def update(
        self, updates: Tree, state: InjectState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, InjectState]:
        _check.state(state, InjectState)
        count = state.count
        tensor = partial(_tensor, count.device)
        said = {
            k: _tree.tree_map(lambda x: x if isinstance(x, Tensor) else tensor(x), schedule(count))
            for k, schedule in self.schedules.items()  # the number 0 would switch a stage off
        }
        made = self._made(state.hyperparams | said)
        new, inner = call_update(made, updates, state.inner, params, extra)
        shown = {k: _tree.tree_map(tensor, value) for k, value in said.items()}
        return new, InjectState(count + 1, state.hyperparams | shown, inner)

    def _at(self, count: Tensor) -> list[tuple[str, Any]]:
        values = self.numbers | {k: schedule(count) for k, schedule in self.schedules.items()}
        return [(name, values[name]) for name in sorted(values)]

    def _made(self, hyperparams: dict[str, Any]) -> GradientTransformation:
        return self.factory(**hyperparams, **self.static)

    def __repr__(self) -> str:
        given = self.numbers | self.schedules | self.static
        words = ", ".join(f"{k}={v!r}" for k, v in given.items())
        factory = getattr(self.factory, "__name__", repr(self.factory))
        return f"inject_hyperparams({factory})({words})"


def _tensor(device: torch.device, value: Any) -> Any:
    """A number, or a floating tensor, as a new tensor in double precision."""
    dtype = _rule.step_dtype(device)
    if isinstance(value, Tensor):
        dtype = dtype if value.is_floating_point() else value.dtype
        return value.to(device=device, dtype=dtype, copy=True)
    return torch.tensor(value, dtype=dtype, device=device) if _is_fractional(value) else value


@explains_misfits
def inject_hyperparams(
    factory: Callable[..., GradientTransformation], static: str | Sequence[str] = ()
) -> Callable[..., GradientTransformation]:
    """Return ``factory`` with its hyperparameters in the state.

        tx = inject_hyperparams(adamax)(lr=0.1)
        state = tx.init(params)             # state.hyperparams["lr"] is a tensor
        state = set_hyperparams(state, lr=0.01)

    Args:
        factory: a function from hyperparameters to a transform, such as ``adamax``, or one of
            your own that makes a chain. What it is given as floats, as floating tensors, or as
            trees of them, defaults included, goes into the state in double precision; a function
            from the count to such values is a schedule, whose value at each update does. What
            else it is given (ints, bools, dtypes, masks) stays outside, and so does a default of
            zero that is not given, such as ``weight_decay=0``, which switches its stage off.
        static: names of arguments, or one, that stay outside as well. Default: none.

    Returns:
        A function with the signature of ``factory``, which makes a transform with the state
        ``InjectState(count, hyperparams, inner)``. Its updates have the bits of those that
        ``factory`` gives with the same numbers, in float32 and float64.

    Example:
        >>> tx = inject_hyperparams(scale_by_learning_rate)(lr=0.5)
        >>> state = tx.init(torch.zeros(1))
        >>> get_hyperparams(state)
        {'lr': tensor(0.5000, dtype=torch.float64)}
        >>> tx.update(torch.ones(1), set_hyperparams(state, lr=0.25))[0]
        tensor([-0.2500])
    """
    if not callable(factory):
        raise TypeError(
            f"factory must be a function that makes a transform, got {factory!r}: give the "
            "function itself, as in inject_hyperparams(adamax)(lr=0.1)"
        )
    names = (static,) if isinstance(static, str) else tuple(static)
    return partial(_injected, factory, names)


def _injected(
    factory: Callable[..., GradientTransformation],
    static: tuple[str, ...],
    *args: Any,
    **kwargs: Any,
) -> GradientTransformation:
    explicit, given = arguments(factory, args, kwargs)
    kinds = {x.kind for x in inspect.signature(factory).parameters.values()}
    unknown = set(static) - set(given)
    if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
        raise TypeError(f"static must name arguments of the factory, got {sorted(unknown)}")
    schedules = {k: v for k, v in schedules_in(given).items() if k not in static}
    factory(**given | at_start(schedules))  # it checks the numbers
    off = {k for k, v in given.items() if isinstance(v, float) and v == 0} - explicit
    numbers = {
        k: v
        for k, v in given.items()
        if k not in static and k not in off and k not in schedules and _is_numeric(v)
    }
    rest = {k: v for k, v in given.items() if k not in numbers and k not in schedules}
    return Injected(factory, numbers, schedules, rest).pair()


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


def schedules_in(values: dict[str, Any]) -> dict[str, Callable[[Tensor], Any]]:
    """Return those of ``values`` that are functions from a count to numbers."""
    found = {}
    for name, value in values.items():
        if is_schedule(value):
            try:
                first = at_start({name: value})[name]
            except Exception:  # whatever a mask, or another function, makes of a count
                continue
            if _is_numeric(first):
                found[name] = value
    return found


def at_start(schedules: dict[str, Callable[[Tensor], Any]]) -> dict[str, Any]:
    """Return the values of ``schedules`` at the first update."""
    start = torch.zeros((), dtype=torch.int64, device="cpu")
    return {name: schedule(start) for name, schedule in schedules.items()}


def _is_numeric(value: Any) -> bool:
    """Whether ``value`` is a float or a floating tensor, or a tree of them."""
    leaves = [x for x in _tree.flatten(value)[0] if x is not None]
    return bool(leaves) and all(
        _is_fractional(x) or (isinstance(x, Tensor) and x.is_floating_point()) for x in leaves
    )


def _is_fractional(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, Integral)
