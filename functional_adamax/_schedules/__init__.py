"""Numbers that are functions of the count of steps, and the transform that asks them."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Find what was in the module of this name before there were folders, as pickles ask for it."""
    return getattr(import_module(f"{__name__}.formulas"), name)
