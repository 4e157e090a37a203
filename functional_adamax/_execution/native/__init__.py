"""The executor written in C: its sources, what calls it, and what proves its bits."""

from __future__ import annotations

import importlib
import os
from typing import Any


def loaded(name: str) -> tuple[Any, str]:
    """Return a module of this folder that is written in C, or None and why it is not there."""
    if os.environ.get("FUNCTIONAL_ADAMAX_NATIVE", "1") == "0":
        return None, "switched off by FUNCTIONAL_ADAMAX_NATIVE=0"
    try:
        return importlib.import_module(f"{__name__}.{name}"), ""
    except ModuleNotFoundError:
        return None, "built without a C compiler"
    except ImportError as problem:  # of which the module says the reason
        return None, str(problem)
