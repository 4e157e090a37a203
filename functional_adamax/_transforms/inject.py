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
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._core import checks, numerics, pytree
from .._core.links import Said, call_update, settled
from .._core.node import public_node
from .._core.pytree import Tree
from .._core.transform import GradientTransformation, Transform
from .._schedules.scheduled import Schedule, ask
from .arguments import arguments, declared, is_numeric, schedules_in


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
    is_local: ClassVar[bool] = True
    asks: ClassVar[bool] = True

    factory: Callable[..., GradientTransformation]
    numbers: dict[str, Any]
    schedules: dict[str, Schedule]
    static: dict[str, Any]

    def init(self, params: Tree) -> InjectState:
        count = pytree.count(params)
        tensor = partial(_tensor, count.device)
        hyperparams = {k: pytree.tree_map(tensor, v) for k, v in self._at(count)}
        return InjectState(count, hyperparams, self._made(hyperparams).init(params))

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        if not isinstance(state, InjectState):
            return self
        said = self._said(state)
        made = settled(self._made(state.hyperparams | said), state.inner, updates, params)
        schedules: dict[str, Schedule] = {k: Said(value) for k, value in said.items()}
        return Injected(Said(made), {}, schedules, {})

    def update(
        self, updates: Tree, state: InjectState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, InjectState]:
        checks.state(state, InjectState)
        said = self._said(state)
        made = self._made(state.hyperparams | said)
        new, inner = call_update(made, updates, state.inner, params, extra)
        tensor = partial(_tensor, state.count.device)
        shown = {k: pytree.tree_map(tensor, value) for k, value in said.items()}
        return new, InjectState(state.count + 1, state.hyperparams | shown, inner)

    def _said(self, state: InjectState) -> dict[str, Any]:
        """What the schedules say, as tensors: the number 0 would switch a stage off."""
        count = state.count
        tensor = partial(_tensor, count.device)
        return {
            k: pytree.tree_map(
                lambda x: x if isinstance(x, Tensor) else tensor(x), ask(schedule, count)
            )
            for k, schedule in self.schedules.items()
        }

    def _at(self, count: Tensor) -> list[tuple[str, Any]]:
        values = self.numbers | {k: ask(schedule, count) for k, schedule in self.schedules.items()}
        return [(name, values[name]) for name in sorted(values)]

    def _made(self, hyperparams: dict[str, Any]) -> GradientTransformation:
        return self.factory(**hyperparams, **self.static)

    def __repr__(self) -> str:
        given = self.numbers | self.schedules | self.static
        words = ", ".join(f"{k}={v!r}" for k, v in given.items())
        factory = getattr(self.factory, "__name__", repr(self.factory))
        return f"inject_hyperparams({factory})({words})"


def _tensor(device: torch.device, value: Any) -> Any:
    """A number, or a real tensor, as a new tensor in double precision."""
    dtype = numerics.step_dtype(device)
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype, copy=True)
    return torch.tensor(value, dtype=dtype, device=device) if isinstance(value, Real) else value


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
            trees of them, defaults included, goes into the state in double precision; so do ints
            and integer tensors given for a hyperparameter. A function given for one is a
            schedule, whose value at each update does. An argument is a hyperparameter if it is
            annotated with ``float`` or ``Tensor``, perhaps among others, or has no annotation and
            a float for its default. Where the factory says neither, a function is a schedule if
            it returns numbers for a count of 0, and an int stays outside. What else it is given
            (counts, bools, dtypes, masks) stays outside, and so does a default of zero that is
            not given, such as ``weight_decay=0``, which switches its stage off.
        static: names of arguments, or one, that stay outside as well. Default: none.

    Returns:
        A function with the signature of ``factory``, which makes a transform with the state
        ``InjectState(count, hyperparams, inner)``. Its updates have the bits of those that
        ``factory`` gives with the same numbers, in float32 and float64.

    Raises:
        Exception: what a schedule raises when it is asked, with a note that names its argument.

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
    free = {k: v for k, v in given.items() if k not in static}
    schedules, _ = schedules_in(factory, given, static)
    off = {k for k, v in given.items() if isinstance(v, (int, float)) and v == 0} - explicit
    known = declared(factory)
    numbers = {
        k: v
        for k, v in free.items()
        if k not in off and k not in schedules and is_numeric(v, ints=known.get(k) is True)
    }
    rest = {k: v for k, v in given.items() if k not in numbers and k not in schedules}
    return Injected(factory, numbers, schedules, rest).pair()
