"""A rule as the list of operations that it runs.

A rule is a function of named tensors: vectors, which have the shape of the leaf, and uniforms,
which are one number for a leaf. It runs on a small leaf under a dispatch mode, which sees every
operation that reaches torch's kernels, with the dtypes that torch computes it in. What is recorded
is true of every other leaf only if the rule depends on nothing else, so all else declines, with a
reason:

- an operation that hands a number to Python, for Python may branch on it;
- a tensor that is no input, random operations, writes to an input or through a view;
- operations that are no function of the elements one by one, or whose bits depend on their place.

What a rule asks about a leaf is noted, for the record holds for leaves of the same answers only.
And the rule runs twice, with other values and other sizes: another graph declines.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..._core.private import dispatch
from .operations import BUILDERS, DTYPES, TAKEN, Declined, Node
from .stand_ins import Numbers

Rule: TypeAlias = Callable[[dict[str, Any]], dict[str, Tensor]]

_SIZES = (7, 11)  # of the leaf in the two runs
_LARGEST = 2**16  # elements of a leaf that is recorded in its own shape


class Input(NamedTuple):
    """What a rule is given under a name."""

    vector: bool  # a value for each element of the leaf, or one for the leaf
    dtype: torch.dtype | None  # None of a number that is no tensor


class Context(NamedTuple):
    """What a rule may ask of its surroundings."""

    grad: bool
    inference: bool
    autocast: bool
    autocast_dtype: torch.dtype
    default_dtype: torch.dtype
    deterministic: bool


def context() -> Context:
    """The surroundings of the caller."""
    return Context(
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )


@dataclass
class Graph:
    """What a rule computes: its inputs, its outputs, and every operation once, in order."""

    inputs: dict[str, Node]
    outputs: dict[str, Node]
    nodes: list[Node]
    reads: frozenset[str] = frozenset()  # what it asked about the leaf: "ndim", "shape", "stride"
    dims: int = 2  # of the leaves: 0 for none, 1 for some, 2 for any number

    def form(self) -> Any:
        """What is equal for equal graphs."""
        number = {node: i for i, node in enumerate(self.nodes)}
        rows = [
            (x.op, x.dtype, x.vector, x.single, repr(x.value), *(number[y] for y in x.operands))
            for x in self.nodes
        ]
        return rows, {name: number[x] for name, x in self.outputs.items()}


def record(rule: Rule, inputs: Mapping[str, Input], like: Tensor) -> Graph:
    """Record ``rule`` for leaves such as ``like``.

    Raises:
        Declined: it cannot be, with the reason.
    """
    here = context()
    graph = _recorded(rule, inputs, [(_SIZES[0],), (_SIZES[1],)], here)
    reads = graph.reads
    if not reads:
        if _holds_without_dimensions(rule, inputs, graph, here):
            return graph
        if like.dim() == 0:
            graph = _recorded(rule, inputs, [(), ()], here)
    elif reads == {"ndim"}:
        graph = _recorded(rule, inputs, [(size,) * like.dim() for size in (2, 3)], here)
    elif like.numel() > _LARGEST:
        raise Declined("it asks for the shape of the leaf, which is large")
    else:
        shape = tuple(like.shape)
        graph = _recorded(rule, inputs, [shape, shape], here, like.stride())
    if not graph.reads <= reads:
        raise Declined("what it asks about the leaf depends on the leaf")
    graph.dims = min(like.dim(), 1)
    return graph


def _holds_without_dimensions(
    rule: Rule, inputs: Mapping[str, Input], graph: Graph, around: Context
) -> bool:
    """Whether a leaf of one element has the same record, although types are promoted otherwise."""
    try:
        form = _recorded(rule, inputs, [()], around).form()
    except Declined:
        return False
    return bool(form == graph.form())


def answers(reads: frozenset[str], x: Tensor) -> Any:
    """What a rule is told that asks so about ``x``."""
    if reads <= {"ndim"}:
        return x.dim() if reads else None
    return x.shape, x.stride()


Result = TypeVar("Result")


def alone(function: Callable[[], Result], around: Context) -> Result:
    """Call ``function`` in a thread that has the caller's context, and none of its modes.

    Raises:
        Declined: it raises, or no thread can be started any more.
    """
    found: list[Result] = []
    raised: list[Exception] = []

    def run() -> None:
        autocast = torch.autocast(
            "cpu", dtype=around.autocast_dtype, enabled=around.autocast, cache_enabled=False
        )
        try:
            grad = torch.set_grad_enabled(around.grad)  # which leaving inference mode switches on
            with torch.inference_mode(around.inference), grad, autocast:
                found.append(function())
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    try:
        thread.start()
    except RuntimeError as error:
        raise Declined(f"no thread can be started: {error}") from error
    thread.join()
    if found:
        return found[0]
    problem = raised[0]
    if isinstance(problem, (Declined, MemoryError)):
        raise problem
    raise Declined(f"it raises {type(problem).__name__} on other values: {problem}") from problem


def _recorded(
    rule: Rule,
    inputs: Mapping[str, Input],
    shapes: list[tuple[int, ...]],
    around: Context,
    strides: tuple[int, ...] | None = None,
) -> Graph:
    """Run the rule once for each of ``shapes``, and compare the graphs."""

    def run() -> list[Graph]:
        return [_run(rule, inputs, shape, strides, seed) for seed, shape in enumerate(shapes)]

    graphs = alone(run, around)
    by_shape = shapes[0] != shapes[-1] and graphs[0].reads - {"ndim"}
    if graphs[0].reads != graphs[-1].reads or not (
        by_shape or graphs[0].form() == graphs[-1].form()
    ):
        raise Declined("it does not do the same every time")
    return graphs[0]


def _run(
    rule: Rule,
    inputs: Mapping[str, Input],
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    seed: int,
) -> Graph:
    generator = torch.Generator("cpu").manual_seed(seed)

    def value(given: Input) -> Tensor:
        assert given.dtype is not None
        x = torch.rand(
            shape if given.vector else (), dtype=given.dtype, device="cpu", generator=generator
        )
        if given.vector and strides is not None:
            x = torch.empty_strided(shape, strides, dtype=x.dtype, device="cpu").copy_(x)
        return x

    recorder = Recorder(shape)
    values: dict[str, Any] = {}
    for name, given in inputs.items():
        if given.dtype is None:
            number = torch.rand((), dtype=torch.float64, device="cpu", generator=generator)
            values[name] = recorder.number(name, number.item())
        else:
            values[name] = value(given)
            recorder.take(name, values[name], given.vector)
    with recorder, Questions(recorder):
        results = rule(values)
    return recorder.graph(results)


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
        return Graph(self._inputs, outputs, self._maker.nodes, frozenset(self.reads))

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
        name = dispatch.name_of(func)
        if not name.startswith("aten::"):
            raise self.decline(f"it calls {name}, which is no operation of torch")
        if any(kind not in (Tensor, torch.nn.Parameter) for kind in types):
            raise self.decline("it makes a tensor of another class")
        operation = name.removeprefix("aten::")
        if name in dispatch.READS:
            raise self.decline("it reads the value of a tensor")
        written = [
            i
            for i, argument in enumerate(dispatch.arguments_of(func))
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        base = operation.rstrip("_") if written == [0] else operation
        build = BUILDERS.get(base)
        if build is None:  # in inference mode compositions come as a whole
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if build is None or written not in ([], [0]):
            raise self.decline(f"it calls {operation}, which is no instruction")
        given = self._given(dispatch.arguments_of(func), args, kwargs)
        given = [given[i] for i in TAKEN.get(base, range(len(given)))]
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

    def _given(self, arguments: Any, args: Any, kwargs: dict[str, Any]) -> list[Any]:
        """The arguments in the order of the schema: nodes for tensors and numbers."""
        given = []
        for i, argument in enumerate(arguments):
            x = args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
            if isinstance(x, Tensor):
                given.append(self.read(x))
            elif isinstance(x, (int, float)) and not isinstance(x, bool):
                given.append(self._maker.constant(float(x)))
            else:
                given.append(x)
        return given

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
