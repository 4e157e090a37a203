"""Steps of sharded parameters against those of plain ones, in several processes.

``test_sharded.py`` runs it. Every process has the plain twin too, so that each judges for itself.
"""

from __future__ import annotations

import datetime
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from recipes import RECIPES, Recipe
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from trees import Pair, grads_like, leaves, tree_map

import functional_adamax as fa
from functional_adamax import compat

PATIENCE = datetime.timedelta(seconds=30)  # with a process that does not come
STEPS = 3
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
STAGES = {
    "clip_by_global_norm": fa.clip_by_global_norm(0.5),
    "clip_by_block_rms": fa.clip_by_block_rms(0.1),
    "adaptive_grad_clip": fa.adaptive_grad_clip(0.01),
    "add_noise": fa.add_noise(0.1, 0.5),
    "centralize": fa.centralize(),
    "cautious": fa.cautious(fa.sgd(0.1, 0.9)),
    "apply_if_finite": fa.apply_if_finite(fa.adamax(0.1), 2),
}
LAYOUTS: list[list[Placement]] = [
    [Replicate(), Replicate()],
    [Replicate(), Shard(0)],
    [Shard(0), Replicate()],
    [Shard(0), Shard(0)],
    [Shard(1), Shard(0)],
    [_StridedShard(0, split_factor=2), Shard(0)],  # FSDP2 over tensor parallelism
]

Case = Callable[[DeviceMesh], None]


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


def functional(recipe: Recipe, mesh: DeviceMesh, *, spoil: bool = False) -> None:
    """A pure step, then donated ones; with ``spoil``, one process has a NaN in a gradient."""
    torch.manual_seed(0)
    tx, plain = recipe.default(), tree()
    sharded = shard(plain, mesh)
    state, sharded_state = tx.init(plain), tx.init(sharded)
    for i in range(STEPS):
        grads = grads_like(plain)
        if spoil and i == 1:
            grads["w"][-1, 0] = torch.nan
        shards = shard(grads, mesh)
        plain, state = fa.step(tx, grads, state, plain)
        sharded, sharded_state = fa.step(tx, shards, sharded_state, sharded, donate=i > 0)
    assert all(x.isfinite().all() for x in leaves(plain))
    assert_same(sharded, plain)
    assert_same(sharded_state, state)


