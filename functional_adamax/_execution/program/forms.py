"""A transform without its numbers, so that one program serves all their values.

What it chooses for each leaf, by a mask or by labels, is taken out, too: leaves for which all that
is the same are of one kind, and a program is made for each kind. Of a hyperparameter that is a tree
the numbers are those of the leaves; what is no such number there, zero for one, is a choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._core import pytree
from ..._core.links import Chosen, Said
from ..._core.transform import Data, GradientTransformation, Init, Transform, Update
from .captured import Getter, captured
from .graph import FLOATING as FLOATING
from .graph import Declined

PLAIN = (Tensor, torch.nn.Parameter)
_PACKAGE = __name__.partition(".")[0]
_FORM = "form of the step"  # where a transform keeps its form
_FIXED = (bool, int, float, str, torch.dtype)


class Hashed:
    """Something of which the hash is computed once."""

    __slots__ = ("_hash", "value")

    def __init__(self, value: Any) -> None:
        self.value, self._hash = value, hash(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hashed) and (self is other or self.value == other.value)


class Form(NamedTuple):
    """A transform, of which the numbers and the choices are taken out."""

    key: Hashed  # what is left
    numbers: tuple[float | Tensor, ...]
    choices: tuple[tuple[Any, ...], ...]  # of each, a value for each leaf; those of trees come last
    trees: tuple[list[float], ...]  # of each tree, a number for each leaf, and 0 for none


def form_of(transform: Transform, spec: Any) -> Form:
    """Take the hyperparameters out of a transform that is settled, for trees of a structure.

    Raises:
        Declined: it is not local, or has a hyperparameter that is no number.
    """
    known: Form | None = vars(transform).get(_FORM)
    if known is not None:
        return known
    taken = _Taken(spec)
    key = Hashed(_key(transform, taken))
    constants = [tuple(map(_constant, x)) for x in taken.trees]
    trees = (
        [x if fixed is None else 0.0 for x, fixed in zip(*pair, strict=True)]
        for pair in zip(taken.trees, constants, strict=True)
    )
    form = Form(key, tuple(taken.numbers), (*taken.choices, *constants), tuple(trees))
    if taken.stays:
        object.__setattr__(transform, _FORM, form)
    return form


def _constant(value: Any) -> Any:
    """What a program depends on of the hyperparameter of one leaf; None of a number."""
    return None if type(value) is float and _is_number(value) else _fixed(value)


def _fixed(value: Any) -> Any:
    """A value that stays, as part of a key; zeros are told apart by their sign."""
    return type(value), repr(value) if isinstance(value, float) else value


def value_of(fixed: tuple[type, Any]) -> Any:
    """The value of a leaf that stays."""
    kind, value = fixed
    return float(value) if kind is float else value


@dataclass
class _Taken:
    """What was taken out of a transform."""

    spec: Any
    numbers: list[float | Tensor] = field(default_factory=list)
    choices: list[tuple[Any, ...]] = field(default_factory=list)
    trees: list[list[Any]] = field(default_factory=list)
    stays: bool = True  # whether nothing of the form is asked anew in each step


def _key(value: Any, taken: _Taken) -> Any:
    if isinstance(value, (GradientTransformation, Init, Update)):
        return _key(_transform(value), taken)
    if isinstance(value, Transform):
        if not value.is_local:
            raise Declined(f"{value.name} does not treat each leaf alone")
        if getattr(value, "in_turn", False) or getattr(value, "foreach", None):
            raise Declined(f"{value.name} is to step as torch does")
        reads = _reads(type(value))
        if isinstance(reads, str):
            raise Declined(reads)
        taken.stays = taken.stays and not reads
        parts = [_key(x, taken) for x in value._values().values()]
        return type(value), *parts, *(get() for get in reads)
    if _is_number(value):
        taken.numbers.append(value)
        taken.stays = taken.stays and not isinstance(value, Tensor)
        return value.dtype if isinstance(value, Tensor) else float
    if isinstance(value, Chosen):
        taken.choices.append(value.values)
        return Chosen
    if isinstance(value, Said):
        return Said, _key(value.value, taken)
    if isinstance(value, tuple):
        return tuple(_key(x, taken) for x in value)
    if isinstance(value, Mapping) and all(map(_is_part, value.values())):
        return tuple((name, _key(x, taken)) for name, x in value.items())
    if _is_tree(value):
        taken.trees.append(_spread(value, taken.spec))
        taken.stays = False  # for it can be changed in place
        return type(value)
    if isinstance(value, partial) and not value.args and _are_fixed(value.keywords):
        return _key(value.func, taken), tuple(value.keywords.items())
    if value is None or isinstance(value, _FIXED) or _is_curve(value) or _is_ours(value):
        return _fixed(value)
    raise Declined(f"a hyperparameter of it is a {type(value).__name__}")


@lru_cache(256)
def _reads(kind: type[Transform]) -> list[Getter] | str:
    """What finds the values that a class of the user's reads, or why it cannot be told."""
    own = (vars(x) for x in kind.__mro__ if x.__module__.partition(".")[0] != _PACKAGE)
    functions = [f for names in own for name, f in names.items() if name[:2] != "__"]
    try:
        return [get for f in functions if callable(f) for get in captured(f, kind)]
    except Declined as problem:
        return str(problem)


