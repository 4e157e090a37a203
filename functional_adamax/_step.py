"""One whole step, from gradients to new parameters, pure or over donated buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from . import _check, _context, _growth, _sharded, _tree
from ._apply import updated
from ._chain import call_update, checked_link
from ._transform import Donated, GradientTransformation, Update
from ._tree import Tree


def step(
    tx: GradientTransformation,
    grads: Tree,
    state: Any,
    params: Tree,
    *,
    donate: bool = False,
    **extra: Any,
) -> tuple[Tree, Any]:
    """Return the parameters and the state after one step of ``tx``.

        updates, state = tx.update(grads, state, params)
        params = apply_updates(params, updates)

    Args:
        tx: any transform.
        grads: gradients, a tree like ``params``; None leaves its parameter alone.
        state: the state ``tx`` last returned.
        params: the parameters.
        donate: permit the step to write its results over the tensors of ``params`` and
            ``state``, which the caller gives up; only what is returned counts. The
            values are the same bit for bit. Under ``torch.compile``, a ``torch.func``
            transform or forward-mode differentiation, and where grad mode is on and an
            input requires grad, nothing is written. Default: False, inputs are never written.
        **extra: passed to ``tx.update``.

    Returns:
        ``(params, state)``.

    Raises:
        ValueError: with ``donate``, two of the donated tensors, or a donated tensor and a
            gradient, share memory.
        TypeError: ``tx`` is no transform.
        Exception: whatever ``tx.update`` raises for bad input. Everything is checked
            before anything is written.

    Example:
        >>> from functional_adamax import adamax
        >>> tx, params = adamax(lr=0.5), torch.tensor([1.0, 2.0])
        >>> state = tx.init(params)
        >>> params, state = step(tx, torch.tensor([1.0, -1.0]), state, params, donate=True)
        >>> params
        tensor([0.5000, 2.5000])
    """
    if not hasattr(tx, "init"):  # which a dict has not, unlike update
        tx = checked_link("tx", tx)  # raises, naming what was given
    if params is None and grads is not None:
        _check.params_given(None, "to step")
    tx = settled(tx, state)
    if donate:
        if isinstance(tx.update, Update) and tx.update.transform.overwrite(grads, state, params):
            return params, state
        new = prepare(tx, grads, state, params, **extra)()
    else:
        new = take(tx, grads, state, params, **extra)
    _growth.note((params, state), new)
    return new


def take(
    tx: GradientTransformation, grads: Tree, state: Any, params: Tree, **extra: Any
) -> tuple[Tree, Any]:
    """A pure step for loops that are to be differentiated, whose graph may grow."""
    if isinstance(tx.update, Update):
        done = tx.update.transform.advance(grads, state, params)
        if done is not None:
            return done
    updates, state = call_update(tx, grads, state, params, extra)
    return updated(params, updates), state


def settled(tx: GradientTransformation, state: Any) -> GradientTransformation:
    """Return the transform of one step from ``state``, which may be tried in several ways."""
    if not isinstance(tx.update, Update):
        return tx
    transform = tx.update.transform
    now = transform.settled(state)
    return tx if now is transform else now.pair()


def prepare(
    tx: GradientTransformation, grads: Tree, state: Any, params: Tree, **extra: Any
) -> Donated:
    """Check a donated step, and compute what has to be computed, without writing."""
    tx = settled(tx, state)
    if _writable(grads, state, params):
        return _prepare(tx, grads, state, params, **extra)
    return Computed(take(tx, grads, state, params, **extra))


@dataclass(frozen=True)
class Computed:
    """A step whose results are there; with ``old``, they are copied over it at the call."""

    new: tuple[Tree, Any]
    old: tuple[Tree, Any] | None = None

    def __call__(self) -> tuple[Tree, Any]:
        return self.new if self.old is None else _commit(self.new, self.old)


def _prepare(
    tx: GradientTransformation, grads: Tree, state: Any, params: Tree, **extra: Any
) -> Donated:
    """Check a donated step without writing.

    The transform's own fused step if it has one, else the pure step, committed at the call;
    or not committed, if a hyperparameter that requires grad made autograd record it.
    """
    if isinstance(tx.update, Update):
        run = tx.update.transform.prepare(grads, state, params)
        if run is not None:
            return run
    reject_shared_memory(grads, state, params)
    new = take(tx, grads, state, params, **extra)
    old = (params, state)
    if not _alike(new, old) or (
        torch.is_grad_enabled() and any(x.requires_grad for x in _tree.tensors(new))
    ):
        return Computed(new)
    return Computed(new, old)


def _alike(new: Tree, old: Tree) -> bool:
    """Whether every tensor of ``new`` has a place of its shape and dtype in ``old``."""
    (layout, xs), (old_layout, ys) = _tree.split(new), _tree.split(old)
    return layout == old_layout and all(
        (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device)
        for x, y in zip(xs, ys, strict=True)
    )


def _commit(new: tuple[Tree, Any], old: tuple[Tree, Any]) -> tuple[Tree, Any]:
    """Copy the results of a pure step over the donated trees."""
    sources, targets = _tree.tensors(new), _tree.tensors(old)
    written = _tree.storages(targets)
    pairs = [
        (_sharded.placed_like(y, x if written.isdisjoint(_tree.storages([x])) else x.clone()), y)
        for x, y in zip(sources, targets, strict=True)
        if x is not y
    ]
    for source, target in pairs:
        target.copy_(source)
    return old


def _writable(grads: Tree, state: Any, params: Tree) -> bool:
    """Whether ``params`` and ``state`` may be written, with nobody but their owner to notice.

    Not where elements of one tensor overlap, or lie scattered between those of others.
    """
    given, donated = _tree.tensors(grads), _tree.tensors((state, params))
    if _context.recorded(given + donated):
        return False
    if not torch.is_inference_mode_enabled() and any(x.is_inference() for x in donated):
        return False
    return all(x.is_contiguous() or _tree.is_dense(x) for x in donated)


class SharedMemoryError(ValueError):
    """A donated step would write what it has yet to read."""


def reject_shared_memory(grads: Tree, state: Any, params: Tree) -> None:
    """Raise where two donated tensors, or a donated one and a gradient, share memory.

    Raises:
        SharedMemoryError: with the paths of the two.
    """
    trees = {"grads": grads, "params": params, "state": state}
    flat = {name: _tree.flatten(tree) for name, tree in trees.items()}
    ranges = sorted(
        (x.data_ptr(), x.data_ptr() + _tree.span(x) * x.element_size(), name == "grads", name, i)
        for name, (leaves, _) in flat.items()
        for i, x in enumerate(leaves)
        if _tree.has_address(x)
    )
    reach: dict[bool, tuple[int, str, int]] = {}  # the furthest end so far: gradients, donated
    for start, end, is_grad, name, i in ranges:
        for other_is_grad, (other_end, other, j) in reach.items():
            if start < other_end and not (is_grad and other_is_grad):
                first = _tree.paths(flat[other][1], other)[j]
                second = _tree.paths(flat[name][1], name)[i]
                raise SharedMemoryError(
                    f"donated tensors must not share memory, but {first} and {second} do: "
                    "clone one of them, or call step with donate=False"
                )
        if end > reach.get(is_grad, (0,))[0]:
            reach[is_grad] = (end, name, i)
