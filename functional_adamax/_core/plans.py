"""A whole step before it is taken: first all checks and computations, then the writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch

from . import donation, pytree
from .apply import updated
from .pytree import Tree


class Executor(Protocol):
    """What runs whole transforms faster than leaf by leaf, with the same bits."""

    def update(self, transform: Any, updates: Tree, state: Any, params: Tree) -> Any:
        """Return the updates and the state, or None where it cannot."""

    def plan(
        self, transform: Any, grads: Tree, state: Any, params: Tree, donate: bool
    ) -> Plan | None:
        """Return the whole step before it is taken, or None where it cannot."""


executors: list[Executor] = []
"""``_execution/program/whole.py``, once a part of the library is imported that composes."""
compiled: list[Executor] = []
"""``_execution/operator.py``, which is asked where a compiler follows the code."""


class Plan(ABC):
    """A step that is not taken yet."""

    problem: str | None = None
    """Why donated trees are not written, although they might be, once the plan is checked."""

    new: tuple[Tree, Any] | None = None
    """The parameters and the state, once the plan is checked, if they are new tensors."""

    in_place: bool = False
    """Whether the step is written over what was donated, once it is taken."""

    @abstractmethod
    def check(self) -> None:
        """Check everything, and compute or allocate what the step needs, without writing."""

    @abstractmethod
    def __call__(self) -> tuple[Tree, Any]:
        """Check the plan, unless it is, take the step, and return the parameters and the state.

        What was donated is written all at once or not at all.
        """


class OverTrees(Plan):
    """A step that may be written over its trees, if they are donated."""

    def __init__(self, trees: tuple[Tree, Any, Tree], donate: bool) -> None:
        self._trees, self._donate = trees, donate
        self._write: Callable[[], None] | None = None

    def __call__(self) -> tuple[Tree, Any]:
        if self.new is None:
            self.check()
        if self._write is None:
            assert self.new is not None
            return self.new
        self._write()
        self.in_place = True
        _, state, params = self._trees
        return params, state


class Planned(OverTrees):
    """A step that is computed, and copied over what is donated."""

    def __init__(
        self, step: Callable[[], tuple[Tree, Any]], trees: tuple[Tree, Any, Tree], donate: bool
    ) -> None:
        super().__init__(trees, donate)
        self._step = step

    def check(self) -> None:
        if self._write is not None or self.new is not None:
            return
        grads, state, params = self._trees
        donate = self._donate and donation.may_write(grads, state, params)
        self.problem = donation.shared_memory(grads, state, params) if donate else None
        self.new = new = self._step()
        old = params, state
        if donate and self.problem is None and donation.are_alike(new, old):
            recording = torch.is_grad_enabled()  # as it does where a hyperparameter is learned
            if not (recording and any(x.requires_grad for x in pytree.tensors(new))):
                self._write = donation.write_over(old, new)


def by_update(
    update: Callable[..., tuple[Tree, Any]],
    grads: Tree,
    state: Any,
    params: Tree,
    donate: bool,
    extra: dict[str, Any],
) -> Plan:
    """The step of a transform by its ``update``."""
    step = partial(_step, update, grads, state, params, extra)
    return Planned(step, (grads, state, params), donate)


def _step(
    update: Callable[..., tuple[Tree, Any]],
    grads: Tree,
    state: Any,
    params: Tree,
    extra: dict[str, Any],
) -> tuple[Tree, Any]:
    updates, state = update(grads, state, params, **extra)
    return updated(params, updates), state
