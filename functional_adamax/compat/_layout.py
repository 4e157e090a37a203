"""Where a transform's state lies in ``optimizer.state``, which is a dict for each parameter.

The state's leaves go by the names of their fields, or by their paths where a name comes twice.
What belongs to all parameters, such as a count, stands in each of the dicts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, MutableMapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core import pytree
from .._core.links import note_missing
from .._core.private import foreach
from .._core.pytree import EmptyState, Tree
from .._core.transform import GradientTransformation
from .._schedules.scheduled import ScheduledState, is_schedule
from .._transforms.inject import InjectState

STEPPED = "stepped"
"""What the entry of a parameter holds for which the transform keeps nothing."""

WHOLE = "state"
"""The name of the leaves of a state that is one tree, without fields or keys of its own."""


class Slot(NamedTuple):
    """Where a leaf of the transform's state lies in ``optimizer.state``."""

    name: str
    parameter: int | None  # the position of its parameter; None for what belongs to all


class Layout(NamedTuple):
    """The state of a transform without its values."""

    spec: Any
    params: Any  # their structure
    slots: list[Slot]
    counts: list[Slot]  # of the schedules
    outline: Any  # of the hyperparameters that made the transform
    columns: tuple[tuple[str, ...], tuple[bool, ...]]  # names, and whether all share one value

    @classmethod
    def of(cls, state: Tree, params: Any, outline: Any) -> Layout:
        """Read the layout off a state for parameters of the structure ``params``."""
        found: list[tuple[list[str], int | None]] = []
        counts: list[int] = []

        def walk(node: Tree, path: list[str]) -> None:
            if pytree.is_node(node) and pytree.flatten(node)[1] == params:
                found.extend((path, i) for i in range(params.num_leaves))
            elif pytree.is_node(node):
                children, keys, _ = pytree.open_node(node)
                if isinstance(node, (ScheduledState, InjectState)):
                    counts.append(len(found))  # their first field
                for key, child in zip(keys, children, strict=True):
                    walk(child, [*path, str(key)])
            else:
                found.append((path, None))

        walk(state, [])
        ends = [path[-1] for path in {tuple(path) for path, _ in found} if path]
        slots = [Slot(_name(path, ends), i) for path, i in found]
        spec = pytree.flatten(state)[1]
        heads = [slot for slot in slots if not slot.parameter]  # of a column, the first
        columns = tuple(x.name for x in heads), tuple(x.parameter is None for x in heads)
        return cls(spec, params, slots, [slots[i] for i in counts], outline, columns)

    def gather(self, state: Mapping[Any, dict[str, Any]], params: Sequence[Any]) -> Tree:
        """Make the state of its leaves, as they stand in the entries of ``state``."""
        entries = [state.get(p, {}) for p in params]
        leaves = [
            entries[i].get(name, EmptyState())
            if i is not None
            else next((x[name] for x in entries if name in x), EmptyState())
            for name, i in self.slots
        ]
        return self.spec.unflatten(leaves)

    def check(self, state: Tree) -> None:
        """Check that an update returned a state of this layout.

        Raises:
            ValueError: it has another structure.
        """
        leaves, spec = pytree.flatten(state)
        if spec != self.spec:
            raise ValueError(
                "update must return a state of the structure of the one it is given, got "
                f"{type(state).__name__} of {len(leaves)} leaves for {len(self.slots)}"
            )

    def read(self, slot: Slot, state: Mapping[Any, dict[str, Any]], params: Sequence[Any]) -> Any:
        """The leaf, as it stands in the entries of ``state``."""
        entries = (state.get(p, {}) for p in self.owners(slot, params))
        return next((x[slot.name] for x in entries if slot.name in x), EmptyState())

    def complete(
        self,
        leaves: Sequence[Any],
        state: MutableMapping[Any, dict[str, Any]],
        params: Sequence[Tensor | None],
        new: Sequence[Tensor | None],
    ) -> None:
        """Put fresh ``leaves`` into the entries of the parameters ``new`` that lack them.

        What belongs to all parameters is taken from an entry that has it.
        """
        old = next((state[p] for p in params if p is not None and state.get(p)), {})
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
                state[p] = {STEPPED: torch.zeros(())}  # so that it has an entry

    def keep(
        self,
        leaves: Sequence[Any],
        state: MutableMapping[Any, dict[str, Any]],
        params: Sequence[Any],
        replace: bool,
        in_place: bool,
    ) -> None:
        """Put the leaves of a new state into the entries, those ``in_place`` aside.

        Without ``replace``, into the tensors that are there, if they fit.
        """
        for slot, leaf in zip(self.slots, leaves, strict=True):
            if isinstance(leaf, EmptyState) or (in_place and slot.parameter is not None):
                continue
            for p in self.owners(slot, params):
                old = state[p].get(slot.name)
                if replace or not isinstance(old, Tensor) or old.shape != leaf.shape:
                    state[p][slot.name] = leaf
                elif old is not leaf:
                    foreach.copy_([old], [leaf])  # Dynamo may drop a copy_ into a scalar

    def entries(
        self, leaves: Sequence[Any], params: Sequence[Tensor | None]
    ) -> dict[Tensor, dict[str, Any]]:
        """What ``complete`` puts into the entries of ``params`` that have none."""
        made: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.complete(leaves, made, params, params)
        return made

    def incomplete(
        self,
        leaves: Sequence[Any],
        state: Mapping[Any, dict[str, Any]],
        params: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """The parameters whose entries lack some of the ``leaves``; None for the others."""
        wanted = self.entries(leaves, params)
        return [
            p if p is not None and not wanted[p].keys() <= state.get(p, {}).keys() else None
            for p in params
        ]

    @staticmethod
    def owners(slot: Slot, params: Sequence[Any]) -> list[Tensor]:
        """The parameters in whose entries the leaf stands."""
        owners = params if slot.parameter is None else [params[slot.parameter]]
        return [p for p in owners if p is not None]


def outline_of(values: dict[str, Any]) -> Any:
    """What of the hyperparameters may decide on the structure of the state: not the numbers."""
    return {
        name: _size(value) if isinstance(value, Real) else is_schedule(value) or type(value)
        for name, value in values.items()
    }


def _size(value: Real) -> str:
    return "zero" if value == 0 else "number"


def without_memory(
    tx: GradientTransformation, params: Sequence[Tensor | None], spec: Any
) -> Any | None:
    """The first state of ``params`` on a device that keeps no data, for its structure and dtypes.

    None where ``init`` does not run there, for example because it reads values. Random numbers
    that it draws are drawn again where the state is made.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            like = [None if p is None else torch.empty_like(p, device="meta") for p in params]
            return tx.init(pytree.unflatten(spec, like))
    except Exception:  # of whatever kind; ``with_memory`` raises what is the user's mistake
        return None


def with_memory(tx: GradientTransformation, params: Sequence[Tensor | None], spec: Any) -> Any:
    """The first state of ``params``."""
    tree = pytree.unflatten(spec, [None if p is None else p.detach() for p in params])
    if torch.compiler.is_compiling():
        return tx.init(tree)
    try:
        return tx.init(tree)
    except Exception as error:
        note_missing(error, tree, "params")
        raise


def _name(path: list[str], ends: list[str]) -> str:
    """The name of a leaf: its last key if that tells what it stands for, else its path."""
    if not any(path):
        return WHOLE
    tells = ends.count(path[-1]) == 1 and not path[-1].isdigit()  # what it stands for, alone
    return path[-1] if tells else ".".join(path)
