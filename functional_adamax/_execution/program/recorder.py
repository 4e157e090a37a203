"""The modes under which a rule is recorded: they see its operations, and its questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..._core.private import dispatch
from .graph import DTYPES, Declined, Graph, Node, inputs_of
from .operations import BUILDERS, TAKEN
from .stand_ins import Numbers


class _Known(NamedTuple):
    """What a recorder has to know of an operation."""

    name: str
    operation: str  # the name without "aten::"
    arguments: tuple[tuple[str, Any], ...]  # names and default values
    written: tuple[int, ...]  # the arguments that it writes to
    base: str  # the name without what says that it is done in place
    taken: tuple[int, ...] | None  # the arguments that count; None for all


@lru_cache(1024)
def known(function: Any) -> _Known:
    """Look at the schema of an operation."""
    name, arguments = dispatch.name_of(function), dispatch.arguments_of(function)
    operation = name.removeprefix("aten::")
    written = tuple(
        i
        for i, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    base = operation.rstrip("_") if written == (0,) else operation
    return _Known(
        name,
        operation,
        tuple((x.name, x.default_value) for x in arguments),
        written,
        base,
        TAKEN.get(base),
    )


@dataclass
class _Storage:
    """Memory of the record, and who knows it."""

    given: bool = False  # whether an input lies there
    tensors: set[int] = field(default_factory=set)


class Recorder(dispatch.Mode):  # type: ignore[misc]  # where torch has it
    """Sees the operations, and names what they compute."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.problem: Declined | None = None
        self.reads: set[str] = set()
        self._is_followed = True
        self._numbers: set[str] = set()  # the inputs that are no tensors
        self._shape = torch.Size(shape)
        self._maker = Numbers()
        self._inputs: dict[str, Node] = {}
        self._node: dict[int, Node] = {}
        self._storage: dict[int, _Storage] = {}
        self._kept: list[Tensor] = []  # so that no other tensor gets the id of one that is gone

    def decline(self, reason: str) -> Declined:
        """Return what ends the record, also where the rule goes on after it is raised."""
        self.problem = self.problem or Declined(reason)
        return self.problem

    def take(self, name: str, x: Tensor, vector: bool) -> None:
        """Name an input."""
        node = self._maker.input(name, x.dtype, vector)
        self._inputs[name] = node
        self._name(x, node).given = True

    def number(self, name: str, value: float) -> float:
        """A number that stands for one that is given."""
        self._numbers.add(name)
        node = self._inputs[name] = self._maker.input(name, torch.float64, False)
        return self._maker.stand_in(value, node)

    def is_vector(self, x: Tensor) -> bool:
        """Whether ``x`` has an element for each of the leaf."""
        node = self._node.get(id(x))
        return node is None or node.vector or x.dim() > 0

    def graph(self, results: dict[str, Tensor]) -> Graph:
        """What was recorded of ``results``."""
        if self.problem is not None:
            raise self.problem
        outputs = {name: self.read(x) for name, x in results.items()}
        reads = frozenset(self.reads)
        return Graph(self._inputs, outputs, self._maker.nodes, reads, is_followed=self._is_followed)

    def read(self, x: Tensor) -> Node:
        """The node of a tensor."""
        node = self._node.get(id(x))
        if node is None:
            raise self.decline("it reads a tensor that is no input")
        return node

    def _name(self, x: Tensor, node: Node) -> _Storage:
        self._node[id(x)] = node
        self._kept.append(x)
        place = self._storage.setdefault(dispatch.memory_of(x), _Storage())
        place.tensors.add(id(x))
        return place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, operation, _, written, base, _ = known(func)
        if not name.startswith("aten::"):
            raise self.decline(f"it calls {name}, which is no operation of torch")
        if any(kind not in (Tensor, torch.nn.Parameter) for kind in types):
            raise self.decline("it makes a tensor of another class")
        if name in dispatch.READS:
            raise self.decline("it reads the value of a tensor")
        build = BUILDERS.get(base)
        if build is None:  # in inference mode compositions come as a whole
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if build is None or written not in ((), (0,)):
            raise self.decline(f"it calls {operation}, which is no instruction")
        given = self._given(func, args, kwargs)
        self._is_followed &= torch.is_grad_enabled()
        if operation == "detach" and not inputs_of(given) <= self._numbers:
            self._is_followed = False
        if written:
            self._check_write(args[0])
        out = func(*args, **kwargs)
        common = self._common(args, kwargs, out)
        if out.dtype not in DTYPES or common not in DTYPES:
            raise self.decline(f"it computes in {out.dtype}")
        if written and operation != "copy_" and self._promoted(args, kwargs) != out.dtype:
            raise self.decline(f"{operation} rounds to another dtype")
        try:
            node = build(self._maker.of(out.dtype, common), *given)
        except Declined as problem:
            raise self.decline(str(problem)) from None
        if out.shape != self._shape and (node.vector or out.dim() > 0):
            raise self.decline(f"{operation} changes the shape of the leaf")
        if written:
            self._node[id(args[0])] = node
            return args[0]
        self._name(out, node)
        return out

    def _given(self, function: Any, args: Any, kwargs: dict[str, Any]) -> list[Any]:
        """The arguments that count, in the order of the schema: nodes for tensors and numbers."""
        given = []
        _, _, arguments, _, _, taken = known(function)
        for i, (name, default) in enumerate(arguments):
            x = args[i] if i < len(args) else kwargs.get(name, default)
            if isinstance(x, Tensor):
                given.append(self.read(x))
            elif isinstance(x, (int, float)) and not isinstance(x, bool):
                given.append(self._maker.constant(float(x)))
            else:
                given.append(x)
        return given if taken is None else [given[i] for i in taken]

    def _common(self, args: Any, kwargs: dict[str, Any], out: Tensor) -> torch.dtype:
        """The dtype in which torch computes: that of the result, or what is compared."""
        return self._promoted(args, kwargs) if out.dtype == torch.bool else out.dtype

    def _promoted(self, args: Any, kwargs: dict[str, Any]) -> torch.dtype:
        """The dtype that the tensors have in common."""
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        found, *others = sorted(tensors, key=Tensor.dim, reverse=True)
        for x in others:
            found = torch.empty_like(found, dtype=torch.result_type(found, x))
        return found.dtype

    def _check_write(self, x: Tensor) -> None:
        place = self._storage.get(dispatch.memory_of(x))
        if place is None or place.given:
            raise self.decline("it writes to an input")
        if place.tensors != {id(x)}:
            raise self.decline("it writes through a view")


