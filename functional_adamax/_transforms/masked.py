"""Transforms for some of the leaves: masks and labels.

A leaf that a transform is not meant for is None in the trees it sees. So it has no state there, as
a missing parameter has none, and every transform can be masked without knowing. The file is longer
than others: public functions are documented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch

from .._core import checks, pytree
from .._core.links import Chosen, call_update, checked_link, remade, settled
from .._core.pytree import EmptyState, Tree
from .._core.transform import (
    Data,
    GradientTransformation,
    Init,
    Stateless,
    Transform,
    Update,
    asks,
)

Mask: TypeAlias = Tree | Callable[[Tree], Tree]
"""A tree of bools shaped like params, or a prefix of it; or a function from params to one."""


@dataclass(frozen=True)
class ByPath:
    """A function from a tree to what ``function`` says of each leaf's dotted path."""

    function: Callable[[str], Any]

    def __call__(self, tree: Tree) -> Tree:
        return pytree.unflatten(pytree.flatten(tree)[1], self.values(tree))

    def values(self, tree: Tree) -> list[Any]:
        """What ``function`` says, leaf by leaf."""
        return [self.function(name) for name in pytree.names(pytree.flatten(tree)[1])]


def goes_by_path(value: Any) -> bool:
    """Whether a transform, or a part of one, asks ``by_path`` for its leaves."""
    if isinstance(value, (Init, Update)):
        return goes_by_path(value.transform)
    parts: Iterable[Any] = ()
    if isinstance(value, Data):
        parts = value._values().values()
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    return isinstance(value, ByPath) or any(map(goes_by_path, parts))


@dataclass(frozen=True, eq=False, repr=False)
class Masked(Transform):
    """A transform of some leaves; the others pass."""

    is_local: ClassVar[bool] = True
    asks: ClassVar[bool] = True

    inner: GradientTransformation
    mask: Mask

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        where = _settled(self.mask, updates, params, "mask", bool)
        if where is None:
            return self
        inner = _settled_inside(self.inner, state, updates, params, where)
        return remade(self, inner=inner, mask=Chosen(tuple(where)))

    def init(self, params: Tree) -> Any:
        return self.inner.init(_only(params, _resolved(self.mask, params, "mask", bool)))

    def update(
        self, updates: Tree, state: Any, params: Tree = None, **extra: Any
    ) -> tuple[Tree, Any]:
        updates = _like_params(updates, params)
        where = _resolved(self.mask, updates if params is None else params, "mask", bool)
        inside = None if params is None else _only(params, where)
        extra = _inside(extra, params, where)
        new, state = call_update(self.inner, _only(updates, where), state, inside, extra)
        return _merged(updates, [(where, new)]), state


@dataclass(frozen=True, eq=False, repr=False)
class Partition(Transform):
    """A transform for each label."""

    is_local: ClassVar[bool] = True
    asks: ClassVar[bool] = True

    transforms: Mapping[str, GradientTransformation]
    labels: Tree | Callable[[Tree], Tree]

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        if not isinstance(state, dict) or state.keys() != self.transforms.keys():
            return self
        labels = _settled(self.labels, updates, params, "labels", object)
        if labels is None:
            return self
        now = {
            label: _settled_inside(tx, state[label], updates, params, [x == label for x in labels])
            for label, tx in self.transforms.items()
        }
        return remade(self, transforms=now, labels=Chosen(tuple(labels)))

    def init(self, params: Tree) -> dict[str, Any]:
        parts = self._parts(params)
        return {k: tx.init(_only(params, parts[k])) for k, tx in self.transforms.items()}

    def update(
        self, updates: Tree, state: dict[str, Any], params: Tree = None, **extra: Any
    ) -> tuple[Tree, dict[str, Any]]:
        checks.states(state, list(self.transforms))
        updates = _like_params(updates, params)
        parts = self._parts(updates if params is None else params)
        new, states = [], {}
        for label, tx in self.transforms.items():
            where = parts[label]
            inside = None if params is None else _only(params, where)
            given = _inside(extra, params, where)
            part, states[label] = call_update(
                tx, _only(updates, where), state[label], inside, given
            )
            new.append((where, part))
        return _merged(updates, new), states

    def _parts(self, tree: Tree) -> dict[str, list[bool]]:
        """For each label, which leaves carry it."""
        labels = _resolved(self.labels, tree, "labels", object)
        leaves = pytree.flatten(tree)[0]
        for i, label in enumerate(labels):
            if label not in self.transforms and leaves[i] is not None:
                path = pytree.paths(pytree.flatten(tree)[1], "labels")[i]
                raise ValueError(
                    f"{path} must be one of {list(self.transforms)}, got {label!r}: add a "
                    "transform for it, for example set_to_zero()"
                )
        return {k: [label == k for label in labels] for k in self.transforms}


