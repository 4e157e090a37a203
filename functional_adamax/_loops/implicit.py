"""Implicit differentiation: the derivative of a solution, whatever the way to it.

If the loop ends where the gradient of the loss is zero, that equation defines the solution as a
function of everything the loss uses, and the implicit function theorem gives its derivative from
Hessian-vector products at the solution. Memory does not grow with the steps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad, vjp

from .._core import capture, checks, context, hyper, pytree
from .._core.pytree import Tree
from .._core.transform import GradientTransformation
from .inner_loss import copied, given_buffers
from .solver import Solver, Vector, plus
from .unroll import Unrolled, batches_of, detach, unroll


def implicit(
    loss: Callable[..., Tensor],
    tx: GradientTransformation,
    params: Tree,
    batches: Iterable[Any],
    *,
    state: Any = None,
    buffers: Tree = None,
    solver: Literal["cg", "neumann"] = "cg",
    iterations: int = 20,
    tolerance: float = 1e-10,
    damping: float = 0.0,
    step_size: float = 1.0,
) -> Unrolled:
    """Minimize as ``unroll`` does, and differentiate the solution instead of the way to it.

        d F(p*, x) / d p = 0      defines p*(x), so      dp*/dx = -H^-1 d2F / dp dx,

    with F the mean of ``loss`` over the batches and H its Hessian by the parameters. The result
    can be differentiated by whatever else the loss uses, x: the batches and the tensors it closes
    over. It does not depend on the start, on the state or on hyperparameters of ``tx``; to learn
    a start, let the loss pull towards it (iMAML). The derivative is as good as the solution: it
    is meant for loops that have converged, by the loss alone: weight decay belongs into it, and
    not into ``tx``. Every floating leaf of ``params`` is one to solve for: what ``tx`` freezes, or
    the loss does not use, does not belong there. It is taken in reverse mode.

    Args:
        loss: as for ``unroll``.
        tx: as for ``unroll``.
        params: as for ``unroll``.
        batches: as for ``unroll``.
        state: as for ``unroll``.
        buffers: as for ``unroll``.
        solver: for the product of H^-1 with a vector: ``"cg"``, conjugate gradients, for a
            positive definite H; or ``"neumann"``, the series
            ``step_size * sum_k (I - step_size H)^k``, which converges for
            ``step_size < 2 / max eigenvalue of H``. Default: "cg".
        iterations: steps of the solver, at most. Default: 20.
        tolerance: the residual, relative to the vector, at which ``"cg"`` stops.
            Default: 1e-10.
        damping: added to the diagonal of H, in [0, inf). Default: 0.
        step_size: of the series, in (0, inf). Default: 1.

    Returns:
        ``Unrolled(params, state, values, buffers)``; only ``params`` carries derivatives.

    Raises:
        ValueError: an option out of its range, or what ``unroll`` raises.
        NotImplementedError: in forward mode.
        RuntimeError: when differentiating with ``"cg"``, H is not positive definite; under a
            transform of ``torch.func`` the derivative is NaN instead.

    Example:
        >>> target = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> def loss(p, batch):
        ...     return ((p - target) ** 2).sum()
        >>> end = implicit(loss, adamax(lambda t: 0.5 * 0.9**t), torch.zeros(2), range(100))
        >>> torch.autograd.grad(end.params.sum(), target)
        (tensor([1.0000, 1.0000]),)

    Source: Rajeswaran et al. 2019, arXiv 1909.04630 (conjugate gradients); Lorraine et al. 2020,
    arXiv 1911.02590 (Neumann series).
    """
    if solver not in ("cg", "neumann"):
        raise ValueError(f'solver must be "cg" or "neumann", got {solver!r}')
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations must be a number >= 1, got {iterations!r}")
    hyper.check("tolerance", tolerance)
    hyper.check("damping", damping)
    if not (hyper.is_number(step_size) and 0.0 < step_size < math.inf):
        raise ValueError(f"step_size must be a number in (0, inf), got {step_size!r}")
    solve = Solver(solver, iterations, tolerance, damping, step_size)
    given = loss, tx, params, batches_of(batches), state, buffers, solve
    return context.uncompiled(_implicit)(*given)


def _implicit(
    loss: Callable[..., Tensor],
    tx: GradientTransformation,
    params: Tree,
    batches: list[Any],
    state: Any,
    buffers: Tree,
    solve: Solver,
) -> Unrolled:
    if context.forward_mode():
        raise NotImplementedError(
            "implicit has derivatives in reverse mode only: take torch.func.jacrev for jacfwd and "
            "for both parts of hessian, or unroll"
        )
    with torch.no_grad():
        end: Unrolled = detach(unroll(loss, tx, params, batches, state=state, buffers=buffers))
    return end._replace(params=_solution(loss, solve, end.params, end.buffers, batches))


def _solution(
    loss: Callable[..., Tensor], solve: Solver, params: Tree, buffers: Tree, batches: list[Any]
) -> Tree:
    """Return ``params`` with the derivatives of a stationary point."""
    leaves, spec = pytree.flatten(params)
    where = [i for i, x in enumerate(leaves) if checks.trainable(x)]
    if not where or not batches:  # there is nothing to solve
        return params
    counts = Counter(map(id, batches))
    layout, given = pytree.split(list({id(batch): batch for batch in batches}.values()))

    def objective(points: Sequence[Tensor], data: Sequence[Tensor]) -> Tensor:
        tree = pytree.unflatten(spec, pytree.placed(leaves, where, points))
        distinct = layout.build(data)
        values = [loss(tree, *given_buffers(copied(buffers)), batch) for batch in distinct]
        shares = [count / len(batches) for count in counts.values()]
        return torch.stack([x * share for x, share in zip(values, shares, strict=True)]).sum()

    points = [leaves[i] for i in where]
    numbers = [i for i, x in enumerate(given) if checks.trainable(x)]

    def used(*primals: Tensor) -> Tensor:
        data = pytree.placed(given, numbers, primals[len(points) :])
        return objective(primals[: len(points)], data)

    with torch.no_grad():
        closed = capture.closed_over(used, [*points, *(given[i] for i in numbers)])
    problem = _Problem(objective, solve, tuple(closed), len(points))
    solved = capture.apply(_Stationary, problem, *points, *closed, *given)
    return pytree.unflatten(spec, pytree.placed(leaves, where, solved))


@dataclass(frozen=True, eq=False)
class _Problem:
    """The loss is stationary in the parameters; given are the closed-over tensors and the data."""

    objective: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
    solve: Solver
    closed: tuple[Tensor, ...]
    unknowns: int

    def residual(self, points: Sequence[Tensor], given: Sequence[Tensor], at: int) -> Vector:
        """What is zero at the solution: the gradient by the parameters."""
        new = given[: len(self.closed)]
        with capture.Closure(at, [*points, *given], self.closed, new, capture.refuse):
            data = given[len(self.closed) :]
            slope: Vector = grad(lambda x: self.objective(x, data))(list(points))
        return slope

    def linear(self, points: Vector, given: Vector) -> tuple[_Linear, Vector]:
        """The problem of the product of H^-1 with a vector, and what H is computed from."""
        return _Linear(self), [*points, *given]


@dataclass(frozen=True, eq=False)
class _Linear:
    """``(H + damping) x = b``; given are what H is computed from, then b."""

    problem: _Problem

    @property
    def unknowns(self) -> int:
        return self.problem.unknowns

    @property
    def solve(self) -> Solver:
        return replace(self.problem.solve, damping=0.0)

    def residual(self, x: Sequence[Tensor], given: Sequence[Tensor], at: int) -> Vector:
        points, rest, b = _parts(given, self.unknowns, len(given) - 2 * self.unknowns)
        pull = vjp(lambda *p: tuple(self.problem.residual(p, rest, at)), *points)[1]
        damped = plus(list(pull(tuple(x))), self.problem.solve.damping, list(x))
        return plus(damped, -1.0, b)

    def linear(self, points: Vector, given: Vector) -> tuple[_Linear, Vector]:
        del points  # whatever x is, H is the same
        return self, given[: -self.unknowns]


def _parts(tensors: Sequence[Tensor], *sizes: int) -> list[Vector]:
    ends = [*accumulate(sizes), len(tensors)]
    return [list(tensors[i:j]) for i, j in zip([0, *ends], ends, strict=False)]


class _Stationary(torch.autograd.Function):
    """The unknowns as they are, with the derivative of the implicit function theorem.

    It solves a linear problem, whose solution is differentiated in the same way.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(problem: _Problem | _Linear, *tensors: Tensor) -> Any:
        points = [x.view_as(x) for x in tensors[: problem.unknowns]]
        return tuple(capture.batched_alike(tensors, points) if context.batching() else points)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.problem, *tensors = inputs
        ctx.save_for_backward(*output, *tensors[ctx.problem.unknowns :])  # to differentiate again

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        problem, at = ctx.problem, context.level()
        saved = list(map(context.living, ctx.saved_tensors))
        points, given = _parts(saved, problem.unknowns)
        needed = ctx.needs_input_grad[1 + problem.unknowns :]
        wanted = [i for i, x in enumerate(given) if checks.trainable(x) and needed[i]]

        with torch.no_grad():
            pull = vjp(lambda *x: tuple(problem.residual(x, given, at)), *points)[1]
            solved = problem.solve(lambda v: list(pull(tuple(v))), list(cotangents))
        if context.transforming():  # from outside of which no_grad is not seen
            solved = detach(solved)
        if torch.is_grad_enabled():
            linear, known = problem.linear(points, given)
            solved = capture.apply(_Stationary, linear, *solved, *known, *cotangents)

        def by_given(*primals: Tensor) -> tuple[Tensor, ...]:
            return tuple(problem.residual(points, pytree.placed(given, wanted, primals), at))

        pull = vjp(by_given, *(given[i] for i in wanted))[1]
        grads = pull(tuple(-x for x in solved))
        nothing = [None] * problem.unknowns
        return None, *nothing, *pytree.placed([None] * len(given), wanted, grads)
