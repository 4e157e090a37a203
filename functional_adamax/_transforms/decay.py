"""Weight decay as a stage of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._core import checks, hyper, pytree
from .._core.hyper import Hyperparameter
from .._core.numerics import add_scaled
from .._core.pytree import EmptyState, Tree
from .._core.transform import GradientTransformation
from .stage import LeafUpdate, Stage


@dataclass(frozen=True, eq=False, repr=False)
class AddDecayedWeights(Stage):
    """Add a multiple of the parameters."""

    needs_params: ClassVar[bool] = True

    weight_decay: Hyperparameter = 0.0

    def rule(self, x: LeafUpdate) -> Tensor:
        return add_scaled(x.u, x.p.to(x.u.dtype), x.h["weight_decay"])

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del extra
        if params is None:
            checks.reject_missing_params(updates)
            return updates, state
        leaves, spec = checks.parameters(params)
        given = pytree.match(spec, updates, "updates", "params")
        checks.gradients(spec, given, leaves, self.name, "updates")
        return pytree.unflatten(spec, self.applied(params, given, leaves)), state


def add_decayed_weights(weight_decay: Hyperparameter = 0.0) -> GradientTransformation:
    """Add decayed weights to the updates; ``update`` needs ``params``.

        update <- update + weight_decay * p

    Before ``scale_by_adamax`` in a chain it is an L2 penalty (coupled), behind it decoupled
    weight decay. An update that is None stays None.

    Args:
        weight_decay: a number in [0, inf), a tensor, or a tree of them. Default: 0.

    Raises:
        ValueError: ``params`` is missing, or does not fit ``updates``.

    Example:
        >>> tx, params = add_decayed_weights(0.1), torch.tensor([1.0, 2.0])
        >>> tx.update(torch.zeros(2), tx.init(params), params)[0]
        tensor([0.1000, 0.2000])
    """
    hyper.check("weight_decay", weight_decay)
    return AddDecayedWeights(weight_decay).pair()
