"""The record of work: what one step has to do, whichever executor does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

from torch import Tensor

from .._core import checks, hyper
from .._core.pytree import Tree
from .adamax_rule import AdamaxLeaf, adamax
from .rule import Leaf, Rule

Row: TypeAlias = Sequence[Any]
"""The results for one leaf: the update or the new parameter, t, and the moments."""

Columns: TypeAlias = Sequence[list[Any]]
"""The results for all leaves: a list of the first item of each row, one of the second, ..."""


class MethodLike(Protocol):
    """What executors know of a method, see ``_methods/method.py``."""

    in_turn: ClassVar[bool]
    decoupled: ClassVar[bool]

    @property
    def title(self) -> str: ...

    @property
    def rule(self) -> Rule: ...

    @property
    def maximize(self) -> bool: ...

    @property
    def foreach(self) -> bool | None: ...

    def rates(self) -> dict[str, Any]: ...

    def results(self, work: Any, columns: Columns) -> tuple[Tree, Any]: ...


@dataclass(slots=True)
class Work:
    """The leaves of some trees, and the method that is to step them.

    Each column has an item for each leaf. ``check`` comes before anything is read of one leaf.
    """

    method: MethodLike
    tree: Tree  # of the steps; its structure is that of the others
    spec: Any  # that structure
    p: list[Any]  # None where no params are given
    g: list[Any]  # None where a gradient is missing
    t: list[Any]
    moments: dict[str, list[Any]]  # by the field of the state
    rates: dict[str, Any]  # the hyperparameters as they are given, weight_decay among them
    given: bool  # whether params are
    hyper: dict[str, list[Any]] | None = None  # those of each leaf, once they are checked

    def check(self) -> None:
        """Check the leaves against one another, and find the hyperparameters of each.

        Raises:
            TypeError, ValueError, RuntimeError: they do not fit.
        """
        if self.hyper is not None:
            return
        spec, like = self.spec, self.like()
        checks.moments(spec, self.moments)
        if self.given:
            checks.same_places(spec, self.p, like, "params")
        checks.gradients(spec, self.g, like, self.method.title)
        checks.scalars(spec, self.t, like, "state.step")
        self.hyper = {
            name: [x] * len(like)
            if isinstance(x, (int, float)) or name == "derivative_floor"
            else hyper.per_leaf(name, x, self.tree, like)
            for name, x in self.rates.items()
        }

    def like(self) -> list[Any]:
        """The tensors to which gradients and hyperparameters are fitted."""
        for column in self.moments.values():
            return column
        return list(map(_fitting, self.t, self.p, self.g))

    def stepped(self) -> list[int]:
        """The positions of the leaves that have a gradient."""
        return [i for i, g in enumerate(self.g) if g is not None]

    def elementwise(self) -> set[int]:
        """The positions of the leaves with a hyperparameter of other than one element."""
        assert self.hyper is not None
        columns = map(enumerate, self.hyper.values())
        return {
            i for column in columns for i, x in column if isinstance(x, Tensor) and x.numel() != 1
        }

    def own(self) -> list[list[Any]]:
        """The hyperparameters of which a leaf may have its own, or a tensor."""
        assert self.hyper is not None
        rates = self.rates
        return [x for name, x in self.hyper.items() if not isinstance(rates[name], (int, float))]

    def leaf(self, i: int) -> Leaf:
        """The leaf at a position that has a gradient."""
        assert self.hyper is not None
        moments = {name: column[i] for name, column in self.moments.items()}
        numbers = {name: column[i] for name, column in self.hyper.items()}
        dtype = next(iter(moments.values()), self.p[i] if self.given else self.g[i]).dtype
        method = self.method
        how = method.maximize, method.decoupled
        return Leaf(self.p[i], self.g[i], self.t[i], moments, numbers, dtype, *how)

    def columns(self, rows: dict[int, Row], add: bool) -> Columns:
        """Put the results of leaves in their places; what has none is as it was."""
        first = list(self.p) if add else [None] * len(self.t)
        columns = [first, list(self.t), *map(list, self.moments.values())]
        for i, row in rows.items():
            for column, x in zip(columns, row, strict=True):
                column[i] = x
        return columns


def _fitting(step: Any, p: Any, g: Any) -> Any:
    """The tensor that a gradient must fit where no moment is kept."""
    if not isinstance(step, Tensor):
        return step
    return p if isinstance(p, Tensor) else g


def leaves_of(work: Work, where: Sequence[int]) -> dict[int, AdamaxLeaf]:
    """The leaves at some positions as the executors of Adamax take them; none of other rules."""
    if work.method.rule is not adamax:
        return {}
    if work.hyper is None:
        work.check()
    assert work.hyper is not None
    h, moments, method = work.hyper, work.moments, work.method
    tensors = work.p, work.g, moments["exp_avg"], moments["exp_inf"], work.t
    rates = h["lr"], h["b1"], h["b2"], h["eps"], h["weight_decay"], h["derivative_floor"]
    how = method.maximize, method.decoupled
    columns = (*tensors, *rates)
    return {i: AdamaxLeaf._make([*(x[i] for x in columns), *how]) for i in where}
