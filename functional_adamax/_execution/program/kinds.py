"""The kinds of leaves of a tree: those that a transform treats alike have one program."""

from __future__ import annotations

from collections.abc import Sequence
from threading import local
from typing import Any, NamedTuple

from ..._core import checks
from .forms import Form


class Kind(NamedTuple):
    """What leaves of one kind have in common."""

    choices: tuple[Any, ...]
    has_gradient: bool


class _Known(local):
    """The kinds that were found last in this thread, and of what."""

    last: Any = None


_known = _Known()
_ALIKE = (Kind((), True),)


def kinds_of(
    form: Form, g: list[Any], p: list[Any]
) -> tuple[tuple[Kind, ...], list[Sequence[int]]]:
    """The kinds of leaves in the order in which they come, and the leaves of each."""
    if not form.choices and type(None) not in set(map(type, g)):
        return _ALIKE, [range(len(g))]
    flags = (
        [x is not None for x in g],
        [y is not None or checks.trainable(x) for x, y in zip(p, g, strict=True)] if p else [],
    )
    known = _known.last
    if known is None or known[0] is not form.choices or known[1] != flags:
        found: dict[tuple[Any, ...], list[int]] = {}
        for i, row in enumerate(zip(*form.choices, flags[0], strict=True)):
            if not p or flags[1][i]:  # others have neither a gradient nor a state
                found.setdefault(row, []).append(i)
        kinds = tuple(Kind(row[:-1], row[-1]) for row in found)
        _known.last = known = form.choices, flags, (kinds, list(found.values()))
    result: tuple[tuple[Kind, ...], list[Sequence[int]]] = known[2]
    return result
