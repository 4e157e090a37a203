"""Stages of a chain that treat each leaf alone: the walk over the leaves, once.

A stage is hyperparameters and a ``rule``, which says what becomes of the update of one leaf. What
it computes for all leaves together, such as a norm, is in ``once``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from .._core import checks, hyper, pytree
from .._core.pytree import EmptyState, Tree
from .._core.transform import Stateless, Transform
from .._execution import operator as operator
from .._execution.program import whole as whole

_NOTHING: dict[str, Any] = {}


class LeafUpdate(NamedTuple):
    """The update of one leaf, and what the rule of a ``Stage`` may read beside it."""

    u: Tensor
    """The update: the gradient, or what the links before have made of it."""
    p: Any
    """The parameter, if the stage says ``needs_params``, else None."""
    h: dict[str, Any]
    """The hyperparameters by name, each a number or a tensor that broadcasts to ``u``, and what
    ``once`` returned."""
    kept: dict[str, Any]
    """What a ``StatefulStage`` keeps of the leaf, by the name of the field."""


class Stage(Stateless):
    """A link of a chain that treats each leaf alone and keeps no state: derive your own from it.

    Write a frozen dataclass, whose fields are the hyperparameters, and a method ``rule``, which
    returns what becomes of the update of one leaf. ``pair()`` makes the transform.

    ``rule(x)`` is given a ``LeafUpdate``. It is a pure function of ``x`` and of the fields, written
    in torch's operations: it returns a tensor of the shape and the dtype of ``x.u``, and writes to
    nothing. Then it can be differentiated, batched and compiled like all transforms of the library.
    Leaves whose update is None are passed by.

    On a CPU such a stage is run as a program, alone and as a link of a chain, where the rule
    computes each element by itself: with arithmetic, comparisons, ``where``, ``abs``, ``sign``,
    ``maximum``, ``lerp`` and the like. The rule is called a few times to record its operations, and
    from then on the record is run; other values of the hyperparameters need no other record. What
    cannot be recorded is called leaf by leaf in every step, with the same results, and ``explain``
    says why. That is so where the rule

    - decides by the value of a tensor or of a hyperparameter (``item``, ``if x.h["rate"] > 1``), or
      by a shape;
    - computes over several elements (``mean``, ``sort``, a product of matrices) or at random;
    - reads what may change without a trace, such as a list, a dict or an object of your own, or
      changes anything, such as a counter. Numbers and strings that it reads by a name in its module
      may change: each value has a record of its own.

    Class attributes, methods:

    - ``name``: what ``repr`` prints. Default: the name of the class in lower case.
    - ``strict``: refuse updates that can be no gradients, such as sparse ones. Default: True.
    - ``needs_params``: ``update`` must be given the parameters; ``rule`` has them as ``x.p``.
      Default: False.
    - ``hyper()``: the hyperparameters in ``x.h``, by name: numbers, tensors or trees of them, as in
      ``scale``. Default: all fields. Override it where a field is something else, such as a string,
      which ``rule`` reads of ``self``.
    - ``once(updates)``: what is computed once for the list of all updates, by name; ``rule`` has it
      in ``x.h``. Default: nothing.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False, repr=False)
        ... class Shrink(Stage):
        ...     threshold: float = 0.1
        ...
        ...     def rule(self, x: LeafUpdate) -> Tensor:
        ...         return x.u.sign() * (x.u.abs() - x.h["threshold"]).clamp(min=0)
        >>> tx = Shrink(0.5).pair()
        >>> tx.update(torch.tensor([0.2, -2.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 0.0000, -1.5000])

    ``eq=False`` and ``repr=False`` leave both to ``Stage``, which can compare tensors.
    """

    is_local: ClassVar[bool] = True

    strict: ClassVar[bool] = True
    needs_params: ClassVar[bool] = False

    @abstractmethod
    def rule(self, x: LeafUpdate) -> Tensor:
        """Return what becomes of the update."""

    def hyper(self) -> dict[str, Any]:
        """Return the hyperparameters that ``rule`` reads, by name. Default: all fields."""
        return self._values()

    def once(self, updates: list[Tensor]) -> dict[str, Any]:
        """Return what is computed once for all updates."""
        del updates
        return {}

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del extra
        leaves, spec = pytree.flatten(updates)
        given = self.needs_params and params is not None
        like = pytree.match(spec, params, "params", "updates") if given else leaves
        if self.strict:
            checks.gradients(spec, leaves, like, self.name, "updates")
        if self.needs_params and not given:
            if any(u is not None for u in leaves):
                checks.params_given(None, f"for {self.name}")
            return updates, state
        return pytree.unflatten(spec, self.applied(updates, leaves, like)), state

    def applied(self, tree: Tree, updates: list[Any], leaves: list[Any]) -> list[Any]:
        """The rule on each update; ``leaves``, of ``tree``, is what hyperparameters fit."""
        rows = _rows(self.hyper(), tree, leaves)
        shared = self.once([u for u in updates if u is not None])
        if shared:
            rows = [h | shared for h in rows]
        params = leaves if self.needs_params else [None] * len(leaves)
        columns = zip(updates, params, rows, strict=True)
        return [
            None if u is None else self.rule(LeafUpdate(u, p, h, _NOTHING)) for u, p, h in columns
        ]


class StatefulStage(Transform):
    """A ``Stage`` that keeps tensors of each leaf, such as an average: derive your own from it.

    Write a NamedTuple, of which each field will be a tree like the parameters, and a frozen
    dataclass, whose fields are the hyperparameters, with

    - ``state``, a class attribute: the NamedTuple;
    - ``start(p)``, which returns what is kept of a parameter before its first update: for each
      field a tensor of the shape of ``p``, or of the shape () where it is one number for the leaf,
      such as a count;
    - ``rule(x)``, which returns the update, and a dict of what is kept now, by the names of the
      fields. ``x`` is a ``LeafUpdate``; what was kept is ``x.kept``. What the dict does not name
      stays as it is.

    What ``Stage`` says of its rule, of programs, ``name``, ``needs_params``, ``hyper`` and ``once``
    holds here, too. A leaf whose update is None keeps what it has. Parameters that are None, or
    neither floating nor complex, have ``EmptyState()`` in the place of state and get no updates.

    Example:
        >>> from dataclasses import dataclass
        >>> class MomentumState(NamedTuple):
        ...     velocity: Tree
        >>> @dataclass(frozen=True, eq=False, repr=False)
        ... class Momentum(StatefulStage):
        ...     decay: float = 0.9
        ...     state = MomentumState
        ...
        ...     def start(self, p: Tensor) -> Sequence[Tensor]:
        ...         return [torch.zeros_like(p)]
        ...
        ...     def rule(self, x: LeafUpdate) -> tuple[Tensor, dict[str, Any]]:
        ...         velocity = x.h["decay"] * x.kept["velocity"] + x.u
        ...         return velocity, {"velocity": velocity}
        >>> tx = Momentum(0.5).pair()
        >>> updates, state = tx.update(torch.ones(1), tx.init(torch.zeros(1)))
        >>> tx.update(torch.ones(1), state)
        (tensor([1.5000]), MomentumState(velocity=tensor([1.5000])))
    """

    is_local: ClassVar[bool] = True

    state: ClassVar[type[Any]]
    needs_params: ClassVar[bool] = False

    @abstractmethod
    def start(self, p: Tensor) -> Sequence[Tensor]:
        """Return what the state holds of a parameter before its first update, field by field."""

    @abstractmethod
    def rule(self, x: LeafUpdate) -> tuple[Tensor, dict[str, Any]]:
        """Return what becomes of the update, and what is kept now, by the names of the fields."""

    def hyper(self) -> dict[str, Any]:
        """Return the hyperparameters that ``rule`` reads, by name. Default: all fields."""
        return self._values()

    def once(self, updates: list[Tensor]) -> dict[str, Any]:
        """Return what is computed once for all updates."""
        del updates
        return {}

    def fitting(self, spec: Any, kept: dict[str, list[Any]], updates: list[Any]) -> list[Any]:
        """Check the leaves of the state; return the tensors that updates must fit.

        Default: what is kept of a leaf is of one shape, or a number.
        """
        return checks.kept(spec, kept, updates)

    def init(self, params: Tree) -> Any:
        leaves, spec = checks.parameters(params)
        empty = [EmptyState()] * len(self.state._fields)
        rows = [self.start(p) if checks.trainable(p) else empty for p in leaves]
        columns = ([row[k] for row in rows] for k in range(len(empty)))
        return self.state(*(pytree.unflatten(spec, column) for column in columns))

    def update(
        self, updates: Tree, state: Any, params: Tree = None, **extra: Any
    ) -> tuple[Tree, Any]:
        del extra
        checks.state(state, self.state)
        *others, last = self.state._fields
        tree = getattr(state, last)
        column, spec = pytree.flatten(tree)
        kept = {
            name: pytree.match(spec, getattr(state, name), f"state.{name}", f"state.{last}")
            for name in others
        }
        kept[last] = column
        given = pytree.match(spec, updates, "updates", checks.INITIAL)
        like = self.fitting(spec, kept, given)
        checks.gradients(spec, given, like, self.name, "updates")
        there = [u for u in given if u is not None]
        p = [None] * len(given)
        if self.needs_params and there:
            checks.params_given(params, f"for {self.name}")
            p = pytree.match(spec, params, "params", checks.INITIAL)
        rows, shared = _rows(self.hyper(), tree, like), self.once(there)
        for i, u in enumerate(given):
            if u is not None:
                before = {name: column[i] for name, column in kept.items()}
                given[i], after = self.rule(LeafUpdate(u, p[i], rows[i] | shared, before))
                for name, x in after.items():
                    kept[name][i] = x
        columns = (pytree.unflatten(spec, column) for column in kept.values())
        return pytree.unflatten(spec, given), self.state(*columns)


def _rows(values: dict[str, Any], tree: Tree, leaves: list[Any]) -> list[dict[str, Any]]:
    """The hyperparameters of each leaf."""
    columns = [hyper.per_leaf(name, x, tree, leaves) for name, x in values.items()]
    if not columns:
        return [_NOTHING] * len(leaves)
    return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]
