"""The distributed wrappers and checkpoint helpers of torch, in one process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import functional_adamax as fa
from functional_adamax.compat import Adamax, Optimizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:torch")


@pytest.fixture
def world() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def train(module: Any, optimizer: Any, steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(3, 4, generator=generator)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["number", "tensor"])
def test_checkpoint_helpers_before_and_after_a_step(lr: Any) -> None:
    net = model()
    optimizer = Adamax(net.parameters(), lr=copy.copy(lr), weight_decay=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    saved = get_optimizer_state_dict(net, optimizer)  # takes a step with lr = 0 behind the scenes
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert set(saved["param_groups"][0]) == {*optimizer.param_groups[0]}

    train(net, optimizer, 3)
    saved = copy.deepcopy(get_optimizer_state_dict(net, optimizer))
    twin = copy.deepcopy(net)
    resumed = Adamax(twin.parameters())
    set_optimizer_state_dict(twin, resumed, saved)
    for module, opt in ((net, optimizer), (twin, resumed)):
        train(module, opt, 3, seed=2)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


def recipe(lr: Any = 0.01, max_norm: float = 1.0) -> fa.GradientTransformation:
    return fa.chain(
        fa.clip_by_global_norm(max_norm),
        fa.masked(fa.add_decayed_weights(0.1), fa.by_path(lambda name: "weight" in name)),
        fa.scale_by_nadamax(),
        fa.scale_by_learning_rate(lr),
    )


@pytest.mark.filterwarnings("ignore:by_path is asked")  # of parameters without names
@pytest.mark.parametrize("rate", ["number", "schedule"])
@pytest.mark.parametrize("named", [False, True])
def test_checkpoint_helpers_on_a_wrapped_chain(rate: str, named: bool) -> None:
    lr = fa.cosine_decay_schedule(0.1, 10) if rate == "schedule" else 0.05

    def make(net: torch.nn.Module) -> Optimizer:
        params = net.named_parameters() if named else net.parameters()
        return Optimizer(params, recipe, lr=lr)

    net = model()
    optimizer = make(net)
    train(net, optimizer, 3)
    saved = copy.deepcopy(get_optimizer_state_dict(net, optimizer))
    assert "exp_avg" in saved["state"]["0.weight"]
    flat = get_optimizer_state_dict(
        net, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True)
    )
    assert "state.0.weight.exp_avg" in flat
    twin = copy.deepcopy(net)
    resumed = make(twin)
    set_optimizer_state_dict(twin, resumed, saved)
    for module, opt in ((net, optimizer), (twin, resumed)):
        train(module, opt, 3, seed=2)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.usefixtures("world")
def test_a_wrapped_chain_on_sharded_parameters() -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    plain, sharded = model(), model()
    fully_shard(sharded, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    factory = fa.chain(fa.clip(0.5), fa.nadamax(0.01))
    a, b = (Optimizer(net.parameters(), factory) for net in (plain, sharded))
    train(plain, a, 5)
    train(sharded, b, 5)
    for p, q in zip(plain.parameters(), sharded.parameters(), strict=True):
        assert isinstance(b.state[q]["exp_avg"], DTensor)
        torch.testing.assert_close(p.detach(), q.full_tensor().detach())


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("foreach", [None, False, True])
def test_sharded_parameters_have_sharded_state(foreach: bool | None) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    plain, sharded = model(), model()
    fully_shard(sharded, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    a = Adamax(plain.parameters(), weight_decay=0.1)
    b = Adamax(sharded.parameters(), weight_decay=0.1, foreach=foreach)
    train(plain, a, 5)
    train(sharded, b, 5)
    for p, q in zip(plain.parameters(), sharded.parameters(), strict=True):
        assert isinstance(q, DTensor)
        assert isinstance(b.state[q]["exp_avg"], DTensor)
        assert not isinstance(b.state[q]["step"], DTensor)
        assert torch.equal(p, q.full_tensor())
        for name in ("exp_avg", "exp_inf"):
            assert torch.equal(a.state[p][name], b.state[q][name].full_tensor())


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("donate", [False, True])
def test_functional_steps_of_sharded_parameters(donate: bool) -> None:
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    rate = torch.tensor(0.1)
    chain = fa.chain(fa.scale_by_adamax(), fa.scale_by_learning_rate(rate))
    for tx in (fa.adamax(0.1, weight_decay=0.1), fa.adamaxw(rate), chain):
        plain = torch.randn(4, 3)
        sharded = distribute_tensor(plain.clone(), mesh, [Shard(0)])
        state, sharded_state = tx.init(plain), tx.init(sharded)
        for _ in range(3):
            g = torch.randn(4, 3)
            plain, state = fa.step(tx, g, state, plain)
            shards = distribute_tensor(g, mesh, [Shard(0)])
            sharded, sharded_state = fa.step(tx, shards, sharded_state, sharded, donate=donate)
            assert isinstance(sharded, DTensor)
            assert torch.equal(sharded.full_tensor(), plain)


@pytest.mark.usefixtures("world")
def test_compiled_steps_of_sharded_parameters() -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    clips = fa.clip_by_global_norm(0.5), fa.clip_by_block_rms(0.1), fa.adaptive_grad_clip(0.1)
    tx = fa.chain(*clips, fa.add_noise(0.1, 0.5), fa.apply_if_finite(fa.adamax(0.1), 2))
    step = torch.compile(partial(fa.step, tx), fullgraph=True, backend="eager")
    plain, grads = torch.randn(4, 3), torch.randn(4, 3)
    sharded, shards = (distribute_tensor(x, mesh, [Shard(0)]) for x in (plain, grads))
    state, sharded_state = tx.init(plain), tx.init(sharded)
    for _ in range(2):
        plain, state = fa.step(tx, grads, state, plain)
        sharded, sharded_state = step(shards, sharded_state, sharded)
    torch.testing.assert_close(sharded.full_tensor(), plain)


@pytest.mark.usefixtures("world")
def test_zero_redundancy_optimizer() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    plain, wrapped = model(), model()
    a = Adamax(plain.parameters(), lr=0.02)
    b = ZeroRedundancyOptimizer(wrapped.parameters(), optimizer_class=Adamax, lr=0.02)
    train(plain, a, 3)
    train(wrapped, b, 3)
    a.param_groups[0]["lr"] = b.param_groups[0]["lr"] = 0.1
    train(plain, a, 3)
    train(wrapped, b, 3)
    b.consolidate_state_dict()
    b.load_state_dict(b.state_dict())
    train(plain, a, 1)
    train(wrapped, b, 1)
    for p, q in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.filterwarnings("ignore:by_path is asked")  # of parameters without names
@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("make", [Adamax, lambda p: Optimizer(p, recipe)], ids=["Adamax", "chain"])
def test_the_state_of_sharded_parameters_loads(make: Any) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    sharded = model()
    fully_shard(sharded, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    params = list(sharded.parameters())
    first, again = make(params), make(params)
    train(sharded, first, 2)
    saved = copy.deepcopy(first.state_dict())
    again.load_state_dict(saved)
    for p in params:
        assert isinstance(again.state[p]["exp_avg"], DTensor)
        assert torch.equal(
            again.state[p]["exp_avg"].full_tensor(), first.state[p]["exp_avg"].full_tensor()
        )
    train(sharded, again, 1)
    saved["state"][0]["exp_avg"] = torch.ones(3)
    with pytest.raises(ValueError, match="exp_avg of parameter 0 .* must have the shape"):
        again.load_state_dict(saved)
