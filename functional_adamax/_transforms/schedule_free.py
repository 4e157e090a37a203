"""Schedule-free learning: an average of the iterates in the place of a falling learning rate.

There are three sequences: z, which the wrapped transform moves; x, the average of the z, for
evaluation; and y, between them, where the gradients are taken. The parameters are y and the
state keeps z. With ``x = z + (y - z) / b1`` put in, a step of y needs no x:

    y' - y = c (z - y) + (1 - b1 (1 - c)) (z' - z)

Where ``b1`` changes from one step to the next, x is what stays, and c in the first term becomes
``1 - (1 - c) b1' / b1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._core import checks, hyper, numerics, pytree
from .._core.hyper import Hyperparameter
from .._core.links import call_update, checked_link, remade, settled
from .._core.node import public_node
from .._core.pytree import EmptyState, Tree
from .._core.transform import GradientTransformation, Transform
from .._schedules.curve import Scalar, check_scalar, scalar
from .._schedules.scheduled import Schedule, check_lr, is_schedule, with_schedule
from .momentum import per_leaf


@public_node
class ScheduleFreeState(NamedTuple):
    """State of ``schedule_free``: trees like params, ``EmptyState()`` for a leaf without state.

    What is kept for each leaf broadcasts to it: () unless ``lr`` or ``b1`` has more elements.
    """

    z: Tree  # shape of the leaf; state_dtype, or the leaf's dtype
    b1: Tree  # (), float64: that of the last update, for schedule_free_eval_params
    max_lr: Tree  # (), float64: the largest learning rate so far
    weight_sum: Tree  # (), float64: the sum of the weights of the z so far
    inner: Any  # state of the wrapped transform


@dataclass(frozen=True, eq=False, repr=False)
class ScheduleFree(Transform):
    """A transform whose iterates are averaged."""

    is_local: ClassVar[bool] = True

    inner: GradientTransformation
    lr: Hyperparameter | Schedule
    b1: Hyperparameter = 0.9
    weight_lr_power: Scalar = 2.0
    state_dtype: torch.dtype | None = None

    def init(self, params: Tree) -> ScheduleFreeState:
        leaves, spec = checks.parameters(params)
        lr: Any = self.lr
        if is_schedule(lr):
            lr = lr(torch.zeros((), dtype=torch.int64))
        zs = [per_leaf(p, self._copy) for p in leaves]
        rates = _wide("lr", lr, params, zs)
        return ScheduleFreeState(
            pytree.unflatten(spec, zs),
            pytree.unflatten(spec, _wide("b1", self.b1, params, zs)),
            pytree.unflatten(spec, [_zeros(x) for x in rates]),
            pytree.unflatten(spec, [_zeros(x) for x in rates]),
            self.inner.init(params),
        )

    def _copy(self, p: Tensor) -> Tensor:
        return p.to(numerics.moment_dtype(p, self.state_dtype), copy=True)

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        if not isinstance(state, ScheduleFreeState):
            return self
        return remade(self, inner=settled(self.inner, state.inner, updates, params))

    def update(
        self, updates: Tree, state: ScheduleFreeState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, ScheduleFreeState]:
        checks.state(state, ScheduleFreeState)
        checks.params_given(params, "to schedule_free")
        zs, spec = pytree.flatten(state.z)
        b1, largest, sums = (
            pytree.match(spec, getattr(state, name), f"state.{name}", "state.z")
            for name in ("b1", "max_lr", "weight_sum")
        )
        ys, _ = checks.beside(spec, zs, params, updates, self.name)
        rates = _wide("lr", self.lr, state.z, zs)
        betas = _wide("b1", self.b1, state.z, zs)
        new, inner = call_update(self.inner, updates, state.inner, params, extra)
        steps = pytree.match(spec, new, "the updates of inner", checks.INITIAL)
        for i, u in enumerate(steps):
            if u is not None:
                largest[i] = torch.maximum(largest[i], rates[i])
                c, sums[i] = self._part(largest[i], sums[i])
                steps[i] = _step(ys[i], zs[i], u, c, b1[i], betas[i])
                zs[i] = numerics.add(zs[i], u)
                b1[i] = torch.where(b1[i] > 0, betas[i], b1[i])  # a compiler merges equal tensors
        z, kept, max_lr, total = (pytree.unflatten(spec, x) for x in (zs, b1, largest, sums))
        return pytree.unflatten(spec, steps), ScheduleFreeState(z, kept, max_lr, total, inner)

    def _part(self, max_lr: Tensor, weight_sum: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part of the new z in the average, and the new sum; 0 while nothing counts."""
        power, moves = scalar(self.weight_lr_power, max_lr), max_lr > 0
        weight = torch.where(
            moves, torch.where(moves, max_lr, 1.0) ** power, (power == 0).to(max_lr.dtype)
        )
        weight_sum = weight_sum + weight
        some = weight_sum > 0
        return torch.where(some, weight / torch.where(some, weight_sum, 1.0), 0.0), weight_sum


