"""Chains: the updates of one transform are the gradients of the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ._transform import GradientTransformation, Stateless, Transform
from ._tree import EmptyState, Tree


@dataclass(frozen=True, eq=False, repr=False)
class Identity(Stateless):
    """Updates pass as they are."""

    name: ClassVar[str] = "identity"

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del params, extra
        return updates, state


@dataclass(frozen=True, eq=False, repr=False)
class Chain(Transform):
    """Transforms applied one after another."""

    name: ClassVar[str] = "chain"

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
            )
        states = []
        for link, link_state in zip(self.links, state, strict=True):
            updates, link_state = link.update(updates, link_state, params, **extra)
            states.append(link_state)
        return updates, tuple(states)

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.links))})"


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
    for i, link in enumerate(transforms):
        if not (isinstance(link, tuple) and len(link) == 2 and all(map(callable, link))):
            raise TypeError(
                f"chain: transforms[{i}] must be a pair (init, update) of functions, got {link!r}"
            )
    return Chain(tuple(GradientTransformation(*link) for link in transforms)).pair()
