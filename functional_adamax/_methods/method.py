"""What the methods share: the way from trees to leaves and back.

A method is data: hyperparameters, the moments that it keeps, and a ``rule``, which says what one
step does to one leaf. All else is the same for every method and written once: the state and the
checks here, the gradient's sign, weight decay and complex leaves in ``_execution/rule.py``, and
who steps which leaf in ``_execution/choice.py``. Values follow ``torch.optim`` to the bit where an
update that is added to the parameter can; see ``_core/numerics.py`` for how.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._core import checks, hyper, pytree
from .._core.hyper import Hyperparameter
from .._core.numerics import moment_dtype, step_dtype
from .._core.plans import Plan
from .._core.pytree import EmptyState, Tree
from .._core.transform import GradientTransformation, Transform
from .._execution import choice
from .._execution import operator as operator
from .._execution.native import kernel
from .._execution.rule import Moments
from .._execution.work import Columns, Work
from .._schedules.scheduled import Schedule, check_lr, with_schedule

__all__ = ["Direction", "Method", "Moments"]


class Method(Transform):
    """A transform that treats each leaf alone. Subclasses are frozen dataclasses."""

    is_local: ClassVar[bool] = True
    has_executors: ClassVar[bool] = True

    state: ClassVar[type[Any]]
    """A NamedTuple of trees. The first, ``step``, counts the gradients each leaf has seen."""
    decoupled: ClassVar[bool] = False
    """Whether weight decay passes by the moments."""
    in_turn: ClassVar[bool] = False
    """Whether leaves that share memory are stepped in place one after the other."""
    foreach: bool | None = None
    """Whether steps in place take torch's foreach kernels; None where they are the fastest."""

    lr: Hyperparameter | Schedule  # these are fields of all subclasses
    weight_decay: Hyperparameter
    maximize: bool
    state_dtype: torch.dtype | None = None

    @property
    def title(self) -> str:
        """How errors call the method."""
        return self.name

    def moments(self) -> tuple[str, ...]:
        """Return the fields of the state that are kept; any other holds ``EmptyState()``.

        Default: all but ``step``.
        """
        kept: tuple[str, ...] = self.state._fields[1:]
        return kept

    @abstractmethod
    def hyper(self) -> dict[str, Any]:
        """Return what ``rule`` reads beside ``lr``: hyperparameters, or None."""

    @abstractmethod
    def rule(
        self, t: Tensor, g: Tensor, moments: Moments, h: dict[str, Any]
    ) -> tuple[Tensor, Moments]:
        """Return the update and the moments after the ``t``-th gradient of a real leaf.

        ``g`` is the conditioned gradient; ``h`` has the hyperparameters of this leaf, each a
        number or a tensor that broadcasts to it.
        """

    def init(self, params: Tree) -> Any:
        leaves, spec = checks.parameters(params)
        checks.warn_if_tied(leaves, spec)
        if "exp_inf" in self.moments():
            checks.warn_if_eps_vanishes(self.hyper()["eps"], leaves, self.state_dtype)
        return self.fresh(spec, leaves)

    def fresh(self, spec: Any, leaves: list[Any]) -> Any:
        """The state of parameters before their first gradients."""
        count = 1 + len(self.moments())
        rows = [self.start(p) if checks.trainable(p) else [EmptyState()] * count for p in leaves]
        return self.built(spec, [[row[k] for row in rows] for k in range(count)])

    def start(self, p: Tensor) -> list[Tensor]:
        """The step and the moments of a parameter before its first gradient."""
        step = torch.zeros((), dtype=step_dtype(p.device), device=p.device)
        dtype = moment_dtype(p, self.state_dtype)
        return [step, *(kernel.zeros_like(p, dtype) for _ in self.moments())]

    def update(
        self, updates: Tree, state: Any, params: Tree = None, **extra: Any
    ) -> tuple[Tree, Any]:
        del extra
        work = self.work(updates, state, params)
        return self.results(work, choice.compute(work, add=False))

    def plan(
        self, grads: Tree, state: Any, params: Tree, donate: bool = False, **extra: Any
    ) -> Plan:
        del extra
        return choice.Step(self.work(grads, state, params), (grads, state, params), donate)

    def made(self) -> GradientTransformation:
        """Check the hyperparameters, and return the pair, driven by a schedule if ``lr`` is one.

        Raises:
            ValueError: a number out of its range.
            TypeError: a hyperparameter that is no number, tensor or tree of them.
        """
        check_lr(self.lr)
        hyper.check_named(self._values())
        return with_schedule(self)

    def rates(self) -> dict[str, Any]:
        """Return the hyperparameters by name."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, **self.hyper()}

    def work(self, grads: Tree, state: Any, params: Tree) -> Work:
        """Match the structures of the trees, and record what is to be done."""
        checks.state(state, self.state)
        steps, spec = pytree.flatten(state.step)
        given = checks.INITIAL
        g = pytree.match(spec, grads, "grads", given, checks.FITTING)
        p: list[Any] = [None] * len(steps)
        if params is not None:
            p = pytree.match(spec, params, "params", given)
        elif not hyper.is_zero(self.weight_decay):
            checks.reject_missing_params(grads)
        moments = {
            name: pytree.match(spec, getattr(state, name), f"state.{name}", "state.step")
            for name in self.moments()
        }
        rates = self.rates()
        return Work(self, state.step, spec, p, g, steps, moments, rates, params is not None)

    def results(self, work: Work, columns: Columns) -> tuple[Tree, Any]:
        """Put the results of all leaves into trees: updates, or parameters, and the state."""
        first, *rest = columns
        return work.spec.unflatten(first), self.built(work.spec, rest)

    def built(self, spec: Any, columns: Columns) -> Any:
        """Make the state of its columns: t and the moments."""
        trees = [spec.unflatten(column) for column in columns]
        if len(trees) < len(self.state._fields):
            kept = dict(zip(("step", *self.moments()), trees, strict=True))
            trees = [kept.get(name, EmptyState()) for name in self.state._fields]
        return self.state(*trees)


class Direction(Transform):
    """The direction in which a method goes: its update with a learning rate of -1.

    Subclasses are frozen dataclasses of those of its hyperparameters that count for a direction.
    """

    is_local: ClassVar[bool] = True
    has_executors: ClassVar[bool] = True

    kind: ClassVar[type[Method]]

    def method(self) -> Method:
        """Return the method, with that learning rate."""
        return self.kind(lr=-1.0, **self._values())  # type: ignore[call-arg]  # it has fields

    def init(self, params: Tree) -> Any:
        return self.method().init(params)

    def update(self, updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Any:
        return self.method().update(updates, state, params, **extra)

    def made(self) -> GradientTransformation:
        """Check the hyperparameters, and return the pair."""
        hyper.check_named(self._values())
        return self.pair()