def _step(y: Tensor, z: Tensor, u: Tensor, c: Tensor, b1: Tensor, new_b1: Tensor) -> Tensor:
    """The update of y, in the widest dtype."""
    wide = torch.promote_types(torch.promote_types(y.dtype, z.dtype), torch.float32)
    wide = torch.promote_types(wide, u.dtype)
    y, z, u = y.to(wide), z.to(wide), u.to(wide)
    back, forth = 1 - (1 - c) * (new_b1 / b1), 1 - (1 - c) * new_b1
    return numerics.scaled(z - y, back) + numerics.scaled(u, forth)


def _wide(name: str, value: Any, tree: Tree, leaves: list[Any]) -> list[Any]:
    """A hyperparameter for each leaf with state, in double precision and in memory of its own."""
    values = hyper.per_leaf(name, value, tree, leaves)
    result: list[Any] = []
    for x, v in zip(leaves, values, strict=True):
        if isinstance(x, Tensor):
            one = torch.ones((), dtype=numerics.step_dtype(x.device), device=x.device)
            result.append(one * numerics.cast(v, one))
        else:
            result.append(EmptyState())
    return result


def _zeros(x: Any) -> Any:
    return torch.zeros_like(x) if isinstance(x, Tensor) else x


def schedule_free(
    inner: GradientTransformation,
    lr: Hyperparameter | Schedule,
    b1: Hyperparameter = 0.9,
    weight_lr_power: Scalar = 2.0,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Average the iterates of ``inner``, a transform without momentum and without decay of lr.

        z <- z + inner(gradient at y)
        w = max(lr so far)^weight_lr_power;  s <- s + w;  c = w / s
        x <- (1 - c) x + c z
        y <- b1 x + (1 - b1) z

    The parameters are y. Evaluate at x, which ``schedule_free_eval_params`` returns. ``update``
    needs ``params``, and its updates must be applied as they are. A leaf whose update is None
    sits the step out, with its weights.

    Args:
        inner: any transform with the same ``lr``, such as ``sgd(lr)`` or an Adam with its
            first beta 0; ``params`` (y) and extra keyword arguments reach it.
        lr: in [0, inf): a number, a tensor, a tree of them, or a schedule, a warm-up then
            constant as a rule.
        b1: in (0, 1), in the place of momentum: a number, a tensor, or a tree. Default: 0.9.
        weight_lr_power: in [0, inf), how little the small steps of a warm-up count.
            Default: 2.
        state_dtype: dtype of z. Default: None, that of each parameter.

    Returns:
        A transform with the state ``ScheduleFreeState(z, b1, max_lr, weight_sum, inner)``;
        with a schedule, ``ScheduledState(count, inner)`` around it.

    Raises:
        TypeError: ``inner`` is no pair of functions.
        ValueError: a number out of range; in ``update``, ``params`` missing or of another form.

    Example:
        >>> tx, params = schedule_free(sgd(0.5), 0.5, b1=0.5), torch.tensor([4.0])
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(params, state, params)
        ...     params = params + updates
        >>> state.z, schedule_free_eval_params(state, params), params
        (tensor([1.]), tensor([1.5000]), tensor([1.2500]))

    Source: Defazio et al. 2024, arXiv 2405.15682, equations 3 to 5. A schedule is asked for the
    rate of the step it weighs, the first being 0; optax asks for the next one's.
    """
    check_lr(lr)
    hyper.check("b1", b1, 1.0)
    if any(not isinstance(x, Tensor) and x == 0 for x in pytree.flatten(b1)[0]):
        raise ValueError("b1 must be in (0, 1), got 0, of which no average can be read")
    check_scalar("weight_lr_power", weight_lr_power, 0.0)
    hyper.check_dtype("state_dtype", state_dtype)
    link = checked_link("inner", inner)
    return with_schedule(ScheduleFree(link, lr, b1, weight_lr_power, state_dtype))


def schedule_free_eval_params(state: Any, params: Tree) -> Tree:
    """Return the average x, at which to evaluate what ``schedule_free`` trains.

        x = z + (y - z) / b1

    Args:
        state: the state of ``schedule_free``, or any state with one in it, such as a chain's.
        params: the parameters, y.

    Returns:
        A tree like ``params``, in its dtypes; a leaf without state is the same as in ``params``.

    Raises:
        ValueError: there is no such state in ``state``, or more than one; or ``params`` does not
            fit it.

    Example:
        >>> tx, params = schedule_free(sgd(0.1), 0.1), torch.ones(1)
        >>> schedule_free_eval_params(tx.init(params), params)
        tensor([1.])
    """
    found = pytree.instances(state, ScheduleFreeState)
    if len(found) != 1:
        raise ValueError(
            f"state must hold the state of one schedule_free, got {len(found)} of them: pass "
            "the state of that transform"
        )
    zs, spec = pytree.flatten(found[0].z)
    betas = pytree.match(spec, found[0].b1, "state.b1", "state.z")
    ys = pytree.match(spec, params, "params", checks.INITIAL)
    checks.same_places(spec, ys, zs, "params")
    for i, (z, b1) in enumerate(zip(zs, betas, strict=True)):
        if isinstance(z, Tensor):
            wide = torch.promote_types(torch.promote_types(ys[i].dtype, z.dtype), torch.float32)
            y, z = ys[i].to(wide), z.to(wide)
            ys[i] = (z + numerics.scaled(y - z, 1 / b1)).to(ys[i].dtype)
    return pytree.unflatten(spec, ys)
