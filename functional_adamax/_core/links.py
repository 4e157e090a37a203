"""Transforms inside of transforms: checked where they are given, and called with what they take."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from . import pytree
from .pytree import Tree
from .transform import Data, GradientTransformation, Transform, Update, asks

Made = TypeVar("Made", bound=Transform)


def checked_link(what: str, link: Any) -> GradientTransformation:
    """Return ``link`` as a pair.

    Raises:
        TypeError: it is none.
    """
    if not (isinstance(link, tuple) and len(link) == 2 and all(map(callable, link))):
        got = repr(link)
        kind = link if isinstance(link, type) else type(link)
        if inspect.isroutine(link):
            got = f"the function {link.__name__}: call it"
        elif hasattr(kind, "zero_grad"):
            got = (
                f"the optimizer {kind.__name__}: it steps by itself; compat.as_transform makes a "
                "transform of a class of torch"
            )
        elif isinstance(link, list):
            got = f"a list: give its {len(link)} items one by one, chain(*transforms)"
        elif "\n" in got:
            got = type(link).__name__
        raise TypeError(f"{what} must be a pair (init, update) of functions, got {got}")
    return GradientTransformation(*link)


def call_update(
    link: GradientTransformation, updates: Tree, state: Any, params: Tree, extra: dict[str, Any]
) -> tuple[Tree, Any]:
    """Call ``link.update`` with those of the extra keyword arguments that it takes."""
    if extra and not isinstance(link.update, Update):
        parameters = inspect.signature(link.update).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            names = {p.name for p in parameters}
            extra = {k: v for k, v in extra.items() if k in names}
    result: tuple[Tree, Any]
    if isinstance(link.update, Update) or torch.compiler.is_compiling():
        result = link.update(updates, state, params, **extra)
        return result
    try:
        result = link.update(updates, state, params, **extra)
    except Exception as error:
        if isinstance(error, TypeError):
            _check_signature(link.update)
        note_missing(error, updates, "updates")
        raise
    return result


@dataclass(frozen=True)
class Chosen:
    """What a mask, or labels, say of each leaf of a tree, in the order of the leaves."""

    values: tuple[Any, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Said(Data):
    """What a function of the user's said, in the place of the function."""

    value: Any

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.value


def settled(
    link: GradientTransformation, state: Any, updates: Tree, params: Tree
) -> GradientTransformation:
    """Return ``link`` with what the functions of the user in it say now."""
    if not isinstance(link.update, Update) or not asks(link):
        return link
    transform = link.update.transform
    now = transform.settled(state, updates, params)
    return link if now is transform else now.pair()


_REMADE = "remade"  # where a transform keeps what was last made of it


def remade(transform: Made, **changes: Any) -> Made:
    """Return ``transform`` with other values; where they are as they were, what was made before."""
    values = vars(transform)
    for known in (transform, values.get(_REMADE)):
        if known is not None and all(_is_same(getattr(known, k), x) for k, x in changes.items()):
            return known
    new = dataclasses.replace(transform, **changes)
    object.__setattr__(transform, _REMADE, new)
    return new


def _is_same(a: Any, b: Any) -> bool:
    """Whether two values of a transform are known to be the same, without looking far."""
    if isinstance(a, Chosen):
        return isinstance(b, Chosen) and a.values == b.values
    if isinstance(a, GradientTransformation) and isinstance(a.update, Update):
        other = b.update if isinstance(b, GradientTransformation) else None
        return isinstance(other, Update) and a.update.transform is other.transform
    if type(a) is tuple and type(b) is tuple:
        return len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return all(map(_is_same, a.values(), b.values()))
    return a is b


def _check_signature(update: Callable[..., Any]) -> None:
    """Raise TypeError if ``update`` does not take updates, state and params."""
    try:
        signature = inspect.signature(update)
    except ValueError:  # of a built-in that tells nothing
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise TypeError(
            "the update of a transform must take (updates, state, params), by position, got "
            f"{getattr(update, '__name__', update)}{signature}: wrap it in a function that does"
        ) from None


def note_missing(error: Exception, tree: Tree, name: str) -> None:
    """Tell with the error of a function of the user which leaves of its argument were None.

    A function that maps over trees in the plain way fails at such a leaf in words that do not
    say so.
    """
    leaves, spec = pytree.flatten(tree)
    missing = [path for path, x in zip(pytree.paths(spec, name), leaves, strict=True) if x is None]
    if missing:
        more = f", and so are {len(missing) - 1} more" if len(missing) > 1 else ""
        error.add_note(
            f"{missing[0]} is None{more}: its parameter has no gradient. A transform of your own "
            "returns None for such a leaf; optree.tree_map(..., none_is_leaf=True) reaches it"
        )
