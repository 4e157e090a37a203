"""Gradient accumulation: several small batches make one step.

The inner transform is computed on every mini-step, on whatever has been gathered, and its
result is selected only where one is due: no branch depends on a value, so that eager and
compiled code do the same and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._core import checks, norms, numerics, pytree, selection
from .._core.links import Said, call_update, checked_link, remade, settled
from .._core.node import public_node
from .._core.pytree import EmptyState, Tree
from .._core.transform import Data, GradientTransformation, Transform
from .._schedules.scheduled import Schedule

Skip: TypeAlias = Callable[[Tree, Tensor, Tree], Tensor]
"""``(updates, gradient_step, params) -> `` whether to leave a mini-step out, a 0-d bool."""


@public_node
class MultiStepsState(NamedTuple):
    """State of ``multi_steps``."""

    mini_step: Tensor  # (), int64: mini-steps since the last step of inner
    gradient_step: Tensor  # (), int64: steps of inner so far
    inner: Any  # the state of the wrapped transform
    acc_grads: Tree  # shape of the leaf; its dtype, float32 for halves: sum of its gradients


@dataclass(frozen=True, eq=False, repr=False)
class MultiSteps(Transform):
    """Run a transform on every k-th update, on all since the last."""

    is_local: ClassVar[bool] = True

    inner: GradientTransformation
    every_k: int | Schedule
    use_grad_mean: bool = True
    skip: Skip | None = None

    def init(self, params: Tree) -> MultiStepsState:
        leaves, spec = checks.parameters(params)
        acc = [_zeros(p) if checks.trainable(p) else EmptyState() for p in leaves]
        return MultiStepsState(
            pytree.count(params),
            pytree.count(params),
            self.inner.init(params),
            pytree.unflatten(spec, acc),
        )

    @property
    def asks(self) -> bool:  # type: ignore[override]  # of this one it is told by a field
        return callable(self.every_k) and not isinstance(self.every_k, Data)

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        if not isinstance(state, MultiStepsState):
            return self
        inner, k = settled(self.inner, state.inner, updates, params), self.every_k
        if self.asks:
            k = Said(self._k(state))
        return remade(self, inner=inner, every_k=k)

    def update(
        self, updates: Tree, state: MultiStepsState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, MultiStepsState]:
        checks.state(state, MultiStepsState)
        before, spec = pytree.flatten(state.acc_grads)
        checks.moments(spec, {"acc_grads": before})
        leaves = pytree.match(spec, updates, "updates", checks.INITIAL)
        checks.gradients(spec, leaves, before, self.name, "updates")
        k = self._k(state)
        kept = torch.ones_like(state.mini_step, dtype=torch.bool)
        if self.skip is not None:
            skipped = self.skip(updates, state.gradient_step, params)
            kept = ~selection.flag(skipped, "skip", kept.device)
        mini_step = torch.where(kept, state.mini_step + 1, state.mini_step)
        due = kept & (mini_step >= k)
        gathered = [
            acc if g is None else torch.where(kept.to(g.device), acc + g.to(acc.dtype), acc)
            for g, acc in zip(leaves, before, strict=True)
        ]
        shown = [
            None if g is None else selection.presentable(self._batch(acc, k).to(g.dtype), due)
            for g, acc in zip(leaves, gathered, strict=True)
        ]
        given = pytree.unflatten(spec, shown)
        new, inner = call_update(self.inner, given, state.inner, params, extra)
        rest = [
            acc if g is None else torch.where(due.to(g.device), 0.0, acc)
            for g, acc in zip(leaves, gathered, strict=True)
        ]
        return selection.zeros_unless(due, new), MultiStepsState(
            torch.where(due, 0, mini_step),
            torch.where(due, state.gradient_step + 1, state.gradient_step),
            selection.select(due, inner, state.inner),
            pytree.unflatten(spec, rest),
        )

    def _k(self, state: MultiStepsState) -> Any:
        if not callable(self.every_k):
            return self.every_k
        k: Any = self.every_k(state.gradient_step)
        if isinstance(k, Tensor):
            return k
        _check_every_k(k)
        return torch.full_like(state.gradient_step, k)

    def _batch(self, acc: Tensor, k: Any) -> Tensor:
        return acc / numerics.cast(k, acc) if self.use_grad_mean else acc


def _zeros(p: Tensor) -> Tensor:
    return torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))


def skip_not_finite(updates: Tree, gradient_step: Tensor, params: Tree = None) -> Tensor:
    """Whether an update contains NaN or infinity, for ``multi_steps(..., skip=...)``.

    Example:
        >>> skip_not_finite({"w": torch.tensor([1.0, float("inf")])}, torch.tensor(0))
        tensor(True)
    """
    del params
    return ~selection.is_finite(pytree.flatten(updates)[0], like=gradient_step)


def skip_large_updates(
    updates: Tree,
    gradient_step: Tensor,
    params: Tree = None,
    *,
    max_squared_norm: float | Tensor,
) -> Tensor:
    """Whether ``||updates||^2 < max_squared_norm`` fails; bind the bound with ``partial``.

    NaN counts as large.

    Example:
        >>> from functools import partial
        >>> skip = partial(skip_large_updates, max_squared_norm=25.0)
        >>> tx = multi_steps(scale(-0.1), every_k=4, skip=skip)
        >>> skip(torch.tensor([3.0, 4.0]), torch.tensor(0))
        tensor(True)
    """
    del gradient_step, params
    norm = norms.global_norm(updates)
    within: Tensor = norm * norm < numerics.cast(max_squared_norm, norm)
    return ~within


def multi_steps(
    inner: GradientTransformation,
    every_k: int | Schedule,
    use_grad_mean: bool = True,
    *,
    skip: Skip | None = None,
) -> GradientTransformation:
    """Gather the gradients of ``every_k`` mini-steps, then let ``inner`` make one step of them.

        a <- a + g
        updates, s, a <- inner(a / k, s), 0    on every k-th mini-step
        updates, s, a <- 0, s, a               on the others

    The result is that of ``inner`` on the k batches in one, and ``inner`` counts only its own
    steps. It is computed on every mini-step and discarded where it is not due; discarded values
    reach no derivative.

    A gradient that is None adds nothing: in a mean it counts as zero. Where it is None on the
    k-th mini-step, that leaf sits the step out, with the update None as ever, and what it has
    gathered waits for the next. A leaf that never has a gradient is never touched.

    Args:
        inner: any transform; ``params`` and extra keyword arguments reach it, those of the k-th
            mini-step counting.
        every_k: an integer of at least 1, or a function from the number of steps so far (0-d
            int64) to one.
        use_grad_mean: hand on the mean, not the sum. Default: True.
        skip: a function ``(updates, gradient_step, params)`` to a 0-d bool tensor: whether to
            act as if the mini-step had not been, as ``skip_not_finite`` and
            ``skip_large_updates`` say. Default: None, never.

    Returns:
        A transform with the state ``MultiStepsState(mini_step, gradient_step, inner,
        acc_grads)``. Halves are gathered in float32 and handed on in the gradient's dtype.

    Raises:
        TypeError: ``inner`` is no pair of functions, ``every_k`` no integer and no function.
        ValueError: ``every_k`` is less than 1.

    Example:
        >>> tx, params = multi_steps(scale(-1.0), every_k=2), torch.zeros(1)
        >>> state = tx.init(params)
        >>> first, state = tx.update(torch.tensor([1.0]), state)
        >>> second, state = tx.update(torch.tensor([3.0]), state)
        >>> first, second
        (tensor([0.]), tensor([-2.]))
    """
    inner = checked_link("inner", inner)
    if not callable(every_k):
        _check_every_k(every_k)
    if skip is not None and not callable(skip):
        raise TypeError(f"skip must be a function (updates, gradient_step, params), got {skip!r}")
    return MultiSteps(inner, every_k, bool(use_grad_mean), skip).pair()


def _check_every_k(k: Any) -> None:
    if not isinstance(k, Integral) or isinstance(k, bool):
        raise TypeError(
            f"every_k must be an integer, or a function of the number of steps to one, got {k!r}"
        )
    if k < 1:
        raise ValueError(f"every_k must be at least 1, got {k}")
