"""Where a transform's state lies in ``optimizer.state``, which is a dict for each parameter.

The state's leaves go by the names of their fields, or by their paths where a name comes twice.
What belongs to all parameters, such as a count, stands in each of the dicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _tree
from .._inject import InjectState
from .._schedule import ScheduledState, is_schedule
from .._tree import EmptyState, Tree


class Slot(NamedTuple):
    """Where a leaf of the transform's state lies in ``optimizer.state``."""

    name: str
    parameter: int | None  # the position of its parameter; None for what belongs to all


class Layout(NamedTuple):
    """The state of a transform without its values."""

    spec: Any
    params: Any  # their structure
    slots: list[Slot]
    clock: Slot | None  # the count of the schedules
    outline: Any  # of the hyperparameters that made the transform

    @classmethod
    def of(cls, state: Tree, params: Any, outline: Any) -> Layout:
        """Read the layout off a state for parameters of the structure ``params``."""
        found: list[tuple[list[str], int | None]] = []
        counts: list[int] = []

        def walk(node: Tree, path: list[str]) -> None:
            if _tree.is_node(node) and _tree.flatten(node)[1] == params:
                found.extend((path, i) for i in range(params.num_leaves))
            elif _tree.is_node(node):
                children, keys, _ = _tree.open_node(node)
                if isinstance(node, (ScheduledState, InjectState)):
                    counts.append(len(found))  # their first field
                for key, child in zip(keys, children, strict=True):
                    walk(child, [*path, str(key)])
            else:
                found.append((path, None))

        walk(state, [])
        ends = [path[-1] for path in {tuple(path) for path, _ in found} if path]
        slots = [
            Slot(path[-1] if path and _tells(path[-1], ends) else ".".join(path), i)
            for path, i in found
        ]
        count = slots[counts[0]] if counts else None
        return cls(_tree.flatten(state)[1], params, slots, count, outline)

    def build(self, leaves: Iterable[Any]) -> Tree:
        """Make the state of its leaves."""
        return _tree.unflatten(self.spec, list(leaves))

    def read(self, slot: Slot, state: Mapping[Any, dict[str, Any]], params: Sequence[Any]) -> Any:
        """The leaf, as it stands in the entries of ``state``."""
        entries = (state.get(p, {}) for p in self.owners(slot, params))
        return next((x[slot.name] for x in entries if slot.name in x), EmptyState())

    def complete(
        self,
        leaves: Sequence[Any],
        state: MutableMapping[Any, dict[str, Any]],
        params: Sequence[Tensor],
        new: Sequence[Tensor | None],
    ) -> None:
        """Put fresh ``leaves`` into the entries of the parameters ``new`` that lack them.

        What belongs to all parameters is taken from an entry that has it.
        """
        old: dict[str, Any] = next((state[p] for p in params if state.get(p)), {})
        for slot, leaf in zip(self.slots, leaves, strict=True):
            if isinstance(leaf, EmptyState):
                continue
            if slot.parameter is None:
                leaf = old.get(slot.name, leaf)
            for owner in self.owners(slot, new):
                if slot.name not in state[owner]:
                    state[owner][slot.name] = leaf
        for p in new:
            if p is not None and not state.get(p):
                state[p] = {"stepped": torch.zeros(())}  # so that it has an entry

    @staticmethod
    def owners(slot: Slot, params: Sequence[Any]) -> list[Tensor]:
        """The parameters in whose entries the leaf stands."""
        owners = params if slot.parameter is None else [params[slot.parameter]]
        return [p for p in owners if p is not None]


def keep(entry: dict[str, Any], name: str, value: Any, replace: bool) -> None:
    """Put a leaf into an entry; without ``replace`` into the tensor that is there, if it fits."""
    old = entry.get(name)
    if replace or not isinstance(old, Tensor) or old.shape != value.shape:
        entry[name] = value
    elif old is not value:
        torch._foreach_copy_([old], [value])  # Dynamo may drop a copy_ into a float64 scalar


def outline_of(values: dict[str, Any]) -> Any:
    """What of the hyperparameters may decide on the structure of the state: not the numbers."""
    return {
        name: _size(value) if isinstance(value, Real) else is_schedule(value) or type(value)
        for name, value in values.items()
    }


def _size(value: Real) -> str:
    return "zero" if value == 0 else "number"


def _tells(name: str, names: list[str]) -> bool:
    """Whether a name tells what it stands for, alone."""
    return names.count(name) == 1 and not name.isdigit()
