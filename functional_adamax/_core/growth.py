"""Notice training that extends one graph from step to step.

Parameters that autograd records, such as those of a module, make it record every step: the graph
of all of them stays in memory, and nothing else tells. A loop that is to be differentiated
records its steps, too, but it ends and starts anew. So each recorded step notes in the graph how
many are behind it, and one that finds very many warns.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from . import checks, context, pytree
from .pytree import Tree

LIMIT = 300
"""So many recorded steps are still taken for a loop to differentiate."""

_STEPS = "functional_adamax.steps"
_warned = False


def note(old: tuple[Tree, ...], new: tuple[Tree, ...]) -> None:
    """Note in the graph of ``new`` a step from ``old``; warn, once, if it is one of very many.

    Each is trees: parameters, or parameters and state.
    """
    if torch.is_grad_enabled() and _is_recorded(new[0]) and not context.traced():
        _extend(old, new)


def _is_recorded(tree: Tree) -> bool:
    """Whether autograd recorded the first tensor of ``tree``; costs less than to flatten it."""
    while not isinstance(tree, Tensor):
        children = tree.values() if isinstance(tree, dict) else tree
        if not isinstance(tree, (dict, tuple, list)):
            return False
        tree = next((x for x in children if x is not None), None)
    return tree.requires_grad


def _extend(old: tuple[Tree, ...], new: tuple[Tree, ...]) -> None:
    global _warned
    behind = max((node.metadata.get(_STEPS, 0) for node in _nodes(old)), default=0)
    for node in _nodes(new):
        node.metadata[_STEPS] = behind + 1
    if behind >= LIMIT and not _warned:
        _warned = True
        checks.warn(
            f"the last {behind} steps are one graph of autograd, and each step extends it. To "
            "train, start from detached parameters, {name: p.detach() for name, p in "
            "module.named_parameters()}, or go on from functional_adamax.detach((params, state)). "
            "To differentiate through as many steps, take functional_adamax.unroll"
        )


def _nodes(trees: tuple[Tree, ...]) -> Iterator[Any]:
    """What recorded the first recorded tensor of each tree."""
    for tree in trees:
        yield from islice((x.grad_fn for x in pytree.tensors(tree) if x.grad_fn is not None), 1)
