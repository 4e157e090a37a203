"""The transforms of ``torch.func``: which are running, and what their tensors wrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import debug_unwrap

from . import stand_ins
from .stand_ins import Missing

Result = TypeVar("Result")

_DEAD = -2  # the level of a tensor whose transform has ended
_functorch = getattr(torch._C, "_functorch", None)
_kinds: Any = getattr(_functorch, "TransformType", None)
_layers: Any = getattr(_functorch, "get_interpreter_stack", None)
_as_vmap: Any = getattr(_functorch, "CVmapInterpreterPtr", None)
_cleared: Any = None
_current: Any = None
_of_one_level: Any = None
with suppress(ImportError):
    from torch._functorch import pyfunctorch

    _cleared = getattr(pyfunctorch, "temporarily_clear_interpreter_stack", None)
    _current = getattr(pyfunctorch, "retrieve_current_functorch_interpreter", None)
with suppress(ImportError):
    from torch._functorch.utils import enable_single_level_autograd_function as _of_one_level
_into: Any = getattr(_functorch, "_wrap_for_grad", None)
_out_of: Any = getattr(_functorch, "_unwrap_for_grad", None)
_Single: Any = getattr(torch.autograd.function, "_SingleLevelFunction", None)


def _innermost() -> Any:
    return stand_ins.transforming() or None


def _level() -> int | None:
    if _layers is not None:
        layers = _layers()
        return layers[-1].level() if layers else None
    return None if innermost() is None else Missing("maybe_current_level")()


def _wraps(x: Tensor) -> bool:
    return debug_unwrap(x, recurse=False) is not x


def _unwrapped(x: Tensor) -> Tensor:
    return debug_unwrap(x, recurse=False)


def _living(x: Tensor) -> Tensor:
    return unwrapped(x) if wraps(x) and level_of(x) == _DEAD else x


def _may_be(x: Tensor) -> bool:
    del x
    return True


innermost: Callable[[], Any] = getattr(_functorch, "peek_interpreter_stack", _innermost)
"""The innermost running transform, or None."""
level: Callable[[], int | None] = getattr(_functorch, "maybe_current_level", _level)
"""The number of the innermost running transform, or None."""
wraps: Callable[[Tensor], bool] = getattr(_functorch, "is_functorch_wrapped_tensor", _wraps)
"""Whether a tensor belongs to a transform, running or not."""
unwrapped: Callable[[Tensor], Tensor] = getattr(_functorch, "get_unwrapped", _unwrapped)
"""What a tensor of a transform wraps."""
level_of: Callable[[Tensor], int] = getattr(
    _functorch, "maybe_get_level", Missing("maybe_get_level")
)
"""The number of the transform that a tensor belongs to."""
living: Callable[[Tensor], Tensor] = getattr(_functorch, "unwrap_if_dead", _living)
"""A tensor, or what it wraps where its transform has ended."""
may_be_batched_by_autograd: Callable[[Tensor], bool] = getattr(
    _functorch, "is_legacy_batchedtensor", _may_be
)
"""Whether ``torch.autograd.grad(is_grads_batched=True)`` may have made a tensor."""
is_batched: Any = getattr(_functorch, "is_batchedtensor", None)
"""Whether a tensor has a dimension for the members of a ``vmap``."""
place_of_batch: Any = getattr(_functorch, "maybe_get_bdim", None)
"""Which dimension that is."""
batched: Any = getattr(_functorch, "_add_batch_dim", None)
"""A tensor, one of its dimensions and the level of a ``vmap`` to a tensor of its members."""


def jvp_is_running() -> bool:
    """Whether ``torch.func.jvp`` is running; where it is not listed, a dual level tells as much."""
    if _layers is None or _kinds is None:
        return False
    return any(layer.key() == _kinds.Jvp for layer in _layers() or [])


def vmap_is_running() -> bool:
    """Whether ``vmap`` is running."""
    if _layers is None or _kinds is None:
        return stand_ins.batching()
    return any(layer.key() == _kinds.Vmap for layer in _layers() or [])


def only_in_reverse() -> bool:
    """Whether the transforms that are running are ``grad``, ``vjp`` and ``vmap`` alone."""
    if _layers is None or _kinds is None:
        return False
    return all(layer.key() in (_kinds.Grad, _kinds.Vmap) for layer in _layers() or [])


def lone_vmaps() -> dict[int, int] | None:
    """The batch sizes of the ``vmap``s that are running, by their levels, the outermost first.

    None where another transform is running, or tensors cannot be taken out.
    """
    if None in (_kinds, _layers, _as_vmap, is_batched, place_of_batch, batched):
        return None
    layers = _layers() or []
    if isinstance(level_of, Missing) or any(x.key() != _kinds.Vmap for x in layers):
        return None
    return {x.level(): _as_vmap(x).batchSize() for x in layers}


def taken_out(x: Tensor) -> tuple[Tensor, dict[int, int]]:
    """What a tensor of ``vmap``s wraps, and for each of their levels the dimension of the members.

    Of a tensor of another transform the level is among them, too.
    """
    places: dict[int, int] = {}
    while wraps(x):
        level = level_of(x)
        if not is_batched(x):
            return x, {level: 0}
        place, x = place_of_batch(x), unwrapped(x)
        for key, at in places.items():
            places[key] = at + (at >= place)
        places[level] = place
    return x, places


def outside(function: Callable[[], Result]) -> Result:
    """Call ``function`` outside of all transforms; the modes may be those of a new thread."""
    if _cleared is None:
        with ThreadPoolExecutor(1) as thread:  # which no transform is running in
            return thread.submit(function).result()
    with _cleared():
        return function()


def applied(function: Any, inputs: Sequence[Any]) -> Any:
    """Apply an autograd function whose results are tensors, and whose arguments have no defaults.

    Under ``grad`` torch looks for tensors in nested containers, and makes a class, in every call,
    which takes as long as a step of a small network.
    """
    missing = None in (_kinds, _layers, _of_one_level, _current, _into, _out_of, _Single)
    layers = (not missing and _layers()) or []
    if not layers or layers[-1].key() != _kinds.Grad or not only_in_reverse():
        return function.apply(*inputs)
    with _of_one_level():
        return _at_one_level(function).apply(*inputs)


@cache
def _at_one_level(function: Any) -> Any:
    """An autograd function that the innermost ``grad`` follows, and takes around it."""

    def forward(*inputs: Any) -> Any:
        layer = _current()
        level = layer.level()
        inside = [_out_of(x, level) if isinstance(x, Tensor) else x for x in inputs]
        with torch.enable_grad(), layer.lower():
            outputs = applied(function, inside)
        if isinstance(outputs, tuple):
            return tuple(_into(x, level) for x in outputs)
        return _into(outputs, level)

    parts = {"forward": forward, "setup_context": function.setup_context}
    parts["backward"] = function.backward
    return type(function.__name__, (_Single,), {k: staticmethod(x) for k, x in parts.items()})
