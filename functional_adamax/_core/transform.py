"""What a transform is: a pair of pure functions, and the data behind it.

Users meet ``GradientTransformation``, the pair ``(init, update)``. Authors write
a ``Transform``: a frozen dataclass whose fields are its hyperparameters, with
the methods ``init`` and ``update``; ``pair()`` makes the pair of it. Because a
transform is data and not a closure it compares by value, prints its
hyperparameters, pickles, copies, and can be built inside traced code.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from . import pytree
from .plans import Plan, by_update, compiled, executors
from .pytree import EmptyState, Tree


class GradientTransformation(NamedTuple):
    """A pair of pure functions.

    - ``init(params) -> state``
    - ``update(updates, state, params=None, **extra) -> (updates, state)``

    ``updates`` come in as gradients and leave as what ``apply_updates`` adds to
    the parameters. Neither function writes to anything it is given.
    """

    init: Callable[[Tree], Any]
    update: Callable[..., tuple[Tree, Any]]

    def __repr__(self) -> str:
        if isinstance(self.update, Update):
            return repr(self.update.transform)
        return f"GradientTransformation(init={self.init!r}, update={self.update!r})"


class Data:
    """A frozen dataclass of hyperparameters: compares by value, prints them, pickles, copies."""

    name: ClassVar[str]
    """The public function that makes it, which ``repr`` prints. Default: that of the class."""

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    @property
    def is_plain(self) -> bool:
        """Whether it is a function of a count, and of nothing else than its numbers."""
        return False

    def _values(self) -> dict[str, Any]:
        """The fields; a compiler may ask for them before all are there."""
        given = vars(self)
        fields = dataclasses.fields(cast(Any, self))
        return {field.name: given[field.name] for field in fields if field.name in given}

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return same(self._values(), other._values())

    def __hash__(self) -> int:
        return hash((type(self), _key(list(self._values().values()))))

    def __repr__(self) -> str:
        words = ", ".join(f"{name}={value!r}" for name, value in self._values().items())
        return f"{self.name}({words})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: _detached(value) for name, value in self._values().items()}


@dataclass(frozen=True, eq=False, repr=False)
class Transform(Data, ABC):
    """A transform as data. Subclasses are frozen dataclasses of hyperparameters."""

    is_local: ClassVar[bool] = False
    """Whether it treats each leaf alike, and alone, beside what it computes once for the tree."""
    has_executors: ClassVar[bool] = False
    """Whether its update looks for executors by itself."""

    asks: ClassVar[bool] = False
    """Whether ``settled`` asks functions, masks or labels of the user's that no part of it has."""

    @abstractmethod
    def init(self, params: Tree) -> Any:
        """Return the state before the first update."""

    @abstractmethod
    def update(self, updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Any:
        """Return the new updates and the new state."""

    def plan(
        self, grads: Tree, state: Any, params: Tree, donate: bool = False, **extra: Any
    ) -> Plan:
        """Return the whole step, from gradients to new parameters, before it is taken.

        With ``donate`` it may be written over ``params`` and ``state``.
        """
        transform = self
        if self.is_local and not extra and not torch.compiler.is_compiling():
            if asks(self):
                transform = self.settled(state, grads, params)
            for executor in executors:
                found = executor.plan(transform, grads, state, params, donate)
                if found is not None:
                    return found
        return by_update(transform.update, grads, state, params, donate, extra)

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        """Return the transform with what the user's functions in it say now.

        They are schedules and conditions, asked with the state, and masks and labels, with the
        trees, each once. Updates are those of the whole step, which have the same structure.
        """
        del state, updates, params
        return self

    def pair(self) -> GradientTransformation:
        """Return the transform as users hold it."""
        return GradientTransformation(Init(self), Update(self))


@dataclass(frozen=True, eq=False, repr=False)
class Stateless(Transform):
    """A transform whose state is ``EmptyState()``."""

    def init(self, params: Tree) -> EmptyState:
        del params
        return EmptyState()


@dataclass(frozen=True)
class Init:
    """``tx.init``."""

    transform: Transform

    def __hash__(self) -> int:
        return _hash_of(self)

    def __call__(self, params: Tree) -> Any:
        return self.transform.init(params)

    __call__.__qualname__ = "init"  # which errors of Python name


@dataclass(frozen=True)
class Update:
    """``tx.update``, which also offers the transform's fused steps to ``step``."""

    transform: Transform

    def __hash__(self) -> int:
        return _hash_of(self)

    def __call__(self, updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Any:
        transform = self.transform
        if transform.is_local and not extra:
            compiling = torch.compiler.is_compiling()
            if not compiling and asks(transform):
                transform = transform.settled(state, updates, params)
            for executor in compiled if compiling else () if transform.has_executors else executors:
                found = executor.update(transform, updates, state, params)
                if found is not None:
                    return found
        return transform.update(updates, state, params, **extra)

    __call__.__qualname__ = "update"


def _hash_of(pair: Any) -> int:
    """The hash of one of a pair; a compiler may ask for it before the transform is there."""
    return hash((type(pair), vars(pair).get("transform")))


_ASKS = "asks functions"  # where a transform keeps whether it does


def asks(value: Any) -> bool:
    """Whether a transform, or a part of it, asks functions, masks or labels of the user's."""
    if isinstance(value, GradientTransformation):
        return isinstance(value.update, Update) and asks(value.update.transform)
    if isinstance(value, Transform):
        known: bool | None = vars(value).get(_ASKS)
        if known is None:
            known = value.asks or any(map(asks, value._values().values()))
            object.__setattr__(value, _ASKS, known)
        return known
    parts = value.values() if isinstance(value, dict) else value
    return isinstance(parts, (tuple, type({}.values()))) and any(map(asks, parts))


def same(a: Any, b: Any) -> bool:
    """Equality by value: tensors by dtype, shape, device and bits, partials by their parts."""
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return False
        if (a.dtype, a.shape, a.device) != (b.dtype, b.shape, b.device):
            return False
        return torch.equal(a, b)
    if isinstance(a, partial) and isinstance(b, partial):
        return same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple, deque)) and type(a) is type(b):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def _key(value: Any) -> Any:
    """Something hashable that is equal for equal values; tensors are left out."""
    if isinstance(value, Tensor):
        return None
    if isinstance(value, partial):
        return value.func, _key(value.args), _key(value.keywords)
    if isinstance(value, dict):
        return frozenset(value)
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    try:
        hash(value)
    except TypeError:
        return type(value)
    return value


def _detached(value: Tree) -> Tree:
    if isinstance(value, partial):
        return partial(value.func, *_detached(value.args), **_detached(value.keywords))
    return pytree.tree_map(
        lambda x: x.detach() if isinstance(x, Tensor) and not x.is_leaf else x, value
    )
