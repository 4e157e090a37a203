"""What is tried on sharded parameters: each case steps a plain twin too, and compares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from recipes import Recipe
from sharded_trees import assert_same, shard, tree, whole
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from trees import grads_like, leaves, tree_map

import functional_adamax as fa
from functional_adamax import compat

STEPS = 3
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
