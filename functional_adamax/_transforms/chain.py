"""Chains: the updates of one transform are the gradients of the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._core import checks
from .._core.links import call_update, checked_link, remade, settled
from .._core.pytree import EmptyState, Tree
from .._core.transform import GradientTransformation, Stateless, Transform
from .stage import LeafUpdate, Stage


@dataclass(frozen=True, eq=False, repr=False)
class Identity(Stateless):
    """Updates pass as they are."""

    is_local: ClassVar[bool] = True

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del params, extra
        return updates, state


@dataclass(frozen=True, eq=False, repr=False)
class Chain(Transform):
    """Transforms applied one after another."""

    is_local: ClassVar[bool] = True

    links: tuple[GradientTransformation, ...]

    def init(self, params: Tree) -> tuple[Any, ...]:
        return tuple(link.init(params) for link in self.links)

    def update(
        self, updates: Tree, state: tuple[Any, ...], params: Tree = None, **extra: Any
    ) -> tuple[Tree, tuple[Any, ...]]:
        if not isinstance(state, tuple) or len(state) != len(self.links):
            raise ValueError(
                f"state must be the tuple of {len(self.links)} states that init returned, one "
                f"for each link, got {type(state).__name__}"
                + (f" of {len(state)}" if isinstance(state, tuple) else "")
                + checks.ORDER
            )
        states = []
        for link, link_state in zip(self.links, state, strict=True):
            updates, link_state = call_update(link, updates, link_state, params, extra)
            states.append(link_state)
        return updates, tuple(states)

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        if not isinstance(state, tuple) or len(state) != len(self.links):
            return self
        pairs = zip(self.links, state, strict=True)
        return remade(self, links=tuple(settled(x, y, updates, params) for x, y in pairs))

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.links))})"


@dataclass(frozen=True, eq=False, repr=False)
class NamedChain(Transform):
    """A chain whose states are found by name."""

    is_local: ClassVar[bool] = True

    links: tuple[tuple[str, GradientTransformation], ...]

    def init(self, params: Tree) -> dict[str, Any]:
        return {name: link.init(params) for name, link in self.links}

    def update(
        self, updates: Tree, state: dict[str, Any], params: Tree = None, **extra: Any
    ) -> tuple[Tree, dict[str, Any]]:
        names = [name for name, _ in self.links]
        checks.states(state, names)
        states = {}
        for name, link in self.links:
            updates, states[name] = call_update(link, updates, state[name], params, extra)
        return updates, states

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        if not isinstance(state, dict) or state.keys() != {name for name, _ in self.links}:
            return self
        links = ((name, settled(x, state[name], updates, params)) for name, x in self.links)
        return remade(self, links=tuple(links))

    def __repr__(self) -> str:
        return f"named_chain({', '.join(map(repr, self.links))})"


@dataclass(frozen=True, eq=False, repr=False)
class SetToZero(Stage):
    """No step at all."""

    strict: ClassVar[bool] = False

    def rule(self, x: LeafUpdate) -> Tensor:
        return torch.zeros_like(x.u)


@dataclass(frozen=True, eq=False, repr=False)
class Function(Stateless):
    """A function of updates and parameters."""

    name: ClassVar[str] = "stateless"

    function: Callable[..., Tree]

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del extra
        return self.function(updates, params), state


def identity() -> GradientTransformation:
    """Pass the updates on unchanged. The state is ``EmptyState()``.

    Example:
        >>> tx = identity()
        >>> tx.update(torch.ones(2), tx.init(torch.zeros(2)))
        (tensor([1., 1.]), EmptyState())
    """
    return Identity().pair()


def chain(*transforms: GradientTransformation) -> GradientTransformation:
    """Apply transforms one after another: the first sees the gradients, the last is applied.

        updates, s_1 = t_1(grads, s_1, params);  updates, s_2 = t_2(updates, s_2, params);  ...

    Args:
        *transforms: the links, each a pair ``(init, update)``; none at all is ``identity``.
            ``params`` and extra keyword arguments reach every link.

    Returns:
        A transform whose state is the tuple of the links' states.

    Raises:
        TypeError: a link is not a pair of functions.

    Example:
        >>> tx = chain(scale(2.0), scale_by_learning_rate(0.1))
        >>> tx.update(torch.ones(2), tx.init(torch.zeros(2)))[0]
        tensor([-0.2000, -0.2000])
    """
    links = (checked_link(f"chain: transforms[{i}]", x) for i, x in enumerate(transforms))
    return Chain(tuple(links)).pair()


def named_chain(*links: tuple[str, GradientTransformation]) -> GradientTransformation:
    """``chain`` whose state is a dict, so that the state of a link is found by its name.

    Args:
        *links: pairs ``(name, transform)``, each name once.

    Returns:
        A transform whose state is ``{name: state of the link}``.

    Raises:
        TypeError: a link is not a name and a pair of functions.
        ValueError: a name comes twice.

    Example:
        >>> tx = named_chain(("direction", scale_by_adamax()), ("rate", scale(-0.1)))
        >>> tx.init(torch.zeros(2))["direction"].exp_avg
        tensor([0., 0.])
    """
    for i, link in enumerate(links):
        if not (isinstance(link, tuple) and len(link) == 2 and isinstance(link[0], str)):
            got = "a dict: named_chain(*links.items())" if isinstance(link, dict) else repr(link)
            raise TypeError(f"named_chain: links[{i}] must be (name, transform), got {got}")
    names = [name for name, _ in links]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"named_chain: every name must come once, got {name!r} twice: {names}")
    return NamedChain(
        tuple((name, checked_link(f"named_chain: {name!r}", x)) for name, x in links)
    ).pair()


def set_to_zero() -> GradientTransformation:
    """Make every update zero, and keep no state: the parameters stay as they are.

    An update that is None stays None.

    Example:
        >>> tx = set_to_zero()
        >>> tx.update(torch.ones(2), tx.init(torch.zeros(2)))[0]
        tensor([0., 0.])
    """
    return SetToZero().pair()


def stateless(function: Callable[[Tree, Tree], Tree]) -> GradientTransformation:
    """Make a transform without state of ``function(updates, params) -> updates``.

    Args:
        function: a pure function of two trees; ``params`` is None where ``update`` is given none.
            Of what it closes over nothing is known here: to pickle the transform, give it a
            function that pickles.

    Example:
        >>> tx = stateless(lambda updates, params: updates.sign())
        >>> tx.update(torch.tensor([3.0, -2.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 1., -1.])
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r}")
    return Function(function).pair()
