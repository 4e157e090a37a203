"""What follows a computation besides transforms: modes, tracers, autograd, and what they see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch.autograd import forward_ad

from . import stand_ins
from .stand_ins import Missing


def _one() -> int:
    return 1


dispatch_modes: Callable[[], int] = getattr(
    torch._C, "_len_torch_dispatch_stack", stand_ins.dispatching
)
"""How many modes see the operations that torch dispatches."""
function_modes: Callable[[], int] = getattr(torch._C, "_len_torch_function_stack", _one)
"""How many modes may see the functions of torch that are called."""
tracing: Callable[[], Any] = getattr(torch._C, "_get_tracing_state", torch.jit.is_tracing)  # type: ignore[attr-defined]
"""Whether ``torch.jit.trace`` is going on."""
dual_level: Callable[[], int] = (
    partial(getattr, forward_ad, "_current_level")
    if hasattr(forward_ad, "_current_level")
    else stand_ins.dual_level
)
"""The level of forward-mode differentiation, -1 outside of it."""
function_mode_stack: Callable[[], list[Any]] = getattr(
    torch.overrides, "_get_current_function_mode_stack", Missing("_get_current_function_mode_stack")
)
"""The modes that see the functions of torch that are called, the innermost last."""
increment_version: Callable[[Any], None] = getattr(
    torch._C, "_increment_version", torch.autograd.graph.increment_version
)
"""Count writes to tensors; in C, neither a signal nor another thread comes between it and them."""
_custom_function_call: Any = None
with suppress(ImportError):
    from torch._functorch import autograd_function

    _custom_function_call = getattr(autograd_function, "custom_function_call", None)


def number(node: Any) -> int:
    """The number of a node of the graph, counted up by autograd."""
    found: int = getattr(node, "_sequence_nr", Missing("_sequence_nr"))()
    return found


def applies(function: Any) -> bool:
    """Whether ``function``, as a mode sees it, applies a ``torch.autograd.Function``."""
    if _custom_function_call is None:
        return Missing("custom_function_call")()
    return function is _custom_function_call


def mark_constant(function: Any) -> None:
    """Let a compiler take the result of ``function`` for a constant, if it knows the mark.

    As ``torch.compiler.assume_constant_result`` does, which would import the compiler.
    """
    function._dynamo_marked_constant = True


_FLAG = "_is_compiling_flag"


@contextmanager
def not_compiling() -> Iterator[None]:
    """Let code that runs while a compiler follows other code not be told of the compiler."""
    was = getattr(torch.compiler, _FLAG, None)
    if was is not None:
        setattr(torch.compiler, _FLAG, False)
    try:
        yield
    finally:
        if was is not None:
            setattr(torch.compiler, _FLAG, was)
