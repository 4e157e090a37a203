"""Scaling: the length of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from . import _hyper, _rule, _tree
from ._hyper import Hyperparameter
from ._schedule import Schedule, check_lr, with_schedule
from ._spelling import explains_misfits
from ._transform import GradientTransformation, Stateless
from ._tree import EmptyState, Tree


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Stateless):
    """Multiply by a factor."""

    name: ClassVar[str] = "scale"

    factor: Hyperparameter

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del params, extra
        return _scaled(updates, "factor", self.factor, 1), state


@dataclass(frozen=True, eq=False, repr=False)
class ScaleByLearningRate(Stateless):
    """Multiply by the negative learning rate."""

    name: ClassVar[str] = "scale_by_learning_rate"

    lr: Hyperparameter | Schedule

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del params, extra
        return _scaled(updates, "lr", self.lr, -1), state


def _scaled(updates: Tree, name: str, factor: Hyperparameter, sign: int) -> Tree:
    leaves, spec = _tree.flatten(updates)
    factors = _hyper.per_leaf(name, factor, updates, leaves)
    new = [
        None if u is None else _rule.scaled(u, sign * f)
        for u, f in zip(leaves, factors, strict=True)
    ]
    return _tree.unflatten(spec, new)


@explains_misfits
def scale(factor: Hyperparameter) -> GradientTransformation:
    """Multiply the updates by ``factor``: ``update <- factor * update``.

    Args:
        factor: a number of either sign, a tensor of shape () or (1,), or a tree shaped like
            the updates (or a prefix of it). Updates keep their dtype.

    Example:
        >>> tx = scale(-1.0)
        >>> tx.update(torch.ones(2), tx.init(torch.zeros(2)))[0]
        tensor([-1., -1.])
    """
    _hyper.check("factor", factor, signed=True)
    return Scale(factor).pair()


@explains_misfits
def scale_by_learning_rate(lr: Hyperparameter | Schedule) -> GradientTransformation:
    """Turn a direction into a descent step: ``update <- -lr * update``.

    Args:
        lr: a number in [0, inf); a tensor of shape () or (1,); a tree shaped like the updates
            (or a prefix of it); or a schedule, a function of the number of ``update`` calls so
            far, 0 at the first. Updates keep their dtype.

    Returns:
        A transform without state; with a schedule the state is ``ScheduledState(count, inner)``.

    Example:
        >>> tx = scale_by_learning_rate(lambda count: 0.1 * 0.5**count)
        >>> state = tx.init(torch.zeros(2))
        >>> for _ in range(2):
        ...     updates, state = tx.update(torch.ones(2), state)
        >>> updates
        tensor([-0.0500, -0.0500])
    """
    check_lr(lr)
    return with_schedule(ScaleByLearningRate(lr))
