"""Trees of sharded tensors, and how they are compared with plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from trees import Pair, leaves, tree_map


def tree(dtype: torch.dtype = torch.float32) -> Any:
    """A layer of one row, one of none, and others that the processes do or do not divide."""
    return {
        "w": torch.randn(5, 3, dtype=dtype),
        "layers": [
            Pair(torch.randn(3, dtype=dtype), torch.randn(1, 4, dtype=dtype)),
            (torch.randn(0, 2, dtype=dtype),),
        ],
    }


def shard(
    given: Any, mesh: DeviceMesh, placements: Sequence[Placement] = (Shard(0),), plain: Any = ()
) -> Any:
    """The tree as DTensors, but for the leaves of the shapes ``plain``."""

    def cut(x: torch.Tensor) -> torch.Tensor:
        if tuple(x.shape) in plain:
            return x.clone()
        known = DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim)
        return known.redistribute(placements=[p if x.dim() else Replicate() for p in placements])

    return tree_map(cut, given)


def whole(given: Any) -> Any:
    return tree_map(lambda x: x.full_tensor() if isinstance(x, DTensor) else x, given)


def assert_same(sharded: Any, plain: Any, placements: Sequence[Placement] = (Shard(0),)) -> None:
    """Equal, in the places of the parameters; and numbers about the tree are plain."""
    for x, y in zip(leaves(sharded), leaves(plain), strict=True):
        if not isinstance(y, torch.Tensor):
            assert x == y
            continue
        assert isinstance(x, DTensor) == (y.dim() > 0)
        assert not isinstance(x, DTensor) or list(x.placements) == list(placements), x.placements
    torch.testing.assert_close(leaves(whole(sharded)), leaves(plain), rtol=1e-6, atol=1e-6)
