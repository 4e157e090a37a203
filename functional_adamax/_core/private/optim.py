"""What ``torch.optim`` decides by itself, for the optimizers of ``compat`` alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import optimizer


def _fused_or_foreach(
    params: list[Tensor], differentiable: bool, use_fused: bool
) -> tuple[bool, bool]:
    plain = all(type(p) in (Tensor, Parameter) and p.device.type in ("cuda", "xpu") for p in params)
    return use_fused, plain and not differentiable


def _devices(supports_xla: bool) -> list[str]:
    return ["cuda", "xpu", "hpu", *(["xla"] if supports_xla else [])]


def _check_capture(stepped: optimizer.Optimizer) -> None:
    if torch.compiler.is_compiling() or not torch.cuda.is_available():
        return
    capturable = all(group["capturable"] for group in stepped.param_groups)
    if torch.cuda.is_current_stream_capturing() and not capturable:
        raise RuntimeError(
            f"Attempting CUDA graph capture of step() for an instance of {type(stepped).__name__} "
            "but param_groups' capturable is False."
        )


fused_or_foreach: Callable[..., tuple[bool, bool]] = getattr(
    optimizer, "_default_to_fused_or_foreach", _fused_or_foreach
)
"""Which forms a step takes by default."""
capturable_devices: Callable[..., list[str]] = getattr(
    optimizer, "_get_capturable_supported_devices", _devices
)
"""The types of devices on which ``capturable=True`` is taken."""
check_capture: Callable[[Any], None] = getattr(
    optimizer.Optimizer, "_accelerator_graph_capture_health_check", _check_capture
)
"""Raise where a graph would hold a step that cannot be in one."""


@contextmanager
def _hooked(
    name: str, register: str, first: bool, stepped: optimizer.Optimizer, hook: Callable[..., Any]
) -> Iterator[None]:
    hooks = getattr(stepped, name, None)
    if hooks is None:
        handle = getattr(stepped, register)(hook, prepend=first)
        try:
            yield
        finally:
            handle.remove()
        return
    given = {-1: hook, **hooks} if first else {**hooks, -1: hook}
    setattr(stepped, name, OrderedDict(given))
    try:
        yield
    finally:
        setattr(stepped, name, hooks)


load_hook = partial(
    _hooked, "_optimizer_load_state_dict_pre_hooks", "register_load_state_dict_pre_hook", False
)
"""A context in which a hook for loading comes last; other hooks may remove themselves."""
state_hook = partial(
    _hooked, "_optimizer_state_dict_post_hooks", "register_state_dict_post_hook", True
)
"""A context in which a hook for ``state_dict`` comes first."""
