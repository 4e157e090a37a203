"""The trees of torch, which ``torch.func`` and ``torch.export`` go by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from .stand_ins import Missing

_pytree: Any = None
with suppress(ImportError):
    from torch.utils import _pytree

leaves: Callable[[Any], Iterator[Any]] = getattr(_pytree, "tree_iter", Missing("tree_iter"))
"""The leaves of a tree."""
mapped: Callable[[Callable[[Any], Any], Any], Any] = getattr(
    _pytree, "tree_map", Missing("tree_map")
)
"""A tree with a function applied to its leaves."""
_register: Any = getattr(_pytree, "_register_namedtuple", None)


def register(kind: type[Any], name: str) -> None:
    """Let ``torch.export`` save a NamedTuple under ``name``, if it knows NamedTuples by names."""
    if _register is not None:
        _register(kind, serialized_type_name=name)