@dataclass(frozen=True, eq=False, repr=False)
class Freeze(Stateless):
    """Zero updates for some leaves."""

    is_local: ClassVar[bool] = True
    asks: ClassVar[bool] = True

    mask: Mask

    def settled(self, state: Any, updates: Tree, params: Tree) -> Transform:
        del state
        where = _settled(self.mask, updates, params, "mask", bool)
        return self if where is None else remade(self, mask=Chosen(tuple(where)))

    def update(
        self, updates: Tree, state: EmptyState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, EmptyState]:
        del extra
        updates = _like_params(updates, params)
        where = _resolved(self.mask, updates if params is None else params, "mask", bool)
        leaves, spec = pytree.flatten(updates)
        new = [
            torch.zeros_like(u) if frozen and u is not None else u
            for u, frozen in zip(leaves, where, strict=True)
        ]
        return pytree.unflatten(spec, new), state


def _settled_inside(
    link: GradientTransformation, state: Any, updates: Tree, params: Tree, where: list[bool]
) -> GradientTransformation:
    """Settle what sees the leaves at ``where`` alone."""
    if not asks(link):
        return link
    inside = None if params is None else _only(params, where)
    return settled(link, state, _only(_like_params(updates, params), where), inside)


def _settled(given: Any, updates: Tree, params: Tree, name: str, kind: type) -> list[Any] | None:
    """What a mask, or labels, say of each leaf; None where they are asked about the updates."""
    by_values = callable(given) and not pytree.is_node(given) and not isinstance(given, ByPath)
    if params is None and by_values:
        return None
    return _resolved(given, updates if params is None else params, name, kind)


def _resolved(given: Any, tree: Tree, name: str, kind: type) -> list[Any]:
    """Return what a mask, or labels, say of each leaf of ``tree``."""
    if isinstance(given, Chosen):
        return list(given.values)
    if isinstance(given, ByPath):
        result = given.values(tree)
    else:
        made = given(tree) if callable(given) and not pytree.is_node(given) else given
        result = pytree.spread(made, tree, name)
    types = set(map(type, result))  # which tell at once that all is well
    if type(None) not in types and all(issubclass(x, kind) for x in types):
        return result
    for i, (value, leaf) in enumerate(zip(result, pytree.flatten(tree)[0], strict=True)):
        if leaf is None and value is None:
            result[i] = False
        elif not isinstance(value, kind):
            path = pytree.paths(pytree.flatten(tree)[1], name)[i]
            raise TypeError(f"{path} must be a {kind.__name__}, got {value!r}")
    return result


def _like_params(updates: Tree, params: Tree) -> Tree:
    """Return ``updates`` in the containers of ``params``, where these are given."""
    if params is None:
        return updates
    spec = pytree.flatten(params)[1]
    return pytree.unflatten(spec, pytree.match(spec, updates, "updates", "params"))


def _only(tree: Tree, where: list[bool]) -> Tree:
    leaves, spec = pytree.flatten(tree)
    return pytree.unflatten(spec, [x if w else None for x, w in zip(leaves, where, strict=True)])


@dataclass(frozen=True)
class _Around:
    """Gradients at a point that is given for some parameters; the others stay where they are."""

    grad_fn: Callable[[Tree], Tree]
    params: Tree
    where: list[bool]

    def __call__(self, part: Tree) -> Tree:
        grads = self.grad_fn(_merged(self.params, [(self.where, part)]))
        return _only(_like_params(grads, self.params), self.where)


def _inside(extra: dict[str, Any], params: Tree, where: list[bool]) -> dict[str, Any]:
    """The extra arguments as a transform takes them that sees some of the parameters only."""
    grad_fn = extra.get("grad_fn")
    if params is None or not callable(grad_fn):
        return extra
    return {**extra, "grad_fn": _Around(grad_fn, params, where)}


