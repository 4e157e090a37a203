"""What Dynamo makes of counters: numbers that nothing reads as numbers.

For every float64 scalar on a CPU that comes in, Dynamo makes a symbol, in case the code asks for
its value. That nothing has asked is found out when the graph has been compiled; the symbols' names
are kept, and all code is followed once more. Said beforehand, the code is followed once. Names of
an earlier compilation would make constants of other numbers here, so they are taken back.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch._dynamo.symbolic_convert import TensorifyState

_names: set[str] = set()
_compilation: Any = None  # a weak reference to the symbols' environment


def leave_unread(counters: Iterable[Tensor]) -> None:
    """Tell Dynamo, while it follows code, that nothing asks these fake tensors for their value."""
    global _compilation
    for x in counters:
        symbol = getattr(x, "item_memo", None)
        if symbol is None:
            continue
        if _compilation is None or _compilation() is not symbol.node.shape_env:
            TensorifyState.force_specializations -= _names
            _names.clear()
            _compilation = weakref.ref(symbol.node.shape_env)
        name = symbol.node._expr.name
        TensorifyState.specialize(name)
        _names.add(name)
