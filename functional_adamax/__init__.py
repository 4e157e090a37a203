"""Optimizers as pure functions over trees of tensors, for PyTorch.

A transform is a pair ``(init, update)``; ``functional_adamax.compat`` turns it into a
``torch.optim.Optimizer``. ``_transforms`` holds what a chain is made of, ``_methods`` the
optimizers, ``_schedules`` learning rates that are functions of time, ``_loops`` training that is
differentiated; ``_execution`` decides who steps which tensors, ``_core`` is the ground of all.
"""

from __future__ import annotations

import ast
import pkgutil
import sys
from importlib import import_module
from typing import Any

from . import _moved

__version__ = "0.1.0"

sys.meta_path.append(_moved.finder)


def _homes() -> dict[str, str]:
    """The module of each public name, from the stub beside this file, which lists them once."""
    stub = ast.parse(pkgutil.get_data(__name__, "__init__.pyi") or b"")
    found = (x for x in stub.body if isinstance(x, ast.ImportFrom))
    return {alias.name: str(x.module) for x in found for alias in x.names}


_HOME = _homes()
"""A module is imported when one of its names is first used."""

__all__ = sorted(_HOME)

_TAKE_HYPERPARAMETERS = ("Curve", "GradientTransformation", "Callable[..., GradientTransformation]")
"""What those public functions return, in whose arguments the words of other libraries are met."""

_IN_COMPAT = ("Adamax", "Optimizer", "as_transform", "inner_loop", "wrap")
"""What is looked for here by mistake."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        missing = f"module {__name__!r} has no attribute {name!r}"
        if name in ("compat", *_IN_COMPAT):
            missing += f": import {__name__}.compat, which has the optimizers with step()"
        raise AttributeError(missing)
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    if getattr(value, "__annotations__", {}).get("return") in _TAKE_HYPERPARAMETERS:
        value = import_module("._core.spelling", __name__).explains_misfits(value)
        value.__module__ = __name__  # where it is found, by pickles among others
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