def _merged(updates: Tree, parts: list[tuple[list[bool], Tree]]) -> Tree:
    """Return ``updates`` with each part in its places."""
    leaves, spec = pytree.flatten(updates)
    for where, part in parts:
        new = pytree.match(spec, part, "updates", "the updates given to the transform")
        leaves = [y if w else x for x, y, w in zip(leaves, new, where, strict=True)]
    return pytree.unflatten(spec, leaves)


def by_path(function: Callable[[str], Any]) -> Callable[[Tree], Tree]:
    """Make a mask, or labels, from the names of the leaves.

    Args:
        function: from a leaf's path, joined by dots as modules name parameters
            (``"layers.0.weight"``), to a bool or a label.

    Returns:
        A function from a tree to a tree of what ``function`` returned.

    Example:
        >>> mask = by_path(lambda name: not name.endswith("bias"))
        >>> mask({"weight": torch.zeros(2), "bias": torch.zeros(1)})
        {'weight': True, 'bias': False}
    """
    if not callable(function):
        raise TypeError(f"function must be one of the names of leaves, got {function!r}")
    return ByPath(function)


def masked(inner: GradientTransformation, mask: Mask) -> GradientTransformation:
    """Apply ``inner`` where ``mask`` is True; elsewhere updates pass as they are.

    Args:
        inner: any transform. It sees None for the leaves outside of the mask, which have no
            state in it and do not count in norms.
        mask: a tree of bools shaped like params, or a prefix of it; or a function that makes one
            of params (of the updates, where ``update`` is given no params), such as ``by_path``.

    Returns:
        A transform with the state of ``inner``.

    Raises:
        ValueError: the mask is no prefix of the tree.
        TypeError: something in it is not a bool.

    Example:
        >>> tx = masked(add_decayed_weights(0.1), {"weight": True, "bias": False})
        >>> params = {"weight": torch.ones(2), "bias": torch.ones(1)}
        >>> grads = {"weight": torch.zeros(2), "bias": torch.zeros(1)}
        >>> tx.update(grads, tx.init(params), params)[0]
        {'weight': tensor([0.1000, 0.1000]), 'bias': tensor([0.])}
    """
    return Masked(checked_link("inner", inner), mask).pair()


def partition(
    transforms: Mapping[str, GradientTransformation], labels: Tree | Callable[[Tree], Tree]
) -> GradientTransformation:
    """Apply to each leaf the transform of its label.

    Args:
        transforms: a transform for each label.
        labels: a tree of labels shaped like params, or a prefix of it; or a function that makes
            one of params (of the updates, where ``update`` is given no params), such as
            ``by_path``. Every leaf needs a label that has a transform; ``set_to_zero`` is the
            one for leaves that stay as they are. A label may have no leaf.

    Returns:
        A transform whose state is ``{label: state}``. A leaf has state under its own label only.

    Raises:
        ValueError: a leaf whose label has no transform, with its path; or labels that are no
            prefix of the tree.

    Example:
        >>> tx = partition({"slow": sgd(0.1), "none": set_to_zero()}, {"w": "slow", "b": "none"})
        >>> params = {"w": torch.ones(2), "b": torch.ones(1)}
        >>> tx.update(params, tx.init(params))[0]
        {'w': tensor([-0.1000, -0.1000]), 'b': tensor([0.])}
    """
    if not isinstance(transforms, Mapping):
        raise TypeError(f"transforms must map labels to transforms, got {transforms!r}")
    checked = {k: checked_link(f"transforms[{k!r}]", tx) for k, tx in transforms.items()}
    return Partition(checked, labels).pair()


def freeze(mask: Mask) -> GradientTransformation:
    """Make updates zero where ``mask`` is True, as the last link of a chain.

    It has no state itself. To spare the state of the links before it, leave the leaves out there:
    ``partition({"train": tx, "freeze": set_to_zero()}, labels)``.

    Args:
        mask: as in ``masked``.

    Example:
        >>> tx = freeze({"w": False, "b": True})
        >>> updates = {"w": torch.ones(2), "b": torch.ones(1)}
        >>> tx.update(updates, tx.init(updates))[0]
        {'w': tensor([1., 1.]), 'b': tensor([0.])}
    """
    return Freeze(mask).pair()
