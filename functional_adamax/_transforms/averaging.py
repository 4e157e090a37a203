"""Averages of the parameters, kept beside training.

The transform passes the updates on unchanged and averages ``params + updates``, so it
is the last link of a chain; ``averaged`` reads the average out of the chain's state.
Both averages are one formula, ``average + weight * (params - average)``, with a weight
that depends on the number of points alone.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._core import checks, hyper, numerics, pytree
from .._core.hyper import Hyperparameter
from .._core.node import public_node
from .._core.numerics import blend
from .._core.pytree import Tree
from .._core.transform import GradientTransformation, Transform
from .momentum import per_leaf


@public_node
class AverageState(NamedTuple):
    """State of ``params_ema`` and ``params_average``."""

    count: Tensor  # type: ignore[assignment]  # (), int64: number of update calls so far
    average: Tree  # like params, in accumulator_dtype; EmptyState() where nothing is averaged


class Averaging(Transform):
    """What the averages of the parameters share."""

    is_local: ClassVar[bool] = True

    accumulator_dtype: torch.dtype | None  # a field of the subclasses

    def init(self, params: Tree) -> AverageState:
        leaves, spec = checks.parameters(params)
        copies = [per_leaf(p, self._copy) for p in leaves]
        count = pytree.count(params)
        return AverageState(count, pytree.unflatten(spec, copies))

    def _copy(self, p: Tensor) -> Tensor:
        return p.to(numerics.moment_dtype(p, self.accumulator_dtype), copy=True)

    def update(
        self, updates: Tree, state: AverageState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, AverageState]:
        del extra
        checks.state(state, AverageState)
        checks.params_given(params, f"to {self.name}")
        averages, spec = pytree.flatten(state.average)
        leaves, given = checks.beside(spec, averages, params, updates, self.name)
        count = state.count + 1
        copy, due, weights = self._weights(count, state.average, averages)
        for i, (p, u, weight) in enumerate(zip(leaves, given, weights, strict=True)):
            old = averages[i]
            if isinstance(old, Tensor):
                new = (p if u is None else numerics.add(p, u)).to(old.dtype)
                mixed = torch.where(due, blend(old, new, weight), old)
                averages[i] = torch.where(copy, new, mixed)
        return updates, AverageState(count, pytree.unflatten(spec, averages))

    @abstractmethod
    def _weights(
        self, count: Tensor, tree: Tree, leaves: list[Any]
    ) -> tuple[Tensor, Tensor, list[Any]]:
        """Return whether to copy the parameters, whether to average them, and the weights."""


@dataclass(frozen=True, eq=False, repr=False)
class ParamsEma(Averaging):
    """An exponential moving average."""

    decay: Hyperparameter
    debias: bool = False
    every: int = 1
    accumulator_dtype: torch.dtype | None = None

    def _weights(
        self, count: Tensor, tree: Tree, leaves: list[Any]
    ) -> tuple[Tensor, Tensor, list[Any]]:
        n = count // self.every
        t = n.clamp(min=1).to(numerics.step_dtype(n.device))
        weights = []
        for decay in hyper.per_leaf("decay", self.decay, tree, leaves):
            decay = decay.to(t.dtype) if isinstance(decay, Tensor) else decay
            weights.append((1 - decay) / (1 - decay**t) if self.debias else 1 - decay)
        due = count % self.every == 0
        copy = _copies(n, due) if self.debias else torch.zeros_like(due)
        return copy, due, weights


@dataclass(frozen=True, eq=False, repr=False)
class ParamsAverage(Averaging):
    """The mean."""

    every: int = 1
    start: int = 0
    accumulator_dtype: torch.dtype | None = None

    def _weights(
        self, count: Tensor, tree: Tree, leaves: list[Any]
    ) -> tuple[Tensor, Tensor, list[Any]]:
        del tree
        passed = (count - self.start).clamp(min=0)
        n = passed // self.every
        weight = 1 / n.clamp(min=1).to(numerics.step_dtype(n.device))
        due = (n > 0) & (passed % self.every == 0)
        return _copies(n, due), due, [weight] * len(leaves)


def _copies(n: Tensor, due: Tensor) -> Tensor:
    """Whether the average is the parameters themselves: up to the first point, of weight one."""
    return (n == 0) | ((n == 1) & due)


def params_ema(
    decay: Hyperparameter,
    debias: bool = False,
    every: int = 1,
    accumulator_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Keep an exponential moving average of the parameters; the last link of a chain.

        p_t       = params + updates
        average_t = decay * average_{t-1} + (1 - decay) * p_t

    The updates pass unchanged. All floating and complex leaves are averaged, updated or not.

    Args:
        decay: in [0, 1): a number, a tensor, or a tree of them.
        debias: start from nothing and not from the parameters that ``init`` is given: the sum
            of ``(1 - decay) * decay^(t-s) * p_s`` over s = 1..t, divided by ``1 - decay^t``.
            Default: False.
        every: take every so many-th update only; an int in [1, inf). With ``debias`` the
            average is the last parameters until the first is taken. Default: 1.
        accumulator_dtype: dtype of the average; torch.float32 for halves, which small steps do
            not move. Default: None, that of each parameter.

    Returns:
        A transform with the state ``AverageState(count, average)``; ``averaged`` reads it.

    Raises:
        ValueError: a number out of range; in ``update``, ``params`` missing or of another form.

    Example:
        >>> tx = chain(scale_by_learning_rate(1.0), params_ema(0.5))
        >>> params = torch.zeros(1)
        >>> updates, state = tx.update(torch.tensor([-4.0]), tx.init(params), params)
        >>> averaged(state)
        tensor([2.])

    Source: Polyak & Juditsky 1992 in its exponential form; ``get_ema_multi_avg_fn`` of
    torch.optim.swa_utils, whose first call copies: there the average starts at ``p_1``.
    """
    hyper.check("decay", decay, 1.0)
    hyper.check_int("every", every, 1)
    hyper.check_dtype("accumulator_dtype", accumulator_dtype)
    return ParamsEma(decay, debias, every, accumulator_dtype).pair()


