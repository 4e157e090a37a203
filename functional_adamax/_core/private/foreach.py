"""torch's operations on many tensors at a time, which it documents by the word ``foreach`` only.

Those that an executor is made of are None where torch has not all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _add(targets: Sequence[Tensor], term: Tensor | float, alpha: float = 1.0) -> None:
    for target in targets:
        target.add_(term, alpha=alpha)


neg: Any = getattr(torch, "_foreach_neg", None)
add: Any = getattr(torch, "_foreach_add", None)
abs_of: Any = getattr(torch, "_foreach_abs", None)
lerp_: Any = getattr(torch, "_foreach_lerp_", None)
mul_: Any = getattr(torch, "_foreach_mul_", None)
maximum_: Any = getattr(torch, "_foreach_maximum_", None)
addcdiv_: Any = getattr(torch, "_foreach_addcdiv_", None)
add_: Any = getattr(torch, "_foreach_add_", _add)
copy_: Any = getattr(torch, "_foreach_copy_", _copy)

IS_WHOLE = None not in (neg, add, abs_of, lerp_, mul_, maximum_, addcdiv_)
