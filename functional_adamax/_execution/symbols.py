"""What Dynamo makes of counters: numbers that nothing reads as numbers.

For every float64 scalar on a CPU that comes in, Dynamo makes a symbol, in case the code asks for
its value. AOTAutograd marks the symbols that were not used (``tensorify_python_scalars``), and has
all code followed once more, without them. Marked beforehand, the code is followed once. The marks
outlive a compilation in ``TensorifyState``, where they would make constants of the numbers that get
the same names later, so those set here are taken back when it ends, or begins anew. All this is
private to torch, as of 2.13.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch._dynamo.callback import callback_handler
from torch._dynamo.symbolic_convert import TensorifyState

_names: set[str] = set()
_compilation: Any = None  # a weak reference to the symbols' environment


def leave_unread(counters: Iterable[Tensor]) -> None:
    """Tell Dynamo, while it follows code, that nothing asks these fake tensors for their value."""
    global _compilation
    if _forget not in callback_handler.end_callbacks:  # or no longer, after a reset
        callback_handler.register_end_callback(_forget)
    for x in counters:
        symbol = getattr(x, "item_memo", None)
        if symbol is None:
            continue
        if _compilation is None or _compilation() is not symbol.node.shape_env:
            _forget()
            _compilation = weakref.ref(symbol.node.shape_env)
        name = symbol.node._expr.name
        TensorifyState.specialize(name)
        _names.add(name)
        x.item_memo = None  # type: ignore[attr-defined]  # or Dynamo would drop writes to it


def _forget(*_: Any) -> None:
    """Take the marks back."""
    TensorifyState.force_specializations -= _names
    _names.clear()
