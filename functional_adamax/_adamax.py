"""Adamax: the direction of a step from the first moment and the infinity norm.

``adamax`` is the whole optimizer, ``adamaxw`` the same with decoupled weight
decay, ``scale_by_adamax`` the direction alone, for chains. All three carry the
leaves of the trees to the one rule in ``_rule.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from . import _check, _context, _execute, _hyper, _kernel, _rule, _step, _tree
from ._hyper import Hyperparameter
from ._kernel import Group
from ._node import public_node
from ._rule import Columns, Leaf
from ._schedule import Schedule, check_lr, with_schedule
from ._spelling import explains_misfits
from ._transform import Direction, Donated, GradientTransformation, Transform
from ._tree import EmptyState, Tree


@public_node
class AdamaxState(NamedTuple):
    """State of Adamax: three trees of the structure of params.

    A leaf without state (None, or not floating) holds ``EmptyState()``.
    """

    step: Tree  # (), float64: number of gradients the leaf has seen
    exp_avg: Tree  # shape of the leaf; state_dtype, or the leaf's dtype: m
    exp_inf: Tree  # shape of the leaf; state_dtype, or the leaf's dtype: u


@dataclass(frozen=True, eq=False, repr=False)
class Adamax(Transform):
    """Adamax with coupled weight decay."""

    name: ClassVar[str] = "adamax"
    decoupled: ClassVar[bool] = False

    lr: Hyperparameter | Schedule = 2e-3
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999)
    eps: Hyperparameter = 1e-8
    weight_decay: Hyperparameter = 0.0
    maximize: bool = False
    state_dtype: torch.dtype | None = None
    derivative_floor: float | None = None

    def init(self, params: Tree) -> AdamaxState:
        leaves, spec = _check.parameters(params)
        _check.warn_if_tied(leaves, spec)
        _check.warn_if_eps_vanishes(self.eps, leaves, self.state_dtype)
        return make_state(spec, [init_leaf(p, self.state_dtype) for p in leaves])

    def update(
        self, updates: Tree, state: AdamaxState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, AdamaxState]:
        del extra
        return self._step(updates, state, params, add=False)

    def advance(self, grads: Tree, state: AdamaxState, params: Tree) -> tuple[Tree, AdamaxState]:
        return self._step(grads, state, params, add=True)

    def _step(
        self, grads: Tree, state: AdamaxState, params: Tree, add: bool
    ) -> tuple[Tree, AdamaxState]:
        spec, columns = self._columns(grads, state, params)
        found = self._together(columns, state, params, add)
        if found is not None:
            first, *rest = (_tree.unflatten(spec, column) for column in found)
            return first, AdamaxState(*rest)
        leaves, ready = self._leaves(spec, columns, state, params)
        rows = _execute.compute(leaves, ready, self.maximize, self.decoupled, add)
        return _results(spec, rows)

    def _together(
        self, columns: Columns, state: AdamaxState, params: Tree, add: bool
    ) -> Sequence[list[Any]] | None:
        """The results of all leaves, by one call of the kernel or one operator, or None."""
        if self.derivative_floor is not None:
            return None
        if torch.compiler.is_compiling():
            rates = [tuple(map(_hyper.single, self._rates().values()))]
            if any(x is None for x in rates[0]):
                rates = list(zip(*self._rates_per_leaf(columns, state), strict=True))
            return _execute.compiled(columns, rates, self.maximize, self.decoupled, add)
        if _context.traced():
            return None
        group = self.native(None if params is None else columns.p)
        return _kernel.stepped(group, columns, add)

    def prepare(self, grads: Tree, state: AdamaxState, params: Tree) -> Donated | None:
        leaves, ready = self._leaves(*self._columns(grads, state, params), state, params)
        work = ready or [leaf for leaf in leaves if leaf.g is not None]
        if _execute.follow_writes(work) or any(map(_is_recorded, work)):
            return None
        if not ready or not _kernel.are_apart(ready):  # faster, but cannot name two leaves
            _step.reject_shared_memory(grads, state, params)
        run = _execute.plan(work, self.maximize, self.decoupled, ready=bool(ready))
        return partial(_written, run, params, state)

    def overwrite(self, grads: Tree, state: AdamaxState, params: Tree) -> bool:
        if not isinstance(state, AdamaxState) or _context.traced():
            return False
        leaves, spec = _tree.flatten(params)
        group = self.native(leaves)
        if any(isinstance(x, Tensor) for x in group[1:6]):
            return False  # which may be recorded, or lie where the step would write
        trees = (grads, state.exp_avg, state.exp_inf, state.step)
        try:
            columns = tuple(spec.flatten_up_to(tree) for tree in trees)
        except ValueError:
            return False
        if not all(map(_tree.are_leaves, columns)):
            return False
        return _kernel.overwrite(group, columns)

    def native(self, params: list[Tensor] | None) -> Group:
        lr, b1, b2, eps, decay = self._rates().values()
        return Group(params, lr, b1, b2, eps, decay, self.maximize, self.decoupled)

    def _columns(self, grads: Tree, state: AdamaxState, params: Tree) -> tuple[Any, Columns]:
        """Check the structures of the trees, and return it with the leaves of each."""
        _check.state(state, AdamaxState)
        t, spec = _tree.flatten(state.step)
        m = _tree.match(spec, state.exp_avg, "state.exp_avg", "state.step")
        u = _tree.match(spec, state.exp_inf, "state.exp_inf", "state.step")
        given = "the params that init was given"
        g = _tree.match(spec, grads, "grads", given, _check.FITTING)
        p = [None] * len(t)
        if params is not None:
            p = _tree.match(spec, params, "params", given)
        elif not _hyper.is_zero(self.weight_decay):
            _check.reject_missing_params(grads)
        return spec, Columns(p, g, m, u, t)

    def _rates(self) -> dict[str, Hyperparameter]:
        b1, b2 = self.betas
        return {
            "lr": self.lr,
            "b1": b1,
            "b2": b2,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    def _rates_per_leaf(self, columns: Columns, state: AdamaxState) -> list[list[Any]]:
        rates = self._rates().items()
        return [_hyper.per_leaf(name, x, state.step, columns.m) for name, x in rates]

    def _leaves(
        self, spec: Any, columns: Columns, state: AdamaxState, params: Tree
    ) -> tuple[list[Leaf], list[Leaf] | None]:
        """Check the columns against one another and return their leaves.

        The second is the leaves as the kernel reads them, or None if it cannot take them all.
        """
        p, g, m, u, t = columns
        floors = [self.derivative_floor] * len(t)
        rates = self._rates_per_leaf(columns, state)
        leaves = [Leaf(*row) for row in zip(p, g, m, u, t, *rates, floors, strict=True)]
        whole = params is None or not any(x is None for x in p)
        ready = None
        if whole and not _context.traced():
            ready = _kernel.ready(leaves, self.maximize, self.decoupled)
        if ready is None:  # otherwise there is nothing left to check
            _check.moments(spec, {"exp_avg": m, "exp_inf": u})
            if params is not None:
                _check.same_places(spec, p, m, "params")
            _check.gradients(spec, g, m, "Adamax")
            _check.scalars(spec, t, m, "state.step")
        return leaves, ready


def _is_recorded(leaf: Leaf) -> bool:
    """Whether autograd records a hyperparameter."""
    return torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in leaf[5:]
    )


def init_leaf(p: Any, state_dtype: torch.dtype | None) -> tuple[Any, Any, Any]:
    """Return (step, exp_avg, exp_inf) of one parameter before its first gradient."""
    if not _check.trainable(p):
        return EmptyState(), EmptyState(), EmptyState()
    dtype = _rule.moment_dtype(p, state_dtype)
    return (
        torch.zeros((), dtype=_rule.step_dtype(p.device), device=p.device),
        _kernel.zeros_like(p, dtype),
        _kernel.zeros_like(p, dtype),
    )


def _results(spec: Any, rows: Sequence[Sequence[Any]]) -> tuple[Tree, AdamaxState]:
    """Make the four trees from one (update or parameter, t, m, u) for each leaf."""
    return _tree.unflatten(spec, [row[0] for row in rows]), make_state(
        spec, [row[1:] for row in rows]
    )


def make_state(spec: Any, cells: Sequence[Sequence[Any]]) -> AdamaxState:
    """Make the three trees from one (t, m, u) for each leaf."""
    return AdamaxState(*(_tree.unflatten(spec, [cell[i] for cell in cells]) for i in range(3)))


def _written(run: Callable[[], None], params: Tree, state: AdamaxState) -> tuple[Tree, AdamaxState]:
    run()
    return params, state


class AdamaxW(Adamax):
    """Adamax with decoupled weight decay."""

    name: ClassVar[str] = "adamaxw"
    decoupled: ClassVar[bool] = True


@dataclass(frozen=True, eq=False, repr=False)
class ScaleByAdamax(Direction):
    """The direction of Adamax: the update of ``Adamax`` with a learning rate of -1."""

    name: ClassVar[str] = "scale_by_adamax"

    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999)
    eps: Hyperparameter = 1e-8
    state_dtype: torch.dtype | None = None
    derivative_floor: float | None = None

    def method(self) -> Adamax:
        dtype, floor = self.state_dtype, self.derivative_floor
        return Adamax(-1.0, self.betas, self.eps, state_dtype=dtype, derivative_floor=floor)


@explains_misfits
def adamax(
    lr: Hyperparameter | Schedule = 2e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
    state_dtype: torch.dtype | None = None,
    derivative_floor: float | None = None,
) -> GradientTransformation:
    """Adamax, the variant of Adam based on the infinity norm, as ``torch.optim.Adamax`` does it.

    For each leaf with gradient ``g``, at its ``t``-th gradient::

        g   <- -g                                       if maximize
        g   <- g + weight_decay * p
        m_t  = b1 m_{t-1} + (1 - b1) g
        u_t  = max(b2 u_{t-1}, |g| + eps)
        update = -lr / (1 - b1^t) * m_t / u_t

    A leaf whose gradient is None keeps its moments and its step, is not decayed, and
    gets the update None. Complex leaves go by their real and imaginary parts.

    Every hyperparameter is a number; or a tensor of shape () or (1,), which may require
    grad or be batched by ``vmap``; or a tree shaped like params, or a prefix of it, whose
    leaves are numbers or tensors that broadcast to the parameter.

    Args:
        lr: learning rate, in [0, inf). Also a schedule: a function of the number of
            ``update`` calls so far, 0 at the first. Default: 2e-3.
        betas: decay rates of ``m`` and ``u``, each in [0, 1). Default: (0.9, 0.999).
        eps: added to |g| inside the maximum, in [0, inf); with 0, an element whose
            gradients have all been zero is 0/0 = NaN. Default: 1e-8.
        weight_decay: coupled L2 penalty, in [0, inf). ``update`` then needs ``params``.
            Default: 0.
        maximize: ascend instead of descend. Default: False.
        state_dtype: dtype of both moments and of the arithmetic (complex leaves take its
            complex counterpart). None keeps the dtype of each parameter, with torch's
            bits. Pass torch.float32 for float16 and bfloat16 parameters.
        derivative_floor: for differentiating through steps: derivatives by gradients and
            moments are taken as if u were at least this, a number in (0, inf); values keep
            their bits, and derivatives by the learning rate are exact. Then
            |d update_t / d g_s| <= (1 + r) lr / derivative_floor for all t, s and g, with
            r = (1 - b1) / (1 - b1 / b2), for b1 < b2. Without it the bound is
            that with eps for the floor. Default: None, exact derivatives.

    Returns:
        The pair ``(init, update)``. The state is ``AdamaxState(step, exp_avg, exp_inf)``;
        with a schedule it is ``ScheduledState(count, inner)`` around that. Updates have the
        dtype of the moments, float32 if that is a half.

    Raises:
        ValueError: a number out of its range.
        TypeError: a hyperparameter that is no number, tensor or tree of them.

    Example:
        >>> tx = adamax(lr=0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> updates, state = tx.update({"w": torch.tensor([0.5, -3.0])}, tx.init(params))
        >>> updates
        {'w': tensor([-0.1000,  0.1000])}

    Source: Kingma & Ba 2015, arXiv 1412.6980, Algorithm 2. Departures, both torch's: eps
    inside the maximum, and the coupled weight decay.
    """
    made = Adamax(lr, betas, eps, weight_decay, maximize, state_dtype, derivative_floor)
    return with_schedule(_checked(made))


@explains_misfits
def adamaxw(
    lr: Hyperparameter | Schedule = 2e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 1e-2,
    *,
    maximize: bool = False,
    state_dtype: torch.dtype | None = None,
    derivative_floor: float | None = None,
) -> GradientTransformation:
    """Adamax with decoupled weight decay: the decay does not pass through the moments.

    ``adamax`` without its decay, and then::

        update = -lr / (1 - b1^t) * m_t / u_t - lr * weight_decay * p

    Args, returns and errors are those of ``adamax``; ``weight_decay`` defaults to 1e-2 and
    ``maximize`` does not turn the decay round.

    Example:
        >>> tx = adamaxw(lr=0.1, weight_decay=0.5)
        >>> params = {"w": torch.tensor([2.0])}
        >>> tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)[0]
        {'w': tensor([-0.2000])}

    Source: the decay is that of Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 2,
    scaled by the learning rate as in ``torch.optim.AdamW``.
    """
    made = AdamaxW(lr, betas, eps, weight_decay, maximize, state_dtype, derivative_floor)
    return with_schedule(_checked(made))


@explains_misfits
def scale_by_adamax(
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    state_dtype: torch.dtype | None = None,
    *,
    derivative_floor: float | None = None,
) -> GradientTransformation:
    """The direction of Adamax, for chains.

        update = 1 / (1 - b1^t) * m_t / u_t

    The direction points along the gradient: follow it with ``scale_by_learning_rate``,
    which turns it round. Args, returns and errors are those of ``adamax``.

    Example:
        >>> tx = scale_by_adamax()
        >>> tx.update(torch.tensor([0.5, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 1., -1.])
    """
    _checked(Adamax(0.0, betas, eps, 0.0, False, state_dtype, derivative_floor))
    return ScaleByAdamax(betas, eps, state_dtype, derivative_floor).pair()


def _checked(transform: Adamax) -> Adamax:
    check_lr(transform.lr)
    _hyper.check_pair("betas", transform.betas)
    _hyper.check("eps", transform.eps)
    _hyper.check("weight_decay", transform.weight_decay)
    _hyper.check_dtype("state_dtype", transform.state_dtype)
    _hyper.check_floor("derivative_floor", transform.derivative_floor)
    return transform
