"""Tensors whose elements lie on many processes: the DTensors of ``torch.distributed``.

Operations on elements take them like any tensor. Here is what a reduction needs besides: that a
process without an element of a leaf takes part all the same, and that a number about a tree is a
plain tensor, the same on every process. A plain tensor passes through all of it unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter


def is_sharded(x: Tensor) -> bool:
    """Whether ``x`` is a DTensor."""
    if type(x) in (Tensor, Parameter) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor  # which takes long to import

    return isinstance(x, DTensor)


def whole(x: Tensor) -> Tensor:
    """``x`` as a plain tensor, all of it on every process."""
    full: Tensor = x.full_tensor() if is_sharded(x) else x  # type: ignore[attr-defined]
    return full


def settled(x: Any) -> Tensor:
    """``x`` without a reduction between processes that is still to come."""
    done: Tensor = x.redistribute(placements=_known(x)) if is_sharded(x) else x
    return done


def combined(operation: Callable[[Tensor, Tensor], Tensor], numbers: list[Tensor]) -> Tensor:
    """The 0-d tensors ``numbers`` as a plain one; those laid out alike are sent as one."""
    alike: dict[Any, list[Tensor]] = {}
    for x in numbers:
        layout = (x.device_mesh, x.placements) if is_sharded(x) else None  # type: ignore[attr-defined]
        alike.setdefault(layout, []).append(x)
    return reduce(operation, [whole(reduce(operation, some)) for some in alike.values()])


def largest(x: Any, dims: tuple[int, ...] | None = None) -> Tensor:
    """The largest element of ``x >= 0``, or along ``dims``, which stay; 0 if there is none here.

    Of a DTensor with the reduction between processes still to come.
    """
    keep = dims is not None
    dims = tuple(range(x.dim())) if dims is None else dims
    if not is_sharded(x):
        found: Tensor = x.amax(dims, keepdim=keep)
        return found
    from torch.distributed.tensor import DTensor, Partial

    local, form = x.to_local(), torch.empty(x.shape, device="meta").sum(dims, keepdim=keep)
    here = local.amax(dims, keepdim=keep) if local.numel() else local.sum(dims, keepdim=keep)
    placements = [Partial("max") if _dim(p) in dims else p for p in x.placements]
    return DTensor.from_local(
        here, x.device_mesh, placements, shape=form.shape, stride=form.stride()
    )


def positions(x: Any) -> Tensor:
    """Where in the whole leaf, flattened, the elements of the DTensor ``x`` that lie here are."""
    from torch.distributed.tensor import Replicate

    index, stride = torch.zeros((), dtype=torch.int64, device=x.device), 1
    for i in reversed(range(x.dim())):
        shape = [-1 if j == i else 1 for j in range(x.dim())]
        along = torch.arange(x.shape[i], device=x.device).reshape(shape)
        placements = [p if _dim(p) == i else Replicate() for p in x.placements]
        here = beside(along, x).redistribute(placements=placements).to_local()
        index, stride = index + stride * here, stride * x.shape[i]
    return index


def from_shard(local: Tensor, like: Any) -> Tensor:
    """A DTensor of the elements that lie here, in the form of the DTensor ``like``."""
    from torch.distributed.tensor import DTensor

    form = torch.empty(like.shape, device="meta")
    return DTensor.from_local(
        local, like.device_mesh, _known(like), shape=form.shape, stride=form.stride()
    )


def placed_like(target: Any, x: Tensor) -> Tensor:
    """``x`` where the elements of ``target`` are: torch may choose other places for a result."""
    if not is_sharded(x) or not is_sharded(target):
        return whole(x)
    places, given = _known(target), cast(Any, x)
    if list(given.placements) == places:
        return x
    moved: Tensor = given.redistribute(target.device_mesh, places)
    return moved


def beside(number: Any, x: Any) -> Any:
    """A tensor ``number`` on the device of ``x``, and a DTensor, known everywhere, if ``x`` is one.

    An operation takes a plain number beside a DTensor, but its derivative does not.
    """
    if not isinstance(number, Tensor):
        return number
    number = number.to(x.device)
    if not is_sharded(x) or is_sharded(number):
        return number
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(number, x.device_mesh, [Replicate()] * x.device_mesh.ndim)


def expanded_as(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the shape of ``like``, and a DTensor if ``like`` is one."""
    return torch.ones_like(like) * beside(x, like) if is_sharded(like) else x.expand_as(like)


def _known(x: Any) -> list[Any]:
    """The placements of ``x`` after every reduction between processes."""
    from torch.distributed.tensor import Replicate

    return [Replicate() if p.is_partial() else p for p in x.placements]


def _dim(placement: Any) -> int | None:
    """Along which dimension a placement cuts, or None."""
    dim: int | None = getattr(placement, "dim", None)
    return dim
