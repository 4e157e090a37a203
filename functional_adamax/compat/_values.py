"""Values for the parameters of several groups, as one tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .._core.pytree import Tree
from .._core.transform import same

_ROUNDING = 1e-12


def held(group: dict[str, Any], name: str) -> Any:
    """A hyperparameter of a group; a rate just below zero, the end of a cosine, is zero."""
    value = group[name]
    rounded = name == "lr" and isinstance(value, float) and -_ROUNDING < value < 0
    return 0.0 if rounded else value


def tree_of(groups: Sequence[dict[str, Any]], columns: Sequence[Sequence[Any]]) -> Tree:
    """Values for the parameters of ``groups``: by name where they have names, or a list."""
    values = [x for column in columns for x in column]
    names = [name for group in groups for name in group.get("param_names", ())]
    return dict(zip(_distinct(names), values, strict=True)) if len(names) == len(values) else values


@contextmanager
def advice_on(params: Any) -> Iterator[None]:
    """Let an error of torch about ``params`` also say what to give instead."""
    try:
        yield
    except TypeError as error:
        among = params if isinstance(params, (list, tuple)) else [params]
        if any(isinstance(x, torch.nn.Module) for x in among):
            cure = "give the parameters of a module, module.parameters() or named_parameters()"
        elif isinstance(params, dict) or any(isinstance(x, str) for x in among):
            cure = "of a dict by name give the pairs, params.items()"
        else:
            raise
        if cure in str(error):  # which came from within
            raise
        raise TypeError(f"{error}: {cure}") from None


def _distinct(names: list[str]) -> list[str]:
    """Put a number before a name that comes again: ``1.bias`` still ends in ``bias``."""
    given = set(names)
    found: dict[str, None] = {}
    for name in names:
        one, again = name, 0
        while one in found or (again and one in given):
            again += 1
            one = f"{again}.{name}"
        found[one] = None
    return list(found)


def joined(groups: Sequence[dict[str, Any]], name: str, rows: list[Any]) -> Any:
    """One hyperparameter for ``groups``, from its value in each: a tree where they differ.

    Raises:
        ValueError: they differ in something else than numbers.
    """
    comparing = not (torch.compiler.is_compiling() and any(isinstance(x, Tensor) for x in rows))
    if len(rows) == 1 or (comparing and all(same(row, rows[0]) for row in rows)):
        return rows[0]
    if all(isinstance(row, (tuple, list)) and len(row) == len(rows[0]) for row in rows):
        return tuple(joined(groups, name, list(column)) for column in zip(*rows, strict=True))
    if not all(isinstance(x, (Real, Tensor)) and not isinstance(x, bool) for x in rows):
        raise ValueError(
            f"with couple='all' groups may differ in numbers only, got for {name}: {rows}; "
            "give all groups the same, or couple='group'"
        )
    sizes = [len(group["params"]) for group in groups]
    return tree_of(groups, [[x] * n for x, n in zip(rows, sizes, strict=True)])
