"""Sharpness-aware minimisation: the gradient of a point uphill in the place of the one here.

It is the one transform that needs gradients elsewhere, so ``update`` is given a function that
takes them. What the function makes of its argument is differentiated like all else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._core import checks, hyper, norms, numerics, pytree, sharded
from .._core.hyper import Hyperparameter
from .._core.links import call_update, checked_link
from .._core.pytree import EmptyState, Tree
from .._core.transform import GradientTransformation, Stateless, Transform
from .._execution.program import whole as whole


@dataclass(frozen=True, eq=False, repr=False)
class Sam(Transform):
    """A transform on the gradients of a point uphill."""

    inner: GradientTransformation
    rho: Hyperparameter = 0.05
    adaptive: bool = False

    def init(self, params: Tree) -> Any:
        return self.inner.init(params)

    def update(
        self,
        updates: Tree,
        state: Any,
        params: Tree = None,
        *,
        grad_fn: Callable[[Tree], Tree] | None = None,
        **extra: Any,
    ) -> tuple[Tree, Any]:
        checks.params_given(params, "to sam", ", grad_fn=...")
        if not callable(grad_fn):
            raise TypeError(
                f"grad_fn must be a function from params to their gradients, got {grad_fn!r}: "
                "call update(grads, state, params, grad_fn=torch.func.grad(loss)), or give a "
                "closure to the step of a compat.Optimizer"
            )
        leaves, spec = checks.parameters(params)
        given = pytree.match(spec, updates, "updates", "params")
        like = [p if checks.trainable(p) else None for p in leaves]
        checks.gradients(spec, given, like, self.name, "updates")
        uphill, _ = Uphill(self.rho, self.adaptive).plan(updates, EmptyState(), params)()
        found = pytree.match(spec, grad_fn(uphill), "grad_fn(params)", "params")
        there = [None if g is None else x for g, x in zip(given, found, strict=True)]
        checks.gradients(spec, there, like, self.name, "grad_fn(params)")
        extra = {**extra, "grad_fn": grad_fn}
        return call_update(self.inner, pytree.unflatten(spec, there), state, params, extra)


@dataclass(frozen=True, eq=False, repr=False)
class Uphill(Stateless):
    """The step to the point to which the gradients point, at the distance rho.

    It is a transform of its own so that executors can take it: ``Sam`` cannot be a program, because
    it calls a function of the user's.
    """

    is_local: ClassVar[bool] = True

    rho: Hyperparameter
    adaptive: bool

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del extra
        leaves, spec = pytree.flatten(params)
        new = pytree.match(spec, updates, "updates", "params")
        radii = hyper.per_leaf("rho", self.rho, params, leaves)
        where = [i for i, g in enumerate(new) if g is not None]
        scaled = [self._scaled(new[i], leaves[i]) for i in where]
        unit, root = norms.of_leaves(scaled)
        for i, g in zip(where, scaled, strict=True):
            new[i] = _at_distance(radii[i], self._scaled(g, leaves[i]), unit, root)
        return pytree.unflatten(spec, new), state

    def _scaled(self, g: Tensor, p: Tensor) -> Tensor:
        """The gradient in the measure of the parameters: of each component its size, if so."""
        if not self.adaptive:
            return g
        x = norms.real(g) * norms.real(p)
        return torch.view_as_complex(x) if g.is_complex() else x


def _at_distance(rho: Any, g: Tensor, unit: Tensor, root: Tensor) -> Tensor:
    """``rho * g / (unit * root)``, and 0, with the derivative 0, for a norm of 0."""
    x = norms.real(g).to(unit.dtype)
    rho = norms.over_components(numerics.cast(rho, x), g)
    unit, root = sharded.beside(unit, x), sharded.beside(root, x)
    zero = root == 0
    step = torch.where(zero, 0.0, (x / unit) * (rho / torch.where(zero, 1.0, root)))
    return torch.view_as_complex(step) if g.is_complex() else step


def sam(
    inner: GradientTransformation, rho: Hyperparameter = 0.05, adaptive: bool = False
) -> GradientTransformation:
    """Step as ``inner`` does on the gradients at the worst point nearby.

        e = rho * g / ||g||                  the norm of all leaves together
        e = rho * p^2 * g / ||p * g||        adaptive
        updates <- inner(grad_fn(params + e))

    ``update`` takes ``grad_fn``, which is called once: a function from a tree like ``params`` to
    one of gradients. ``compat.Optimizer`` makes it of the closure given to ``step``. Zero
    gradients do not perturb. A leaf whose gradient is None is not perturbed, and its update is
    None whatever ``grad_fn`` returns.

    Args:
        inner: any transform; ``params`` and all keyword arguments reach it.
        rho: the distance, in [0, inf): a number, a tensor, or a tree of them. Default: 0.05.
        adaptive: measure each element by its own size (ASAM), so that rescaled parameters
            give the same; rho is larger then, 0.5 to 2. Default: False.

    Returns:
        A transform with the state of ``inner``.

    Raises:
        TypeError: ``inner`` is no pair of functions; in ``update``, ``grad_fn`` is missing.
        ValueError: a number out of range; in ``update``, ``params`` missing or of another form.

    Example:
        >>> def loss(params):
        ...     return (params**2).sum() / 2
        >>> tx, params = sam(sgd(0.5), rho=1.0), torch.tensor([3.0, 4.0])
        >>> gradient = torch.func.grad(loss)
        >>> tx.update(gradient(params), tx.init(params), params, grad_fn=gradient)[0]
        tensor([-1.8000, -2.4000])

    Source: Foret et al. 2021, arXiv 2010.01412, equation 2 with p = 2; adaptive, Kwon et al.
    2021, arXiv 2102.11600, equation 9, without their eta.
    """
    hyper.check("rho", rho)
    return Sam(checked_link("inner", inner), rho, bool(adaptive)).pair()
