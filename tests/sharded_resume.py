"""A few steps of sharded parameters, from a checkpoint and to one, in any number of processes.

``test_sharded.py`` runs it. The gradients are given, so that they do not depend on the number.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import forked
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

import functional_adamax as fa
from functional_adamax.compat import Adamax, Optimizer

CHAIN = fa.chain(
    fa.clip_by_global_norm(1.0),
    fa.nadamax(fa.cosine_decay_schedule(0.1, 40)),
)
MAKE = {
    "Adamax": lambda params: Adamax(params, lr=0.1, weight_decay=0.01),
    "chain": lambda params: Optimizer(params, CHAIN),
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) for p in model().parameters()]


def steps(module: nn.Module, optimizer: Any, start: int, end: int) -> None:
    for step in range(start, end):
        for p, g in zip(module.parameters(), gradients(step), strict=True):
            whole = not hasattr(p, "device_mesh")
            p.grad = g if whole else distribute_tensor(g, p.device_mesh, p.placements)
        optimizer.step()


def work(rank: int, size: int, folder: Path, start: int, end: int) -> None:
    store = dist.FileStore(str(folder / f"store {start}"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    for name in MAKE:
        go_on(name, size, folder, start, end)
    dist.destroy_process_group()


def go_on(name: str, size: int, folder: Path, start: int, end: int) -> None:
    """Take steps from one checkpoint to another, and compare with a run that was never broken."""
    module, plain = model(), model()
    fully_shard(module, mesh=init_device_mesh("cpu", (size,)))
    optimizer = MAKE[name](module.parameters())
    if start:
        weights, moments = get_state_dict(module, optimizer)
        saved = {"model": weights, "optimizer": moments}
        checkpoint.load(saved, checkpoint_id=folder / f"{name} {start}")
        set_state_dict(module, optimizer, model_state_dict=weights, optim_state_dict=moments)
    steps(module, optimizer, start, end)
    weights, moments = get_state_dict(module, optimizer)
    checkpoint.save(
        {"model": weights, "optimizer": moments}, checkpoint_id=folder / f"{name} {end}"
    )

    steps(plain, MAKE[name](plain.parameters()), 0, end)
    for p, twin in zip(module.parameters(), plain.parameters(), strict=True):
        got = p.full_tensor()
        assert torch.equal(got, twin) if name == "Adamax" else torch.allclose(got, twin, 1e-6, 0)


if __name__ == "__main__":
    number, where, first, last = sys.argv[1:]
    sys.exit(forked.run(work, int(number), Path(where), int(first), int(last)))
