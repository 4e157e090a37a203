"""Choices without branches: results are selected, never multiplied, by flags that are tensors.

So what is not finite reaches neither the results nor the derivatives, nothing waits for the device,
and under ``vmap`` each member is judged alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks, pytree, sharded, sums
from .pytree import Tree


def is_finite(leaves: list[Any], like: Tensor) -> Tensor:
    """Whether every element of every tensor is finite; 0-d, on the device of ``like``."""
    if sums.watching.recorder is not None:
        return sums.watching.recorder.are_finite([u for u in leaves if isinstance(u, Tensor)])
    flags = [u.isfinite().all().to(like.device) for u in leaves if isinstance(u, Tensor)]
    return sharded.combined(torch.logical_and, [torch.ones_like(like, dtype=torch.bool), *flags])


def share(flags: Tensor, dtype: torch.dtype) -> Tensor:
    """The part of the elements that are true: their exact number, in ``dtype``, by that of all."""
    if sums.watching.recorder is not None:
        return sums.watching.recorder.share(flags, dtype)
    return flags.sum().to(dtype) / flags.numel()


def presentable(u: Any, used: Tensor) -> Any:
    """``u`` if the result is used, else 1.

    A transform that runs in vain then has finite derivatives, and their zero multiples are zero;
    at 0, square roots and quotients have none.
    """
    return None if u is None else torch.where(used.to(u.device), u, torch.ones_like(u))


def select(condition: Tensor, new: Tree, old: Tree) -> Tree:
    """``new`` where the 0-d ``condition`` holds, else ``old``, a tree of the same structure."""
    leaves, spec = pytree.flatten(old)
    others = pytree.match(spec, new, "the new tree", "the one before")
    chosen = [
        torch.where(condition.to(y.device), x, y.to(x.dtype)) if _are_tensors(x, y) else x
        for x, y in zip(others, leaves, strict=True)
    ]
    return pytree.unflatten(spec, chosen)


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
        return sharded.whole(value).to(device)
    raise TypeError(
        f"{name} must return a bool, or a bool tensor of shape (), got {checks.describe(value)}"
    )


def zeros_unless(condition: Tensor, updates: Tree) -> Tree:
    """``updates`` where the 0-d ``condition`` holds, else zeros; None stays None."""
    return pytree.map_tensors(lambda u: torch.where(condition.to(u.device), u, 0.0), updates)