def _transform(value: Any) -> Transform:
    """The data behind a transform."""
    update = value.update if isinstance(value, GradientTransformation) else value
    if not isinstance(update, (Init, Update)):
        raise Declined("a link of it is a pair of functions")
    return update.transform


def _is_number(value: Any) -> bool:
    """Whether a hyperparameter may change from one step to the next.

    Zero is no such number, for it can mean that something is left out.
    """
    if not isinstance(value, Tensor):
        is_float = isinstance(value, float)  # also one of NumPy
        if is_float and value != value:  # torch's bounds hand it on, and the machine's do not
            raise Declined("a hyperparameter of it is NaN")
        return is_float and value != 0
    if type(value) not in PLAIN or not value.is_cpu or value.dim() or value.requires_grad:
        raise Declined("a hyperparameter of it is no number, nor a plain tensor of one on the CPU")
    return True


def _is_tree(value: Any) -> bool:
    """Whether a hyperparameter is a tree; one that is a tuple is taken for several of them."""
    return isinstance(value, (dict, list)) and not any(map(_is_part, pytree.flatten(value)[0]))


def _spread(value: Any, spec: Any) -> list[Any]:
    """What a tree has for each leaf.

    Raises:
        Declined: that is no number.
    """
    try:
        values = pytree.spread(value, spec.unflatten(range(spec.num_leaves)), "")
    except ValueError:
        raise Declined("a hyperparameter of it is no tree like the parameters") from None
    if not all(x is None or type(x) in (float, int) for x in values):
        raise Declined("a hyperparameter of it is a tree with something else than numbers")
    return values


def _is_curve(value: Any) -> bool:
    """Whether a value is a schedule of this library with numbers that stay."""
    return isinstance(value, Data) and value.is_plain


def _are_fixed(values: dict[str, Any]) -> bool:
    return all(x is None or isinstance(x, _FIXED) for x in values.values())


def _is_part(value: Any) -> bool:
    return isinstance(value, (GradientTransformation, Said))


def _is_ours(value: Any) -> bool:
    """Whether a value is a function of this library."""
    return isinstance(value, FunctionType) and value.__module__.partition(".")[0] == _PACKAGE


@dataclass
class Others:
    """What takes the place of what was taken out, in the same order."""

    numbers: list[Any]
    choices: list[tuple[Any, ...]]
    trees: list[dict[int, Any]]  # for the leaves of another tree

    def put_into(self, value: Any) -> Any:
        """Return a transform with these, which are taken out of the lists."""
        if isinstance(value, (GradientTransformation, Init, Update)):
            return self.put_into(_transform(value)).pair()
        if isinstance(value, (Transform, Said)):
            new = {k: self.put_into(x) for k, x in value._values().items()}
            return dataclasses.replace(value, **new)
        if isinstance(value, Chosen):
            return Chosen(self.choices.pop(0))
        if isinstance(value, tuple):
            return tuple(map(self.put_into, value))
        if isinstance(value, Mapping) and all(map(_is_part, value.values())):
            return {k: self.put_into(x) for k, x in value.items()}
        if _is_tree(value):
            return self.trees.pop(0)
        is_number = isinstance(value, Tensor) or (isinstance(value, float) and value != 0)
        return self.numbers.pop(0) if is_number else value
