"""The modes under which an update over a tree is recorded.

What is computed of tensors that belong to the tree, a count or a flag, is taken down apart: it is
done once for a step, in torch. Where a leaf needs a number of them that the machine can compute,
too, the machine does. What is computed of numbers of one leaf, such as its norm, is never done in
torch: the machine does it for each leaf.

The file is longer than others: all that a transform may ask of a tree is in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..._core import pytree
from ..._core.private import dispatch
from . import proof
from .forms import FLOATING
from .graph import DTYPES, Declined, Node
from .operations import BUILDERS
from .recorder import Recorder, known

_OF_DTYPES = ("aten::result_type", "aten::promote_types")
_PHASES = 16  # at most, of each dtype and leaf


def name_of(place: int) -> str:
    """The input of a graph that is what lies at a place."""
    return f"of the tree {place}"


class Place(NamedTuple):
    """Where the tensor lies that is an argument of an operation."""

    at: int


class Hyper(NamedTuple):
    """Which hyperparameter a number is that is an argument of an operation."""

    at: int


Result: TypeAlias = Literal["sum", "finite", "largest", "count"]
"""A sum of squares; whether it is 0; the largest absolute value; the number of elements."""


class Operation(NamedTuple):
    """What is done once for a step."""

    target: int  # the place of the result
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def reads(self) -> list[int]:
        """The places of its arguments."""
        return [x.at for x in (*self.args, *self.kwargs.values()) if type(x) is Place]


class Phase(NamedTuple):
    """What is found out of all leaves together, or of one, in a pass over them."""

    target: int
    outputs: tuple[str | None, ...]  # of each leaf that is recorded, what is squared
    kind: Result  # of what the place holds
    leaf: int | None = None  # that it is about, or None where it is about all
    power: float = 1.0  # of a count, which takes no pass


class TreeRecorder(Recorder):
    """Keeps apart what is computed of tensors that belong to the tree."""

    def __init__(self, shape: tuple[int, ...], kind_of: dict[str, int]) -> None:
        super().__init__(shape)
        self.sequence: list[Operation | Phase] = []
        self.entered: list[tuple[str, int]] = []  # inputs of the graph, and where they lie
        self.squared: dict[str, Node] = {}
        self.places = 0
        self._place: dict[int, int] = {}
        self._made_by: dict[int, tuple[Any, Any, dict[str, Any]]] = {}
        self._kind_of = kind_of  # of each vector that is an input, the kind of leaves
        self._kinds: dict[int, set[int]] = {}  # of the leaves that a tensor is made of
        self._leaves = 1 + max(kind_of.values())
        self._stand_ins: dict[torch.dtype, int] = dict.fromkeys(DTYPES, 0)  # how many there are
        self._is_making = False

    def take(self, name: str, x: Tensor, vector: bool) -> None:
        super().take(name, x, vector)
        if vector:
            self._kinds[id(x)] = {self._kind_of[name]}

    def take_of_tree(self, x: Tensor) -> int:
        """Give a place to a tensor that belongs to the tree."""
        place = self._place[id(x)] = self._new_place()
        self._kept.append(x)
        return place

    def _new_place(self) -> int:
        self.places += 1
        return self.places - 1

    def place(self, x: Any) -> int | None:
        """The place of a tensor that belongs to the tree, or None."""
        return self._place.get(id(x))

    def read(self, x: Tensor) -> Node:
        place = self._place.get(id(x))
        if place is not None and id(x) not in self._node:
            node = self._computed(x)
            if node is None:
                self._enter(x, place)
            else:
                self._node[id(x)] = node
        return super().read(x)

    def _enter(self, x: Tensor, place: int) -> None:
        if x.dtype not in DTYPES or x.dim():
            raise self.decline(f"a leaf reads {x.dtype} of what belongs to the tree")
        self.take(name_of(place), x, vector=False)
        self.entered.append((name_of(place), place))

    def _computed(self, x: Tensor) -> Node | None:
        """The number that ``x`` is, computed by the machine, if it can be."""
        func, args, kwargs = self._made_by.get(id(x), (None, (), {}))
        base = "" if func is None else known(func).operation
        tensors = [y for y in _leaves(args, kwargs) if isinstance(y, Tensor)]
        if base not in BUILDERS or any(y.dtype not in DTYPES for y in (x, *tensors)):
            return None
        if x.dtype == torch.bool and not tensors:
            return None
        try:
            given = self._given(func, args, kwargs)
            node = BUILDERS[base](self._maker.of(x.dtype, self._common(args, kwargs, x)), *given)
        except Declined:
            return None
        computed = not node.vector and bool(node.operands)
        return node if not computed or proof.is_uniform_proven(node.op, node.single) else None

    def sum_of_squares(self, tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Take note of a sum over leaves, and return what stands for it."""
        if dtype != torch.float64 or any(x.dtype not in FLOATING for x in tensors):
            raise self.decline("it adds up squares in another dtype than float64")
        return self._phase(tensors, list(map(self.read, tensors)), "sum")

    def count(self, x: Tensor, power: float) -> float:
        """Take note of a number of elements, and return what stands for it."""
        leaf = self._leaf_of(x)
        place = self._new_place()
        nothing = (None,) * self._leaves
        self.sequence.append(Phase(place, nothing, "count", leaf, power))
        self.entered.append((name_of(place), place))
        size = self._shape.numel() + 1 / (3 + place)  # that no other number has
        return self.number(name_of(place), size**power)

    def root(self, total: Tensor) -> Tensor:
        """Take note of the root of a sum, and return what stands for it."""
        node = self._maker.of(torch.float64, torch.float64)("EXACT_ROOT", self.read(total))
        found = self._stand_in(torch.float64)
        self._name(found, node)
        self._kinds[id(found)] = self._kinds.get(id(total), set())
        return found

    def largest(self, tensors: list[Tensor]) -> Tensor:
        """Take note of a largest absolute value, and return what stands for it."""
        return self._phase(tensors, list(map(self.read, tensors)), "largest")

    def are_finite(self, tensors: list[Tensor]) -> Tensor:
        """Take note of a question about leaves, and return what stands for the answer."""
        nodes = []
        for x in map(self.read, tensors):  # of which a product with zero is zero or NaN
            make = self._maker.of(x.dtype, x.dtype)
            nodes.append(make("MULTIPLY", x, make.number(0.0)))
        return self._phase(tensors, nodes, "finite")

    def share(self, flags: Tensor, dtype: torch.dtype) -> Tensor:
        """Take note of a count of truth values, and return what stands for their share."""
        make = self._maker.of(dtype, dtype)
        one, zero = make.number(1.0), make.number(0.0)
        ones = make("WHERE", self.read(flags), one, zero)
        return self._phase([flags], [ones], "sum").to(dtype) / self.count(flags, 1.0)

    def once(self, schedule: Callable[[Tensor], Tensor], count: Tensor) -> Tensor:
        """Take note of the value of a schedule, and return what stands for it."""
        place = self.place(count)
        if place is None:
            raise self.decline("it asks a schedule about a leaf")
        found = self._stand_in(torch.float64)
        args = (Place(place),)
        self.sequence.append(Operation(self.take_of_tree(found), schedule, args, {}))
        return found

    def _phase(self, tensors: list[Tensor], nodes: list[Node], kind: Result) -> Tensor:
        """What stands for a sum of squares, of one tensor for each leaf at most.

        One of a single tensor is about each leaf, since two leaves of each kind are recorded.
        """
        found = self._stand_in(torch.bool if kind == "finite" else torch.float64)
        outputs: list[str | None] = [None] * self._leaves
        for x, node in zip(tensors, nodes, strict=True):
            leaf = self._leaf_of(x)
            if outputs[leaf] is not None:
                raise self.decline("it adds up what is not of one leaf each")
            name = outputs[leaf] = f"squared {len(self.squared)}"
            self.squared[name] = node
        if len(tensors) == 1 and kind != "finite":
            place = self._new_place()
            self._enter(found, place)
            self._kinds[id(found)] = {leaf}
            self.sequence.append(Phase(place, tuple(outputs), kind, leaf))
        else:
            self.sequence.append(Phase(self.take_of_tree(found), tuple(outputs), kind))
        return found

    def _stand_in(self, dtype: torch.dtype) -> Tensor:
        """A tensor that stands for a number, made where no mode sees what makes it."""
        count = self._stand_ins[dtype]
        if count == _PHASES * self._leaves:
            raise self.decline("it adds up too much")
        self._stand_ins[dtype] += 1
        self._is_making = True
        try:
            return torch.full((), 1.5 + count, dtype=dtype, device="cpu")
        finally:
            self._is_making = False

    def _leaf_of(self, x: Tensor) -> int:
        """The one leaf that ``x`` is made of."""
        kinds = self._kinds.get(id(x), set())
        if len(kinds) != 1:
            raise self.decline("it adds up what is not of one leaf each")
        return min(kinds)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_making:
            return func(*args, **kwargs)
        leaves = _leaves(args, kwargs)
        given = [x for x in leaves if isinstance(x, Tensor)]
        name = known(func).name
        if name in _OF_DTYPES:
            return func(*args, **kwargs)
        if all(id(x) in self._place for x in given) and all(map(self._is_plain, leaves)):
            return self._once(name, func, args, kwargs)
        if name == "aten::view" and list(args[0].shape) == list(args[1]):
            out = func(*args)
            self._name(out, self.read(args[0]))
        else:
            out = super().__torch_dispatch__(func, types, args, kwargs)
        self._kinds[id(out)] = set().union(*(self._kinds.get(id(x), ()) for x in given))
        return out

    def _once(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        if name in dispatch.READS:
            raise self.decline("it reads the value of a tensor")
        if dispatch.writes(func) or torch.Tag.nondeterministic_seeded in func.tags:
            raise self.decline(f"it calls {name} of what belongs to the tree")
        out = func(*args, **kwargs)
        nested = any(isinstance(x, (list, tuple)) and pytree.tensors(x) for x in args)
        if not name.startswith("aten::") or not isinstance(out, Tensor) or out.dim() or nested:
            raise self.decline(f"it calls {name} of what belongs to the tree")
        self._made_by[id(out)] = func, args, kwargs
        if _are_nested((*args, *kwargs.values())):
            args, kwargs = pytree.tree_map(self._placed, (args, kwargs))
        else:
            args = tuple(map(self._placed, args))
            kwargs = {key: self._placed(x) for key, x in kwargs.items()}
        self.sequence.append(Operation(self.take_of_tree(out), func, args, kwargs))
        return out

    def _is_plain(self, x: Any) -> bool:
        """Whether an argument is no number that is computed of hyperparameters, or of a leaf."""
        node = self._maker.known(x) if type(x) is float else None
        return node is None or _is_hyper(node)

    def _placed(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return Place(self._place[id(x)])
        node = self._maker.known(x) if type(x) is float else None
        return x if node is None else Hyper(int(node.value.split()[1]))


def _is_hyper(node: Node) -> bool:
    return node.op == "INPUT" and node.value.startswith("number ")


def _are_nested(given: Sequence[Any]) -> bool:
    return any(isinstance(x, (list, tuple, dict)) for x in given)


def _leaves(args: Any, kwargs: dict[str, Any]) -> Sequence[Any]:
    """Arguments, and what is in those that are lists, say."""
    given = (*args, *kwargs.values())
    if _are_nested(given):
        found: list[Any] = pytree.flatten(given)[0]
        return found
    return given