_ABOUT = {
    "ndim": ("ndim", "dim", "ndimension"),
    "shape": ("shape", "size", "numel", "nelement", "__len__", "nbytes"),
    "stride": ("stride", "is_contiguous", "storage_offset", "dim_order"),
}
_REFUSED = (
    "data_ptr", "numpy", "tolist", "item", "__array__", "untyped_storage", "storage", "__dlpack__",
    "__dlpack_device__", dispatch.VERSION, "__reduce_ex__", "__deepcopy__", "__repr__",
    "__format__", "register_hook", "share_memory_", "set_", "resize_", "data",
    "requires_grad_", "to_dense", "is_shared", "is_pinned", "grad", "grad_fn", "as_subclass",
)  # fmt: skip


def _functions(names: tuple[str, ...]) -> list[Any]:
    """What a function mode is told for each of these attributes of a tensor."""
    found = [getattr(Tensor, name) for name in names if hasattr(Tensor, name)]
    return [x if callable(x) else x.__get__ for x in found]


_QUESTIONS = {f: kind for kind, names in _ABOUT.items() for f in _functions(names)}
_QUESTIONS |= {torch.numel: "shape"}
_FORBIDDEN = {f: name for name in _REFUSED for f in _functions((name,))}
NOTED = frozenset({*_QUESTIONS, *_FORBIDDEN})
"""The functions that are questions; the others are none of their recorder's business."""


class Questions(TorchFunctionMode):
    """Notes what a rule asks about a leaf, which no operation shows."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = _FORBIDDEN.get(func)
        if name is not None:
            raise self._recorder.decline(f"it calls {name} of a tensor")
        about = _QUESTIONS.get(func)
        if about is not None and args and self._recorder.is_vector(args[0]):
            self._recorder.reads.add(about)
        return func(*args, **(kwargs or {}))
