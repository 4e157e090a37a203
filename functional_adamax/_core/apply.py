"""The last stage: add the updates to the parameters."""

from __future__ import annotations

from . import checks, growth, pytree
from .numerics import add
from .pytree import Tree


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """Return ``params + updates``, leaf by leaf, in the dtypes of ``params``.

        p <- round(p + update)

    The sum is taken in the wider of the two dtypes and rounded once, so that
    float32 updates of bfloat16 parameters lose nothing before the sum.

    Args:
        params: a tree of tensors; leaves may be None.
        updates: a tree of the same structure and shapes; None leaves its parameter as it is.

    Returns:
        A tree like ``params``; inputs are never written. A leaf without an update is
        the same tensor as before.

    Raises:
        ValueError: structure, shape or device differ.
        TypeError: an update for a leaf that is not floating or complex.

    Example:
        >>> apply_updates({"w": torch.ones(2)}, {"w": torch.tensor([0.5, -0.5])})
        {'w': tensor([1.5000, 0.5000])}
    """
    new = updated(params, updates)
    growth.note((params,), (new,))
    return new


def updated(params: Tree, updates: Tree) -> Tree:
    """``apply_updates`` as a part of a step."""
    leaves, spec = checks.parameters(params)
    given = pytree.match(spec, updates, "updates", "params", "; update returns (updates, state)")
    like = [p if checks.trainable(p) else None for p in leaves]
    checks.gradients(spec, given, like, "apply_updates", "updates")
    new = [p if u is None else add(p, u) for p, u in zip(leaves, given, strict=True)]
    return pytree.unflatten(spec, new)
