"""Optimizers as pure functions over trees of tensors, for PyTorch.

A transform is a pair ``(init, update)``; ``functional_adamax.compat`` turns it into a
``torch.optim.Optimizer``. The way a gradient takes through the files: ``_decay`` conditions
it, ``_adamax`` finds the direction, ``_scale`` gives the step its length, ``_apply`` adds it
to the parameters; ``_chain`` joins the stages and ``_step`` runs them all.
"""

from __future__ import annotations

import ast
import pkgutil
from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def _homes() -> dict[str, str]:
    """The module of each public name, from the stub beside this file, which lists them once."""
    stub = ast.parse(pkgutil.get_data(__name__, "__init__.pyi") or b"")
    found = (x for x in stub.body if isinstance(x, ast.ImportFrom))
    return {alias.name: str(x.module) for x in found for alias in x.names}


_HOME = _homes()
"""A module is imported when one of its names is first used."""

__all__ = sorted(_HOME)

_IN_COMPAT = ("Adamax", "Optimizer", "as_transform", "inner_loop", "wrap")
"""What is looked for here by mistake."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        missing = f"module {__name__!r} has no attribute {name!r}"
        if name in ("compat", *_IN_COMPAT):
            missing += f": import {__name__}.compat, which has the optimizers with step()"
        raise AttributeError(missing)
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
