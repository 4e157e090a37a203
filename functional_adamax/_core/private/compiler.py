"""What the compiler makes of numbers; imported late, for the compiler takes long to import.

For every float64 scalar on a CPU that comes in, Dynamo makes a symbol, in case the code asks for
its value. AOTAutograd marks the symbols that were not used (``tensorify_python_scalars``), and has
all code followed once more, without them. Marked beforehand, the code is followed once. The marks
outlive a compilation in ``TensorifyState``, where they would make constants of the numbers that get
the same names later, so those set here are taken back when it ends, or begins anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from torch import Tensor


def _find(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


def _is_static(x: Any) -> bool:
    del x
    return True


is_static: Callable[[Any], bool] = (
    _find("torch.fx.experimental.symbolic_shapes", "has_static_value") or _is_static
)
"""Whether a number is not known to change; one that is taken for static is compiled anew."""
_handler = _find("torch._dynamo.callback", "callback_handler")
_marks = _find("torch._dynamo.symbolic_convert", "TensorifyState")
_can_mark = (
    hasattr(_handler, "end_callbacks")
    and hasattr(_handler, "register_end_callback")
    and hasattr(_marks, "specialize")
    and hasattr(_marks, "force_specializations")
)
_names: set[str] = set()
_compilation: Any = None  # a weak reference to the symbols' environment


def leave_unread(counters: Iterable[Tensor]) -> None:
    """Tell Dynamo, while it follows code, that nothing asks these fake tensors for their value."""
    global _compilation
    if not _can_mark:
        return
    if _forget not in _handler.end_callbacks:  # or no longer, after a reset
        _handler.register_end_callback(_forget)
    for x in counters:
        node: Any = getattr(getattr(x, "item_memo", None), "node", None)
        symbol = getattr(node, "_expr", None)
        if symbol is None:
            continue
        if _compilation is None or _compilation() is not node.shape_env:
            _forget()
            _compilation = weakref.ref(node.shape_env)
        _marks.specialize(symbol.name)
        _names.add(symbol.name)
        x.item_memo = None  # type: ignore[attr-defined]  # or Dynamo would drop writes to it


def _forget(*_: Any) -> None:
    """Take the marks back."""
    _marks.force_specializations -= _names
    _names.clear()
