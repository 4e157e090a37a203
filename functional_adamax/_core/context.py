"""Where a computation stands: under which transforms of ``torch.func``, in which mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import (
    CVmapInterpreterPtr,
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
    maybe_current_level,
    maybe_get_level,
    peek_interpreter_stack,
    unwrap_if_dead,
)

Function = TypeVar("Function", bound=Callable[..., Any])


def transforming() -> bool:
    """Whether a transform of ``torch.func`` is running."""
    return peek_interpreter_stack() is not None


def forward_mode() -> bool:
    """Whether forward-mode differentiation is going on, in either form."""
    jvp = any(layer.key() == TransformType.Jvp for layer in get_interpreter_stack() or [])
    return jvp or torch.autograd.forward_ad._current_level >= 0


def batching() -> bool:
    """Whether ``vmap`` is going on."""
    return any(layer.key() == TransformType.Vmap for layer in get_interpreter_stack() or [])


def uncompiled(function: Function) -> Function:
    """Return ``function``, which a compiler then runs as it is."""
    if torch.compiler.is_compiling():
        disabled: Function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        return disabled
    return function


def constant(function: Function) -> Function:
    """Return ``function``, whose result a compiler takes for a constant.

    As ``torch.compiler.assume_constant_result`` does, which would import the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def traced() -> bool:
    """Whether a compiler, a tracer or a transform follows what is computed."""
    return bool(
        torch.compiler.is_compiling()
        or peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._get_tracing_state()
        or _len_torch_dispatch_stack()
    )


def recorded(tensors: Iterable[Tensor]) -> bool:
    """Whether ``traced``, or autograd records what is computed of ``tensors``."""
    return traced() or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))


def only_vmap() -> tuple[int, int] | None:
    """The level and the batch size of a ``vmap``, if nothing else follows what is computed."""
    if torch.compiler.is_compiling() or not transforming():
        return None
    layers = get_interpreter_stack() or []
    if len(layers) != 1 or layers[0].key() != TransformType.Vmap:
        return None
    if torch._C._get_tracing_state() or _len_torch_dispatch_stack() or forward_mode():
        return None
    return layers[0].level(), CVmapInterpreterPtr(layers[0]).batchSize()


def level() -> int:
    """The number of the innermost running transform, 0 outside of all."""
    current: int | None = maybe_current_level()
    return current or 0


def living(x: Tensor) -> Tensor:
    """Return ``x``, or what it wraps where the transform that wrapped it has ended."""
    unwrapped: Tensor = unwrap_if_dead(x)
    return unwrapped


def followed_outside(x: Any, at: int) -> Tensor | None:
    """Return the tensor from level ``at`` or below that ``x`` is or wraps, if it is followed there.

    That is, if it is tracked, or belongs to a transform. None for a tensor of level ``at + 1``, and
    for what transforms above that made of such tensors.
    """
    if not isinstance(x, Tensor):
        return None
    while is_functorch_wrapped_tensor(x) and maybe_get_level(x) > at:
        if maybe_get_level(x) == at + 1:
            return None
        x = get_unwrapped(x)
    return x if is_functorch_wrapped_tensor(x) or x.requires_grad else None


def tracked(x: Tensor) -> bool:
    """Whether ``x`` may be differentiated, at any level."""
    while is_functorch_wrapped_tensor(x) and not x.requires_grad:
        x = get_unwrapped(x)
    return x.requires_grad


def batched_by_autograd(tensors: Iterable[Tensor | None]) -> bool:
    """Whether ``torch.autograd.grad(is_grads_batched=True)`` made one of ``tensors``."""
    return any(x is not None and is_legacy_batchedtensor(x) for x in tensors)


def saved_tensors_are_hooked() -> bool:
    """Whether what autograd saves may come back otherwise than it was, in layout or dtype."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def node_number(x: Tensor | None) -> int:
    """The number of the graph node that made ``x``, counted up by autograd; -1 for a leaf.

    For None, the number of the next node.
    """
    if x is None:
        with torch.enable_grad():
            x = torch.zeros((), requires_grad=True).view(())
    node = x.grad_fn
    return -1 if node is None else int(node._sequence_nr())
