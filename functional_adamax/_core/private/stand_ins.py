"""What stands for names that torch does not have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from threading import local
from typing import Any, NoReturn

import torch
from torch.autograd import forward_ad


@dataclass(frozen=True)
class Missing:
    """A function of torch without which it is not known what a function closes over."""

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"torch {torch.__version__} has no {self.name}, by which the tensors are found that a "
            "loss closes over: take unroll, without checkpoint, or another version of torch"
        )


class _Answer(local):
    """What the last question of a thread was answered."""

    is_on = False


_answer = _Answer()


def _say_off() -> None:
    _answer.is_on = False


def _say_on() -> None:
    _answer.is_on = True


@cache
def _question(key: str) -> Callable[[], None]:
    """An operator without results, which a tracer would keep, and that no mode sees."""
    name = f"is_on_{key}"
    torch.library.define(f"functional_adamax::{name}", "() -> ()")
    for off in ("CompositeExplicitAutograd", "Python"):
        torch.library.impl(f"functional_adamax::{name}", off, _say_off)
    torch.library.impl(f"functional_adamax::{name}", key, _say_on)
    operator: Callable[[], None] = getattr(torch.ops.functional_adamax, name).default
    return operator


def _is_on(key: str) -> bool:
    """Whether torch is in the state in which it calls kernels of a dispatch key."""
    _question(key)()
    return _answer.is_on


def transforming() -> bool:
    """Whether a transform of ``torch.func`` is running."""
    return _is_on("FuncTorchDynamicLayerFrontMode")


def batching() -> bool:
    """Whether ``vmap`` is running."""
    return _is_on("FuncTorchVmapMode")


def dispatching() -> bool:
    """Whether a mode sees the operations that torch dispatches."""
    return _is_on("PythonTLSSnapshot")


def dual_level() -> int:
    """The level of forward-mode differentiation, -1 outside of it."""
    try:
        level = forward_ad.enter_dual_level()  # type: ignore[no-untyped-call]
    except RuntimeError:  # one is running, and torch has no second
        return 0
    forward_ad.exit_dual_level(level=level)  # type: ignore[no-untyped-call]
    return -1
