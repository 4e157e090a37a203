"""Guards against NaN and infinity: set them to zero, or sit the whole update out.

Both select and never multiply, so that what is not finite reaches neither the results nor
the derivatives, and both keep in the state what they met, as tensors: nothing waits for the
device, and under ``vmap`` each member is judged alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._core import checks, pytree, sharded
from .._core.links import call_update, checked_link, remade, settled
from .._core.node import public_node
from .._core.pytree import Tree
from .._core.selection import is_finite, presentable, select, zeros_unless
from .._core.transform import GradientTransformation, Transform
from .stage import LeafUpdate, StatefulStage


@public_node
class ZeroNansState(NamedTuple):
    """State of ``zero_nans``."""

    found: Tree  # (), bool: whether the last gradient of the leaf had something to replace


@public_node
class ApplyIfFiniteState(NamedTuple):
    """State of ``apply_if_finite``."""

    notfinite_count: Tensor  # (), int64: bad updates in a row, up to the last one
    last_finite: Tensor  # (), bool: whether the last one was finite
    total_notfinite: Tensor  # (), int64: bad updates so far
    inner: Any  # the state of the wrapped transform


@dataclass(frozen=True, eq=False, repr=False)
class ZeroNans(StatefulStage):
    """Replace what is not a number by zero."""

    state: ClassVar[type[Any]] = ZeroNansState

    infinities: bool = False

    def hyper(self) -> dict[str, Any]:
        return {}

    def start(self, p: Tensor) -> list[Tensor]:
        return [torch.zeros((), dtype=torch.bool, device=p.device)]

    def fitting(self, spec: Any, kept: dict[str, list[Any]], updates: list[Any]) -> list[Any]:
        del spec
        pairs = zip(updates, kept["found"], strict=True)
        return [u if isinstance(x, Tensor) else x for u, x in pairs]

    def rule(self, x: LeafUpdate) -> tuple[Tensor, dict[str, Any]]:
        bad = ~x.u.isfinite() if self.infinities else x.u.isnan()
        return torch.where(bad, 0.0, x.u), {"found": sharded.whole(bad.any())}


@dataclass(frozen=True, eq=False, repr=False)
class ApplyIfFinite(Transform):
    """Run a transform on finite updates only."""

    is_local: ClassVar[bool] = True

    inner: GradientTransformation
    max_consecutive_errors: int

    def init(self, params: Tree) -> ApplyIfFiniteState:
        count = pytree.count(params)
        finite = torch.ones_like(count, dtype=torch.bool)
        return ApplyIfFiniteState(count, finite, count.clone(), self.inner.init(params))

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        if not isinstance(state, ApplyIfFiniteState):
            return self
        return remade(self, inner=settled(self.inner, state.inner, updates, params))

    def update(
        self, updates: Tree, state: ApplyIfFiniteState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, ApplyIfFiniteState]:
        checks.state(state, ApplyIfFiniteState)
        leaves, spec = pytree.flatten(updates)
        checks.gradients(spec, leaves, leaves, self.name, "updates")
        finite = is_finite(leaves, like=state.last_finite)
        count = torch.where(finite, 0, state.notfinite_count + 1)
        accepted = finite | (count > self.max_consecutive_errors)
        shown = pytree.unflatten(spec, [presentable(u, accepted) for u in leaves])
        new, inner = call_update(self.inner, shown, state.inner, params, extra)
        return zeros_unless(accepted, new), ApplyIfFiniteState(
            count,
            finite,
            torch.where(finite, state.total_notfinite, state.total_notfinite + 1),
            select(accepted, inner, state.inner),
        )


def zero_nans(*, infinities: bool = False) -> GradientTransformation:
    """Set every element of the updates that is NaN to zero.

        update <- 0 where update is NaN, else update

    The derivative of a replaced element is zero. A complex element counts as one.

    Args:
        infinities: replace infinite elements too. Default: False.

    Returns:
        A transform with the state ``ZeroNansState(found)``: for each leaf whether its last
        update had something to replace. An update that is None stays None and leaves its flag.

    Example:
        >>> tx, params = zero_nans(), torch.zeros(2)
        >>> tx.update(torch.tensor([float("nan"), 1.0]), tx.init(params))
        (tensor([0., 1.]), ZeroNansState(found=tensor(True)))
    """
    return ZeroNans(bool(infinities)).pair()


def apply_if_finite(
    inner: GradientTransformation, max_consecutive_errors: int
) -> GradientTransformation:
    """Run ``inner`` unless the updates contain NaN or infinity.

        updates, s <- inner(updates, s)   if all updates are finite
        updates, s <- 0, s                otherwise

    A bad update changes no bit of the inner state. After ``max_consecutive_errors`` of them in a
    row the next ones are accepted as they are, because a guard that never ends hides a run that
    is lost; the first finite update starts the count anew. Nothing that was rejected reaches a
    derivative.

    Args:
        inner: any transform; ``params`` and extra keyword arguments reach it.
        max_consecutive_errors: how many bad updates in a row are ignored, an integer of at
            least 0.

    Returns:
        A transform with the state ``ApplyIfFiniteState(notfinite_count, last_finite,
        total_notfinite, inner)``.

    Raises:
        TypeError: ``inner`` is no pair of functions, or the number no integer.
        ValueError: the number is negative.

    Example:
        >>> tx, params = apply_if_finite(scale(-0.1), 5), torch.zeros(2)
        >>> updates, state = tx.update(torch.tensor([float("inf"), 1.0]), tx.init(params))
        >>> updates, state.total_notfinite
        (tensor([0., 0.]), tensor(1))
    """
    inner = checked_link("inner", inner)
    n = max_consecutive_errors
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"max_consecutive_errors must be an integer, got {n!r}")
    if n < 0:
        raise ValueError(f"max_consecutive_errors must be at least 0, got {n}")
    return ApplyIfFinite(inner, n).pair()
