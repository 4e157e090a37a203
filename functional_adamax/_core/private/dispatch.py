"""The operations that reach torch's kernels, as a mode sees them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import Tensor

Mode: Any = object
"""What a class derives from that sees operations."""
with suppress(ImportError):
    from torch.utils import _python_dispatch

    Mode = getattr(_python_dispatch, "TorchDispatchMode", object)

IS_THERE = Mode is not object
"""Whether operations can be seen, and so recorded."""

READS = ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero")
"""What hands the value of a tensor to Python."""
VERSION = "_version"
"""The attribute that counts the writes to a tensor."""
CAST = "_to_copy"
"""What makes a tensor of another dtype, without ``aten::``."""


def name_of(function: Any) -> str:
    """The name of an operation, ``aten::add`` for example."""
    return str(function._schema.name)


def arguments_of(function: Any) -> list[Any]:
    """What an operation takes: names, default values, and what it writes to."""
    return list(function._schema.arguments)


def writes(function: Any) -> bool:
    """Whether an operation writes to something that it is given."""
    return bool(function._schema.is_mutable)


def memory_of(x: Tensor) -> int:
    """What is the same number for tensors in the same memory."""
    return int(x.untyped_storage()._cdata)
