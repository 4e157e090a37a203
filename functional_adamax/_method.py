"""What the methods share: the way from trees to one leaf and back, and the averages they keep.

A method says in ``rule`` what one step does to one leaf and names the moments it keeps. What
is the same for all of them is here, once: the state, the checks, missing gradients, the
gradient's sign, weight decay, complex leaves. Values follow ``torch.optim`` to the bit where
an update that is added to the parameter can; see ``_rule.py`` for how.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import _check, _hyper, _rule, _tree
from ._hyper import Hyperparameter, cast
from ._norm import root
from ._rule import double, over_components, wide
from ._schedule import Schedule
from ._transform import Transform
from ._tree import EmptyState, Tree

Moments = dict[str, Any]
"""What the state keeps of one leaf beside its ``step``, by the name of the field."""

__all__ = [
    "Method",
    "Moments",
    "average",
    "average_square",
    "double",
    "over_bias",
    "root",
    "sign",
    "wide",
]


@dataclass(frozen=True, eq=False, repr=False)
class Method(Transform):
    """A transform that treats each leaf alone; its fields are hyperparameters."""

    state: ClassVar[type[Any]]
    """A NamedTuple of trees. The first, ``step``, counts the gradients each leaf has seen."""
    decoupled: ClassVar[bool] = False
    """Whether weight decay passes by the moments."""

    lr: Hyperparameter | Schedule
    weight_decay: Hyperparameter = 0.0
    maximize: bool = False
    state_dtype: torch.dtype | None = None

    @abstractmethod
    def moments(self) -> tuple[str, ...]:
        """Return the fields of the state that are kept; any other holds ``EmptyState()``."""

    @abstractmethod
    def hyper(self) -> dict[str, Hyperparameter]:
        """Return the hyperparameters that ``rule`` reads, ``lr`` aside."""

    @abstractmethod
    def rule(
        self, t: Tensor, g: Tensor, moments: Moments, h: dict[str, Any]
    ) -> tuple[Tensor, Moments]:
        """Return the update and the moments after the ``t``-th gradient of a real leaf.

        ``g`` is the conditioned gradient; ``h`` has the hyperparameters of this leaf, each a
        number or a tensor that broadcasts to it.
        """

    def init(self, params: Tree) -> Any:
        leaves, spec = _check.parameters(params)
        _check.warn_if_tied(leaves, spec)
        kept = self.moments()
        moments = [_start(p, kept, self.state_dtype) for p in leaves]
        return self._state(spec, list(map(_zero, leaves)), moments)

    def update(
        self, updates: Tree, state: Any, params: Tree = None, **extra: Any
    ) -> tuple[Tree, Any]:
        del extra
        _check.state(state, self.state)
        steps, spec = _tree.flatten(state.step)
        given = "the params that init was given"
        grads = _tree.match(spec, updates, "grads", given, _check.FITTING)
        leaves: list[Any] = [None] * len(steps)
        if params is not None:
            leaves = _tree.match(spec, params, "params", given)
        elif not _hyper.is_zero(self.weight_decay):
            _check.reject_missing_params(updates)
        kept = self.moments()
        columns = [
            _tree.match(spec, getattr(state, name), f"state.{name}", "state.step") for name in kept
        ]
        _check.moments(spec, dict(zip(kept, columns, strict=True)))
        like = columns[0] if kept else list(map(_fitting, steps, leaves, grads))
        if params is not None:
            _check.same_places(spec, leaves, like, "params")
        _check.gradients(spec, grads, like, self.name)
        _check.scalars(spec, steps, like, "state.step")
        hyper = {"lr": self.lr, "weight_decay": self.weight_decay, **self.hyper()}
        values = [_hyper.per_leaf(k, v, state.step, like) for k, v in hyper.items()]
        new, after, moments = list(grads), list(steps), []
        for i, g in enumerate(grads):
            moments.append({name: column[i] for name, column in zip(kept, columns, strict=True)})
            if g is None:
                continue
            h = dict(zip(hyper, (value[i] for value in values), strict=True))
            after[i] = steps[i] + 1
            new[i], moments[i] = self._leaf(after[i], g.to(like[i].dtype), leaves[i], moments[i], h)
        return _tree.unflatten(spec, new), self._state(spec, after, moments)

    def _leaf(
        self, t: Tensor, g: Tensor, p: Any, moments: Moments, h: dict[str, Any]
    ) -> tuple[Tensor, Moments]:
        """Condition the gradient, follow the rule, and decay."""
        decay = h.pop("weight_decay")
        decays = isinstance(decay, Tensor) or decay != 0
        if self.maximize:
            g = -g
        if decays and not self.decoupled:
            g = _rule.add_scaled(g, p.to(g.dtype), decay)
        if g.is_complex():
            update, moments = self._by_components(t, g, moments, h)
        else:
            update, moments = self.rule(t, g, moments, h)
        if decays and self.decoupled:
            update = _rule.add_scaled(update, p.to(update.dtype), -(h["lr"] * decay))
        return update, moments

    def _by_components(
        self, t: Tensor, g: Tensor, moments: Moments, h: dict[str, Any]
    ) -> tuple[Tensor, Moments]:
        """The rule for the real and the imaginary parts of a complex leaf, as in torch."""
        parts = {name: _rule.real_views(x)[0] for name, x in moments.items()}
        h = {name: over_components(value) for name, value in h.items()}
        update, parts = self.rule(t, _rule.real_views(g)[0], parts, h)
        whole = {name: torch.view_as_complex(x) for name, x in parts.items()}
        return torch.view_as_complex(update), whole

    def _state(self, spec: Any, steps: list[Any], moments: list[Moments]) -> Any:
        """Make the trees of the state from the steps and the moments of all leaves."""
        kept = {
            name: _tree.unflatten(spec, [leaf[name] for leaf in moments]) for name in self.moments()
        }
        fields = (kept.get(name, EmptyState()) for name in self.state._fields[1:])
        return self.state(_tree.unflatten(spec, steps), *fields)


def _zero(p: Any) -> Any:
    """The step of a parameter before its first gradient."""
    if not _check.trainable(p):
        return EmptyState()
    return torch.zeros((), dtype=_rule.step_dtype(p.device), device=p.device)


def _start(p: Any, kept: tuple[str, ...], state_dtype: torch.dtype | None) -> Moments:
    """The moments of a parameter before its first gradient."""
    if not _check.trainable(p):
        return dict.fromkeys(kept, EmptyState())
    dtype = _rule.moment_dtype(p, state_dtype)
    return {
        name: torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format) for name in kept
    }


def _fitting(step: Any, p: Any, g: Any) -> Any:
    """The tensor that a gradient must fit where no moment is kept."""
    if not isinstance(step, Tensor):
        return step
    return p if isinstance(p, Tensor) else g


def average(m: Tensor, g: Tensor, decay: Any) -> Tensor:
    """``decay * m + (1 - decay) * g``, as torch's ``lerp``."""
    weight = cast(1 - double(decay), wide(m))
    return torch.lerp(wide(m), wide(g), weight).to(m.dtype)


def average_square(v: Tensor, g: Tensor, decay: Any) -> Tensor:
    """``decay * v + (1 - decay) * g * g``, as torch's ``addcmul`` after a product."""
    kept = (wide(v) * cast(decay, wide(v))).to(v.dtype)
    weighted = wide(g) * cast(1 - double(decay), wide(g))
    return torch.addcmul(wide(kept), weighted, wide(g)).to(v.dtype)


def over_bias(factor: Any, decay: Any, t: Tensor) -> Any:
    """``factor / (1 - decay^t)`` in double precision."""
    bias = 1 - double(decay) ** double(t)
    return torch.ones_like(bias) * double(factor) / bias  # number / tensor would round twice


def sign(x: Tensor) -> Tensor:
    """The sign, with NaN kept, which ``torch.sign`` takes for 0."""
    return torch.where(x.isnan(), x, x.sign())
