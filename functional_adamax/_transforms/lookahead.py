"""Lookahead: slow weights that follow the fast ones by a part of the way, every k steps.

The parameters are the fast weights and the slow ones are state, so that it is a transform like
any other. A synchronisation is selected and not branched to: no code depends on a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._core import apply, checks, hyper, numerics, pytree, selection
from .._core.hyper import Hyperparameter
from .._core.links import call_update, checked_link, remade, settled
from .._core.node import public_node
from .._core.numerics import blend
from .._core.pytree import Tree
from .._core.transform import GradientTransformation, Transform
from .momentum import per_leaf


@public_node
class LookaheadState(NamedTuple):
    """State of ``lookahead``."""

    count: Tensor  # type: ignore[assignment]  # (), int64: number of update calls so far
    slow: Tree  # like params: the weights of the last synchronisation
    inner: Any  # state of the wrapped transform


@dataclass(frozen=True, eq=False, repr=False)
class Lookahead(Transform):
    """A transform whose steps are taken back in part."""

    is_local: ClassVar[bool] = True

    inner: GradientTransformation
    sync_period: int
    slow_step_size: Hyperparameter
    reset_state: bool = False

    def init(self, params: Tree) -> LookaheadState:
        leaves, spec = checks.parameters(params)
        slow = [per_leaf(p, torch.clone) for p in leaves]
        count = pytree.count(params)
        return LookaheadState(count, pytree.unflatten(spec, slow), self.inner.init(params))

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        if not isinstance(state, LookaheadState):
            return self
        return remade(self, inner=settled(self.inner, state.inner, updates, params))

    def update(
        self, updates: Tree, state: LookaheadState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, LookaheadState]:
        checks.state(state, LookaheadState)
        checks.params_given(params, "to lookahead")
        slow, spec = pytree.flatten(state.slow)
        leaves, _ = checks.beside(spec, slow, params, updates, self.name)
        sizes = hyper.per_leaf("slow_step_size", self.slow_step_size, state.slow, slow)
        new, inner = call_update(self.inner, updates, state.inner, params, extra)
        count = state.count + 1
        due = count % self.sync_period == 0
        steps = pytree.match(spec, new, "the updates of inner", checks.INITIAL)
        for i, (p, u, size) in enumerate(zip(leaves, steps, sizes, strict=True)):
            if u is not None:
                steps[i], slow[i] = _step(due.to(p.device), p, u, slow[i], size)
        new = pytree.unflatten(spec, steps)
        if self.reset_state:
            fresh = self.inner.init(apply.updated(params, new))
            inner = selection.select(due, fresh, inner)
        return new, LookaheadState(count, pytree.unflatten(spec, slow), inner)


def _step(due: Tensor, p: Tensor, u: Tensor, slow: Tensor, size: Any) -> tuple[Tensor, Tensor]:
    """Return the update of the fast weights, and the slow weights."""
    wide = torch.promote_types(torch.promote_types(p.dtype, u.dtype), torch.float32)
    synced = blend(slow, numerics.add(p, u), size)
    update = torch.where(due, synced.to(wide) - p.to(wide), u.to(wide))
    return update, torch.where(due, synced, slow)


def lookahead(
    inner: GradientTransformation,
    sync_period: int,
    slow_step_size: Hyperparameter,
    reset_state: bool = False,
) -> GradientTransformation:
    """Let ``inner`` run ahead, and every so often go back to a point on the way.

        fast <- fast + inner(grads)                     on every call
        slow <- slow + slow_step_size * (fast - slow)   on every sync_period-th call, then
        fast <- slow

    The parameters are the fast weights, at which the gradients are taken; ``state.slow`` holds
    the slow ones, the better point for evaluation. ``update`` needs ``params``, and its updates
    must be applied as they are: it is the last link of a chain. A leaf whose update is None on
    a synchronisation sits it out.

    Args:
        inner: any transform; ``params`` and extra keyword arguments reach it.
        sync_period: calls from one synchronisation to the next; an int in [1, inf).
        slow_step_size: in [0, inf), at most 1 as a rule: a number, a tensor, or a tree of them.
        reset_state: at a synchronisation give ``inner`` the state that its ``init`` makes of
            the new parameters. Default: False.

    Returns:
        A transform with the state ``LookaheadState(count, slow, inner)``.

    Raises:
        TypeError: ``inner`` is no pair of functions.
        ValueError: a number out of range; in ``update``, ``params`` missing or of another form.

    Example:
        >>> tx, params = lookahead(sgd(1.0), 2, 0.5), torch.zeros(1)
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(torch.tensor([-4.0]), state, params)
        ...     params = params + updates
        ...     print(params, state.slow)
        tensor([4.]) tensor([0.])
        tensor([4.]) tensor([4.])

    Source: Zhang et al. 2019, arXiv 1907.08610, Algorithm 1.
    """
    hyper.check_int("sync_period", sync_period, 1)
    hyper.check("slow_step_size", slow_step_size)
    link = checked_link("inner", inner)
    return Lookahead(link, sync_period, slow_step_size, bool(reset_state)).pair()
