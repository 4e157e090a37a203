"""Steps of sharded parameters against those of plain ones, in several processes.

``test_sharded.py`` runs it. Every process has the plain twin too, so that each judges for itself.
"""

from __future__ import annotations

import datetime
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import forked
import torch
from recipes import RECIPES
from sharded_cases import (
    STAGES,
    a_counter_of_the_users,
    a_plateau_of_a_sharded_value,
    beside_plain_leaves,
    classic,
    coupled_groups,
    derivatives,
    functional,
    implicit_derivatives,
    laid_out,
    numbers,
    optimizer_of,
    twin_of_torch,
)
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import functional_adamax as fa

PATIENCE = datetime.timedelta(seconds=30)  # with a process that does not come
COUPLED = (
    "clip_by_global_norm",
    "clip_by_block_rms",
    "adaptive_grad_clip",
    "sam",
    "sam-adaptive",
    "apply_if_finite",
    "add_noise",
)
GUARDS = ("zero_nans", "apply_if_finite", "multi_steps-schedule-sum-skip")

Case = Callable[[DeviceMesh], None]


def cases(which: str) -> Iterator[tuple[str, Case]]:
    for recipe in RECIPES:
        if which == "every" or recipe.name in COUPLED:
            yield f"{recipe}, functional", partial(functional, recipe)
            yield f"{recipe}, classic", partial(classic, partial(optimizer_of, recipe.default()))
        if recipe.name in GUARDS:
            make = partial(optimizer_of, recipe.default())
            yield f"{recipe}, NaN, functional", partial(functional, recipe, spoil=True)
            yield f"{recipe}, NaN, classic", partial(classic, make, spoil=True)
    for adaptive in (False, True):
        make = partial(optimizer_of, fa.sam(fa.adamax(0.1), 0.3, adaptive))
        yield f"sam with a closure, {adaptive=}", partial(classic, make, closure=True)
    yield "groups that are coupled", partial(classic, coupled_groups)
    yield "compat.Adamax", partial(classic, twin_of_torch)
    others = (numbers, beside_plain_leaves, a_counter_of_the_users, a_plateau_of_a_sharded_value)
    yield from ((case.__name__, case) for case in others)
    if which == "every":
        yield from ((case.__name__, case) for case in (derivatives, implicit_derivatives))
    if which == "layouts":
        for name in STAGES:
            yield f"layouts, {name}", partial(laid_out, name, torch.float32)
        for name in ("clip_by_global_norm", "add_noise"):
            yield f"layouts, complex, {name}", partial(laid_out, name, torch.complex64)


def work(rank: int, size: int, folder: Path, which: str) -> None:
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    mesh = init_device_mesh("cpu", (size,))
    failed = 0
    for name, case in cases(which):
        result = "right"
        try:
            case(mesh)
        except Exception:
            result = "wrong"
            print(f"--- {name}, process {rank} of {size}\n{traceback.format_exc()}", flush=True)
        failed += result == "wrong"
        store.set(f"{name}/{rank}", result)
        keys = [f"{name}/{r}" for r in range(size)]
        store.wait(keys, 2 * PATIENCE)
        if len({store.get(key) for key in keys}) > 1:
            sys.exit(f"--- {name}: wrong on some processes, which are out of step now")
    dist.destroy_process_group()
    sys.exit(failed > 0)


if __name__ == "__main__":
    sys.exit(forked.run(work, int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