class Net(nn.Module):
    """The same kinds of leaves, under the same names, as parameters of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(4, 5, bias=False)
        self.layers = nn.ModuleList([nn.Linear(5, 3), nn.Linear(3, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.w, *self.layers):
            x = layer(x).tanh()
        return x


def classic(
    make: Callable[[Any], torch.optim.Optimizer],
    mesh: DeviceMesh,
    *,
    closure: bool = False,
    spoil: bool = False,
) -> None:
    """Train a model, and its twin under FSDP2, with a torch optimizer."""
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(Net())
    fully_shard(nets[1], mesh=mesh)
    optimizers = [make(net.named_parameters()) for net in nets]
    for i in range(STEPS):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(i))
        for net, optimizer in zip(nets, optimizers, strict=True):

            def loss(net: nn.Module = net, optimizer: Any = optimizer, x: Any = x) -> Any:
                optimizer.zero_grad()
                value = (net(x) - 1).square().sum()
                value.backward()
                return value

            if closure:
                optimizer.step(loss)
                continue
            loss()
            if spoil and i == 1:
                g = net.w.weight.grad
                local = g.to_local() if isinstance(g, DTensor) else g
                if not isinstance(g, DTensor) or mesh.get_rank() == 0:
                    local[0, 0] = torch.nan
            optimizer.step()
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert p.isfinite().all()
        assert_same(q.detach(), p.detach())
        state, twin = (o.state[r] for o, r in zip(optimizers, (p, q), strict=True))
        assert state.keys() == twin.keys()
        assert_same(list(twin.values()), list(state.values()))


def optimizer_of(tx: Any, params: Any) -> torch.optim.Optimizer:
    return compat.Optimizer(params, tx)


def coupled_groups(params: Any) -> torch.optim.Optimizer:
    first, *rest = params
    groups = [{"params": [first], "lr": 0.05}, {"params": rest}]
    return compat.Optimizer(groups, clipped, couple="all", lr=0.1)


def clipped(lr: Any) -> fa.GradientTransformation:
    return fa.chain(fa.clip_by_global_norm(0.1), fa.adamax(lr))


def twin_of_torch(params: Any) -> torch.optim.Optimizer:
    return compat.Adamax(params, lr=0.1, weight_decay=0.1)


def beside_plain_leaves(mesh: DeviceMesh) -> None:
    """A tree of which one leaf is plain, as of a module that FSDP was told to ignore."""
    torch.manual_seed(0)
    tx = fa.chain(*STAGES.values())
    plain = tree()
    shape = (3,)
    sharded = shard(plain, mesh, plain=[shape])
    state, sharded_state = tx.init(plain), tx.init(sharded)
    for _ in range(STEPS):
        grads = grads_like(plain)
        shards = shard(grads, mesh, plain=[shape])
        plain, state = fa.step(tx, grads, state, plain)
        sharded, sharded_state = fa.step(tx, shards, sharded_state, sharded, donate=True)
    assert not isinstance(sharded["layers"][0].left, DTensor)
    torch.testing.assert_close(leaves(whole(sharded)), leaves(plain), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(leaves(whole(sharded_state)), leaves(state), rtol=1e-6, atol=1e-6)


class Seen(NamedTuple):
    count: torch.Tensor


def none_seen(params: Any) -> Seen:
    return Seen(torch.zeros(()))


def count_negatives(updates: Any, state: Seen, params: Any = None) -> tuple[Any, Seen]:
    return updates, Seen(state.count + sum((u < 0).sum() for u in leaves(updates)))


def a_counter_of_the_users(mesh: DeviceMesh) -> None:
    """Donated, it stays the plain tensor that ``init`` made, though the sum is a DTensor.

    It is no integer: of one, torch makes a float when it adds a sum between processes.
    """
    tx = fa.GradientTransformation(none_seen, count_negatives)
    plain = tree()
    grads = shard(tree_map(lambda x: -torch.ones_like(x), plain), mesh)
    params = shard(plain, mesh)
    state = fa.step(tx, grads, tx.init(params), params, donate=True)[1]
    assert type(state.count) is torch.Tensor
    assert state.count == 22


def numbers(mesh: DeviceMesh) -> None:
    """A norm is a plain number, the same on every process, also of gradients still to be summed."""
    plain = tree()
    norm = fa.global_norm(shard(plain, mesh))
    assert type(norm) is torch.Tensor
    torch.testing.assert_close(norm, fa.global_norm(plain))
    part = DTensor.from_local(torch.full((2,), 1.0 + mesh.get_rank()), mesh, [Partial()])
    size = mesh.size()
    torch.testing.assert_close(fa.global_norm(part), torch.tensor(2**0.5 * size * (size + 1) / 2))


def a_plateau_of_a_sharded_value(mesh: DeviceMesh) -> None:
    tx = fa.reduce_on_plateau(0.5, patience=1)
    params = shard(torch.ones(1, 2), mesh)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, value=params.sum())
    assert_same(list(state), [x.clone() for x in state])
    assert_same(updates, torch.full((1, 2), 0.5))


def with_elements() -> list[torch.Tensor]:
    """torch makes no view of a DTensor without elements, and so no loop over it."""
    return [x for x in leaves(tree(torch.float64)) if x.numel()]


def derivatives(mesh: DeviceMesh) -> None:
    """Of parameters after a differentiated loop, with respect to the first ones."""
    torch.manual_seed(0)
    plain = with_elements()
    rate = fa.adamax(0.1, derivative_floor=1e-3)
    guards = [fa.clip_by_global_norm(0.5), fa.clip_by_block_rms(0.2), fa.adaptive_grad_clip(0.1)]
    tx = fa.sam(fa.chain(*guards, rate), 0.3)
    found = []
    for params in (shard(plain, mesh), plain):
        start = [x.detach().requires_grad_() for x in params]
        end = fa.unroll(quadratic, tx, start, [1.0, 2.0]).params
        found.append(whole(torch.autograd.grad(sum((x**3).sum() for x in end), start)))
    torch.testing.assert_close(*found)


def quadratic(params: Any, batch: float) -> torch.Tensor:
    return sum((x * batch - 1).square().sum() for x in params)


def implicit_derivatives(mesh: DeviceMesh) -> None:
    torch.manual_seed(0)
    plain = with_elements()
    found = []
    for start in (shard(plain, mesh), plain):
        targets = [x.detach().clone().requires_grad_() for x in start]
        loss = partial(distance, targets)
        end = fa.implicit(loss, fa.sgd(0.1), start, [None] * 10).params
        found.append(whole(torch.autograd.grad(sum((x**3).sum() for x in end), targets)))
    torch.testing.assert_close(*found)


def distance(targets: Any, params: Any, batch: None) -> torch.Tensor:
    return sum((x - y).square().sum() for x, y in zip(params, targets, strict=True))


def laid_out(name: str, dtype: torch.dtype, world: DeviceMesh) -> None:
    """A step does not depend on where the elements are, on a mesh of two axes."""
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2, world.size() // 2))
    tx, params = STAGES[name], {"a": torch.randn(3, 4), "b": torch.randn(1, 4)}
    params = tree_map(lambda x: x.to(dtype), params)
    grads = grads_like(params)
    expected = fa.step(tx, grads, tx.init(params), params)[0]
    for placements in LAYOUTS:
        there, given = shard(params, mesh, placements), shard(grads, mesh, placements)
        assert_same(fa.step(tx, given, tx.init(there), there)[0], expected, placements)


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


def main(size: int, folder: Path, which: str) -> int:
    """Fork the processes, which spares each the imports."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(r, size, folder, which)) for r in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
