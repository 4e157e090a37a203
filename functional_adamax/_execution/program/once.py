"""What belongs to the tree, computed once for a step, or once for members that are alike.

It is a number or a tensor of shape (); of members that may differ, a tensor of shape (members,) or
a tuple. No operation is done over members together, which might have other bits.
"""

from __future__ import annotations

from typing import Any

import torch

_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def tensor(x: Any) -> Any:
    """Return one tensor, of shape () or (members,)."""
    if isinstance(x, tuple):
        return torch.stack(list(map(tensor, x)))
    return torch.tensor(x, dtype=torch.float64, device="cpu") if type(x) is float else x


def single(x: Any) -> Any:
    """Return what an operation takes: a tensor of shape (), or a tuple with one for each member.

    Members with the same bits share one.
    """
    if isinstance(x, tuple):
        return tuple(map(tensor, x))
    if type(x) is float or x.dim() == 0:
        return tensor(x)
    bits = (x.view(_BITS[x.dtype]) if x.dtype in _BITS else x).tolist()
    first = {y: x[i] for y, i in {y: i for i, y in enumerate(bits)}.items()}
    return tuple(first[y] for y in bits)


def done(function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Return the result of an operation, a tuple where an argument is one."""
    many = [x for x in args if isinstance(x, tuple)]
    if not many:
        return function(*args, **kwargs)
    known: dict[tuple[int, ...], Any] = {}
    keys = [tuple(map(id, row)) for row in zip(*many, strict=True)]
    for i, key in enumerate(keys):
        if key not in known:
            known[key] = function(*(x[i] if isinstance(x, tuple) else x for x in args), **kwargs)
    return tuple(known[key] for key in keys)


def are_zero(total: Any) -> Any:
    """Return whether sums are zero, as ``single`` does."""
    if not isinstance(total, tuple):
        return torch.tensor(total == 0, device="cpu")
    answers = torch.tensor(False, device="cpu"), torch.tensor(True, device="cpu")
    return tuple(answers[x == 0] for x in total)
