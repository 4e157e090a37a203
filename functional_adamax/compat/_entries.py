"""Whether what was saved of a parameter is what a transform keeps for it.

Nothing else tells a checkpoint of this optimizer from one of another: parameters are paired by
position, and many optimizers keep tensors of the same names and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from .._core import checks, memory, pytree
from .._core.pytree import Tree
from ._layout import STEPPED, Layout


def misfit(
    entry: Any,
    kept: Mapping[str, Any],
    what: str,
    like: str,
    spare: Collection[str] = (),
    hyperparameters: Collection[str] = (),
) -> str | None:
    """Return what sets an entry of a state dict apart from the one of a transform, or None.

    Args:
        entry: what was saved.
        kept: what the transform keeps, by name; tensors give shape and kind of dtype only.
        what: the name of what it is the entry of.
        like: the name of its parameter.
        spare: names that may be missing.
        hyperparameters: their names, whose values a schedule leaves in the state.
    """
    if not isinstance(entry, dict):
        return f"the entry of {what} must be a dict, got {checks.describe(entry)}"
    missing = [name for name in kept if name not in entry and name not in (*spare, STEPPED)]
    unknown = [x for x in entry if x not in kept and not _may_stay(x, hyperparameters)]
    if missing or unknown:
        found = {"missing": missing, "unknown": unknown}
        listed = ", ".join(f"{word} {names}" for word, names in found.items() if names)
        return f"the entry of {what} must have {[*kept]}: {listed}"
    for name in kept:
        problem = _problem(name, entry.get(name), kept[name], like) if name in entry else None
        if problem is not None:
            return f"{name} of {what} must {problem}"
    return None


def misfits(
    layout: Layout,
    fresh: Tree,
    params: Sequence[Tensor | None],
    entries: Mapping[Tensor, Any],
    titles: Mapping[Tensor, str],
    hyperparameters: Collection[str],
) -> dict[Tensor, str]:
    """Return what sets ``entries`` apart from those of a ``fresh`` state of ``params``.

    What schedules keep may be missing: their count, and the values that they said last.
    """
    said = [x for x in layout.slots if x.parameter is None and _is_said(x.name, hyperparameters)]
    spare = {slot.name for slot in (*layout.counts, *said)}
    kept = layout.entries(pytree.flatten(fresh)[0], params)
    found = {
        p: misfit(entry, kept[p], titles[p], "its state", spare, hyperparameters)
        for p, entry in entries.items()
    }
    return {p: problem for p, problem in found.items() if problem is not None}


def _may_stay(name: Any, hyperparameters: Collection[str]) -> bool:
    """Whether a name may be there without use: such as the count of a schedule that was."""
    last = str(name).rpartition(".")[2]
    return name == STEPPED or last == "count" or _is_said(name, hyperparameters)


def _is_said(name: Any, hyperparameters: Collection[str]) -> bool:
    """Whether a leaf of this name is the value of a hyperparameter, or a part of it."""
    return any(part in hyperparameters for part in str(name).split("."))


def _problem(name: str, value: Any, leaf: Any, like: str) -> str | None:
    """What a saved value must be, and what it is."""
    if not isinstance(leaf, Tensor):
        return None
    if is_step(name) and leaf.dim() == 0:
        fine = _is_number_of_steps(value)
        return None if fine else f"be a number, finite and at least 0, got {_shown(value)}"
    if not isinstance(value, Tensor):
        return f"be a tensor, got {_shown(value)}"
    if value.shape != leaf.shape:
        wanted = f"of {like}, {tuple(leaf.shape)}" if leaf.dim() else "()"
        return f"have the shape {wanted}, got {tuple(value.shape)}"
    if checks.kind(value) != checks.kind(leaf):
        return f"be {checks.kind(leaf)} tensor, got {checks.describe(value)}"
    return None


def is_step(name: Any) -> bool:
    """Whether a leaf of this name is the number of steps that a parameter has seen."""
    return str(name).rpartition(".")[2] == "step"


def _is_number_of_steps(value: Any) -> bool:
    if isinstance(value, Tensor):
        if value.numel() != 1 or checks.kind(value) not in ("a real floating", "an integer"):
            return False
        if not memory.has_address(value):
            return True  # nothing to be read there
        value = value.item()
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf


def _shown(value: Any) -> str:
    if isinstance(value, Tensor) and value.numel() == 1 and memory.has_address(value):
        return repr(value)
    return checks.describe(value) if isinstance(value, Tensor) else repr(value)[:60]


def titles_of(param_groups: Iterable[Mapping[str, Any]]) -> dict[Tensor, str]:
    """How each parameter is called in messages: by its name, or its number in a state dict."""
    titles: dict[Tensor, str] = {}
    for group in param_groups:
        params = group["params"]
        numbers = range(len(titles), len(titles) + len(params))
        names = group.get("param_names", ())
        words = map(repr, names if len(names) == len(params) else numbers)
        named = zip(params, words, strict=True)
        titles |= {p: f"parameter {word} in the state dict" for p, word in named}
    return titles
