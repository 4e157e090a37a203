"""Optimizers of torch as transforms.

The class keeps its arithmetic and its habit of writing in place; it is given copies. What it
leaves in its state comes out as a tree, and goes in again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import LBFGS
from torch.optim.optimizer import Optimizer

from .._core import checks, context, pytree
from .._core.node import public_node
from .._core.plans import Plan, Planned
from .._core.pytree import EmptyState, Tree
from .._core.transform import GradientTransformation, Transform


@public_node
class TorchState(NamedTuple):
    """State of a lifted optimizer."""

    stepped: Tree  # (), bool: whether the leaf has seen a gradient, and its state counts
    state: dict[str, Tree]  # what optimizer.state holds of each leaf, a tree for each of its keys


@dataclass(frozen=True, eq=False, repr=False)
class Lifted(Transform):
    """An optimizer class of torch, and its keywords."""

    name: ClassVar[str] = "as_transform"

    optimizer: Callable[..., Optimizer]
    keywords: dict[str, Any]

    def init(self, params: Tree) -> TorchState:
        leaves, spec = checks.parameters(params)
        self._reject_transforms()
        where = [i for i, p in enumerate(leaves) if checks.trainable(p)]
        zeros, grads = ([torch.zeros_like(leaves[i]) for i in where] for _ in range(2))
        entries = self._stepped(zeros, grads, [{} for _ in zeros])  # only to see what it keeps
        rows: list[dict[str, Any]] = [{} for _ in leaves]
        for i, entry in zip(where, entries, strict=True):
            rows[i] = {k: torch.zeros_like(x) for k, x in entry.items()}
        flags = [torch.tensor(False) if i in where else EmptyState() for i in range(len(leaves))]
        return _state(spec, flags, rows)

    def update(
        self, updates: Tree, state: TorchState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, TorchState]:
        del extra
        if params is None:
            raise ValueError("params must be given: the optimizer of torch steps parameters")
        new, after = self._advanced(updates, state, params)
        olds, spec = pytree.flatten(params)
        grads = pytree.match(spec, updates, "updates", "params")
        rows = zip(grads, pytree.flatten(new)[0], olds, strict=True)
        return pytree.unflatten(spec, [None if g is None else x - y for g, x, y in rows]), after

    def plan(
        self, grads: Tree, state: Any, params: Tree, donate: bool = False, **extra: Any
    ) -> Plan:
        del extra
        step = partial(self._advanced, grads, state, params)
        return Planned(step, (grads, state, params), donate)

    def _advanced(self, grads: Tree, state: TorchState, params: Tree) -> tuple[Tree, TorchState]:
        """Return the parameters and the state that the class leaves."""
        self._reject_transforms()
        leaves, spec = checks.parameters(params)
        given = pytree.match(spec, grads, "grads", "params")
        trainable = [p if checks.trainable(p) else None for p in leaves]
        checks.gradients(spec, given, trainable, self._title())
        flags = pytree.match(spec, state.stepped, "state.stepped", "params")
        kept = {k: pytree.match(spec, x, f"state.{k}", "params") for k, x in state.state.items()}
        rows = [
            {k: x[i] for k, x in kept.items() if isinstance(x[i], Tensor)}
            for i in range(len(leaves))
        ]
        where = [i for i, g in enumerate(given) if g is not None]
        copies = [leaves[i].detach().clone() for i in where]
        entries = self._stepped(
            copies,
            [given[i].detach().to(leaves[i].dtype, copy=True) for i in where],
            [{k: x.clone() for k, x in rows[i].items()} if flags[i] else {} for i in where],
        )
        new = pytree.unflatten(spec, pytree.placed(leaves, where, copies))
        flags = pytree.placed(flags, where, [torch.tensor(True) for _ in where])
        return new, _state(spec, flags, pytree.placed(rows, where, entries))

    def _stepped(
        self, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]]
    ) -> list[dict[str, Tensor]]:
        """Step ``params`` in place; return the new state of each."""
        if not params:
            return []
        optimizer = self.optimizer(params, **self.keywords)
        for p, g, entry in zip(params, grads, states, strict=True):
            p.grad = g
            if entry:
                optimizer.state[p] = entry
        with torch.no_grad():
            optimizer.step()
        for p in params:
            p.grad = None
        entries = [{k: _as_tensor(x) for k, x in optimizer.state[p].items()} for p in params]
        return [{k: x for k, x in e.items() if isinstance(x, Tensor)} for e in entries]

    def _reject_transforms(self) -> None:
        if context.traced():
            raise RuntimeError(
                f"{self._title()} writes in place, so it runs under no transform of torch.func, "
                "no compiler and no forward-mode differentiation; take a transform of "
                "functional_adamax instead"
            )

    def _title(self) -> str:
        return getattr(self.optimizer, "__name__", "the optimizer")

    def __repr__(self) -> str:
        words = "".join(f", {k}={v!r}" for k, v in self.keywords.items())
        return f"as_transform({self._title()}{words})"


def _state(spec: Any, flags: list[Any], rows: list[dict[str, Any]]) -> TorchState:
    names = sorted({name for row in rows for name in row})
    columns = {name: [row.get(name, EmptyState()) for row in rows] for name in names}
    return TorchState(
        pytree.unflatten(spec, flags), {k: pytree.unflatten(spec, x) for k, x in columns.items()}
    )


def _as_tensor(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(value, dtype=torch.float64)
    return value


def as_transform(optimizer: Callable[..., Optimizer], **keywords: Any) -> GradientTransformation:
    """Return an optimizer class of torch as a transform, pure from outside.

        tx = as_transform(torch.optim.RMSprop, lr=0.01)

    Args:
        optimizer: a class such as ``torch.optim.RMSprop``, or a function from parameters to an
            optimizer, that steps without a closure and keeps its state by parameter.
        **keywords: its arguments besides the parameters.

    Returns:
        A transform with the state ``TorchState(stepped, state)``. ``functional_adamax.step``
        returns the parameters that the class leaves, to the bit; ``update`` returns the
        differences to those before, so ``apply_updates`` may differ from them in the last bit.
        The results are detached. It needs ``params``. It does not run under ``vmap``, ``grad`` or
        ``torch.compile``.

    Raises:
        TypeError: an optimizer that needs a closure.

    Example:
        >>> import functional_adamax as fa
        >>> tx = as_transform(torch.optim.SGD, lr=0.5)
        >>> params = torch.tensor([1.0, 2.0])
        >>> fa.step(tx, torch.ones(2), tx.init(params), params)[0]
        tensor([0.5000, 1.5000])
    """
    if not callable(optimizer):
        raise TypeError(
            f"optimizer must be a class of torch.optim, got a {type(optimizer).__name__}: give "
            "the class and its keywords, as in as_transform(torch.optim.SGD, lr=0.1)"
        )
    if isinstance(optimizer, type) and issubclass(optimizer, LBFGS):
        raise TypeError("optimizer must step without a closure, got LBFGS")
    made: Any = optimizer  # the check above narrows it too far
    return Lifted(made, keywords).pair()
