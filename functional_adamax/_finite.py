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

from . import _check, _sharded, _tree
from ._chain import call_update, checked_link
from ._node import public_node
from ._spelling import explains_misfits
from ._transform import GradientTransformation, Transform
from ._tree import EmptyState, Tree


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
class ZeroNans(Transform):
    """Replace what is not a number by zero."""

    name: ClassVar[str] = "zero_nans"

    infinities: bool = False

    def init(self, params: Tree) -> ZeroNansState:
        leaves, spec = _check.parameters(params)
        found = [
            torch.zeros((), dtype=torch.bool, device=p.device)
            if _check.trainable(p)
            else EmptyState()
            for p in leaves
        ]
        return ZeroNansState(_tree.unflatten(spec, found))

    def update(
        self, updates: Tree, state: ZeroNansState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, ZeroNansState]:
        del params, extra
        _check.state(state, ZeroNansState)
        before, spec = _tree.flatten(state.found)
        leaves = _tree.match(spec, updates, "updates", "the params that init was given")
        like = [u if isinstance(x, Tensor) else x for u, x in zip(leaves, before, strict=True)]
        _check.gradients(spec, leaves, like, self.name, "updates")
        new, found = list(leaves), list(before)
        for i, u in enumerate(leaves):
            if u is not None:
                bad = ~u.isfinite() if self.infinities else u.isnan()
                new[i], found[i] = torch.where(bad, 0.0, u), _sharded.whole(bad.any())
        return _tree.unflatten(spec, new), ZeroNansState(_tree.unflatten(spec, found))


@dataclass(frozen=True, eq=False, repr=False)
class ApplyIfFinite(Transform):
    """Run a transform on finite updates only."""

    name: ClassVar[str] = "apply_if_finite"

    inner: GradientTransformation
    max_consecutive_errors: int

    def init(self, params: Tree) -> ApplyIfFiniteState:
        count = _tree.count(params)
        finite = torch.ones_like(count, dtype=torch.bool)
        return ApplyIfFiniteState(count, finite, count.clone(), self.inner.init(params))

    def update(
        self, updates: Tree, state: ApplyIfFiniteState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, ApplyIfFiniteState]:
        _check.state(state, ApplyIfFiniteState)
        leaves, spec = _tree.flatten(updates)
        _check.gradients(spec, leaves, leaves, self.name, "updates")
        finite = is_finite(leaves, like=state.last_finite)
        count = torch.where(finite, 0, state.notfinite_count + 1)
        accepted = finite | (count > self.max_consecutive_errors)
        shown = _tree.unflatten(spec, [presentable(u, accepted) for u in leaves])
        new, inner = call_update(self.inner, shown, state.inner, params, extra)
        return zeros_unless(accepted, new), ApplyIfFiniteState(
            count,
            finite,
            torch.where(finite, state.total_notfinite, state.total_notfinite + 1),
            select(accepted, inner, state.inner),
        )


def is_finite(leaves: list[Any], like: Tensor) -> Tensor:
    """Whether every element of every tensor is finite; 0-d, on the device of ``like``."""
    flags = [u.isfinite().all().to(like.device) for u in leaves if isinstance(u, Tensor)]
    return _sharded.combined(torch.logical_and, [torch.ones_like(like, dtype=torch.bool), *flags])


def presentable(u: Any, used: Tensor) -> Any:
    """``u`` if the result is used, else 1.

    A transform that runs in vain then has finite derivatives, and their zero multiples are zero;
    at 0, square roots and quotients have none.
    """
    return None if u is None else torch.where(used.to(u.device), u, torch.ones_like(u))


def select(condition: Tensor, new: Tree, old: Tree) -> Tree:
    """``new`` where the 0-d ``condition`` holds, else ``old``, a tree of the same structure."""
    leaves, spec = _tree.flatten(old)
    others = _tree.match(spec, new, "the new tree", "the one before")
    chosen = [
        torch.where(condition.to(y.device), x, y.to(x.dtype)) if _are_tensors(x, y) else x
        for x, y in zip(others, leaves, strict=True)
    ]
    return _tree.unflatten(spec, chosen)


def _are_tensors(x: Any, y: Any) -> bool:
    return isinstance(x, Tensor) and isinstance(y, Tensor)


def flag(value: Any, name: str, device: torch.device) -> Tensor:
    """What a function of the user's says, as a bool tensor of shape ().

    Raises:
        TypeError: it says something else.
    """
    if not isinstance(value, Tensor) and hasattr(value, "item"):  # NumPy's
        value = value.item()
    if isinstance(value, bool):
        return torch.tensor(value, device=device)
    if isinstance(value, Tensor) and value.dtype == torch.bool and value.dim() == 0:
        return _sharded.whole(value).to(device)
    raise TypeError(
        f"{name} must return a bool, or a bool tensor of shape (), got {_check.describe(value)}"
    )


def zeros_unless(condition: Tensor, updates: Tree) -> Tree:
    """``updates`` where the 0-d ``condition`` holds, else zeros; None stays None."""
    return _tree.tree_map(
        lambda u: torch.where(condition.to(u.device), u, 0.0) if isinstance(u, Tensor) else u,
        updates,
    )


@explains_misfits
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


@explains_misfits
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
