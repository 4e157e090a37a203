"""Where a computation stands: under which transforms of ``torch.func``, in which mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from .private import modes, transforms

Function = TypeVar("Function", bound=Callable[..., Any])


def transforming() -> bool:
    """Whether a transform of ``torch.func`` is running."""
    return transforms.innermost() is not None


def forward_mode() -> bool:
    """Whether forward-mode differentiation is going on, in either form."""
    return transforms.jvp_is_running() or modes.dual_level() >= 0


def batching() -> bool:
    """Whether ``vmap`` is going on."""
    return transforms.vmap_is_running()


def uncompiled(function: Function) -> Function:
    """Return ``function``, which a compiler then runs as it is."""
    if torch.compiler.is_compiling():
        disabled: Function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        return disabled
    return function


def eager() -> AbstractContextManager[None]:
    """What runs inside is eager code, also where a compiler follows the code around it."""
    return modes.not_compiling()


def constant(function: Function) -> Function:
    """Return ``function``, whose result a compiler takes for a constant."""
    modes.mark_constant(function)
    return function


def traced() -> bool:
    """Whether a compiler, a tracer or a transform follows what is computed."""
    return bool(
        torch.compiler.is_compiling()
        or transforms.innermost() is not None
        or modes.dual_level() >= 0
        or modes.tracing()
        or modes.dispatch_modes()
    )


def recorded(tensors: Iterable[Tensor]) -> bool:
    """Whether ``traced``, or autograd records what is computed of ``tensors``."""
    return traced() or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))


@cache
def differentiates_in_inference_mode() -> bool:
    """Whether ``torch.func.grad`` does there; in some versions of torch its results are zeros."""

    def at_one() -> float:
        with torch.inference_mode():
            return float(torch.func.grad(torch.square)(torch.ones((), device="cpu")))

    return transforms.outside(at_one) == 2


def only_vmaps() -> dict[int, int] | None:
    """The batch sizes of the running ``vmap``s by their levels, the outermost first.

    None where there are none, or something else follows what is computed, also a mode that sees
    the functions of torch.
    """
    if not transforming() or _traced_otherwise() or modes.function_modes():
        return None
    return transforms.lone_vmaps()


def only_in_reverse() -> bool:
    """Whether nothing but autograd, its transforms and ``vmap`` follows what is computed."""
    return not _traced_otherwise() and transforms.only_in_reverse()


def _traced_otherwise() -> bool:
    """Whether a compiler, a tracer, a mode or forward-mode differentiation does."""
    return bool(
        torch.compiler.is_compiling() or modes.tracing() or modes.dispatch_modes() or forward_mode()
    )


def level() -> int:
    """The number of the innermost running transform, 0 outside of all."""
    return transforms.level() or 0


def living(x: Tensor) -> Tensor:
    """Return ``x``, or what it wraps where the transform that wrapped it has ended."""
    return transforms.living(x)


def followed_outside(x: Any, at: int) -> Tensor | None:
    """Return the tensor from level ``at`` or below that ``x`` is or wraps, if it is followed there.

    That is, if it is tracked, or belongs to a transform. None for a tensor of level ``at + 1``, and
    for what transforms above that made of such tensors.
    """
    if not isinstance(x, Tensor):
        return None
    while transforms.wraps(x) and transforms.level_of(x) > at:
        if transforms.level_of(x) == at + 1:
            return None
        x = transforms.unwrapped(x)
    return x if transforms.wraps(x) or x.requires_grad else None


def tracked(x: Tensor) -> bool:
    """Whether ``x`` may be differentiated, at any level."""
    while transforms.wraps(x) and not x.requires_grad:
        x = transforms.unwrapped(x)
    return x.requires_grad


def batched_by_autograd(tensors: Iterable[Tensor | None]) -> bool:
    """Whether ``torch.autograd.grad(is_grads_batched=True)`` made one of ``tensors``."""
    return any(x is not None and transforms.may_be_batched_by_autograd(x) for x in tensors)


def node_number(x: Tensor | None) -> int:
    """The number of the graph node that made ``x``, counted up by autograd; -1 for a leaf.

    For None, the number of the next node.
    """
    if x is None:
        with torch.enable_grad():
            x = torch.zeros((), requires_grad=True).view(())
    node = x.grad_fn
    return -1 if node is None else modes.number(node)