def params_average(
    every: int = 1, start: int = 0, accumulator_dtype: torch.dtype | None = None
) -> GradientTransformation:
    """Keep the mean of the parameters; the last link of a chain.

        p_t       = params + updates
        average_n = average_{n-1} + (p_t - average_{n-1}) / n       for t = start + n * every

    Polyak-Ruppert averaging; with ``every`` the length of an epoch, stochastic weight
    averaging (SWA). Until the first point is taken the average is the last parameters. In all
    else it is as ``params_ema``.

    Args:
        every: take every so many-th update only; an int in [1, inf). Default: 1.
        start: number of updates before the first window, an int in [0, inf). Default: 0.
        accumulator_dtype: dtype of the average. Default: None, that of each parameter.

    Returns and errors are those of ``params_ema``.

    Example:
        >>> tx, params = chain(scale(1.0), params_average()), torch.zeros(1)
        >>> state = tx.init(params)
        >>> for step in (1.0, 2.0):
        ...     updates, state = tx.update(torch.tensor([step]), state, params)
        ...     params = params + updates
        >>> averaged(state)
        tensor([2.])

    Source: Polyak & Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407, Algorithm 1.
    """
    hyper.check_int("every", every, 1)
    hyper.check_int("start", start, 0)
    hyper.check_dtype("accumulator_dtype", accumulator_dtype)
    return ParamsAverage(every, start, accumulator_dtype).pair()


def averaged(state: Any, params: Tree = None) -> Tree:
    """Return the average of the parameters that ``state`` holds.

    Args:
        state: the state of ``params_ema`` or ``params_average``, or any state with one of them
            in it, such as that of a chain.
        params: gives the leaves that are not averaged and the dtypes. Default: None, such a
            leaf is None.

    Returns:
        A tree like the parameters, for ``torch.func.functional_call``.

    Raises:
        ValueError: there is no average in ``state``, or more than one.

    Example:
        >>> averaged(params_average().init({"w": torch.ones(1), "n": None}))
        {'w': tensor([1.]), 'n': None}
    """
    found = pytree.instances(state, AverageState)
    if len(found) != 1:
        raise ValueError(
            f"state must hold the state of one params_ema or params_average, got {len(found)} "
            "of them: "
            + ("pass the state of that link" if found else "make params_ema() the last link of tx")
        )
    averages, spec = pytree.flatten(found[0].average)
    if params is None:
        return pytree.unflatten(spec, [x if isinstance(x, Tensor) else None for x in averages])
    leaves = pytree.match(spec, params, "params", checks.INITIAL)
    checks.same_places(spec, leaves, averages, "params")
    pairs = zip(averages, leaves, strict=True)
    return pytree.unflatten(spec, [x.to(p.dtype) if isinstance(x, Tensor) else p for x, p in pairs])
