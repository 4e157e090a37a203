"""Any transform as a torch.optim.Optimizer."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from trees import assert_equal
from wrapped import RATE, loss, network, parameters, recipe, train

import functional_adamax as fa
from functional_adamax import compat


def functionally(tx: fa.GradientTransformation, steps: int) -> list[Tensor]:
    model = network()
    params = {k: p.detach() for k, p in model.named_parameters()}
    state = tx.init(params)
    for i in range(steps):
        grads = grad(lambda p, i=i: loss(lambda x: functional_call(model, p, (x,)), i))(params)
        params, state = fa.step(tx, grads, state, params)
    return list(params.values())


FACTORIES = [fa.adamax, fa.adamaxw, fa.nadamax, fa.adam, fa.adamw, fa.sgd, fa.rmsprop, fa.lion]


@pytest.mark.parametrize("factory", [*FACTORIES, recipe], ids=lambda f: f.__name__)
def test_wrapped_has_the_bits_of_the_pair(factory: Any) -> None:
    cls = compat.wrap(factory)
    assert issubclass(cls, torch.optim.Optimizer)
    names = list(inspect.signature(cls).parameters)
    assert names == ["params", *inspect.signature(factory).parameters, "couple"]
    model = network()
    optimizer = cls(model.named_parameters(), lr=0.05)
    assert set(names[1:-1]) < set(optimizer.param_groups[0])
    got = train(model, optimizer, range(6))
    assert_equal(got, functionally(factory(lr=0.05), 6))


def test_five_ways_are_one_trajectory() -> None:
    """Pure, batched, compiled, differentiated through, and as an Optimizer."""
    tx, steps = recipe(lr=RATE), 3
    near = {"rtol": 0.0, "atol": 4 * 2**-24}  # 4 ulp of numbers below 1
    model = network()
    pure = functionally(tx, steps)
    wrapped = train(
        model, compat.Optimizer(model.named_parameters(), recipe, lr=RATE), range(steps)
    )
    assert_equal(wrapped, pure)

    start = {k: p.detach() for k, p in network().named_parameters()}

    def several(params: Any, state: Any) -> Any:
        for i in range(steps):
            grads = grad(lambda p, i=i: loss(lambda x: functional_call(model, p, (x,)), i))(params)
            updates, state = tx.update(grads, state, params)
            params = fa.apply_updates(params, updates)
        return params

    members = {k: torch.stack([p] * 8) for k, p in start.items()}
    batched = vmap(lambda p: several(p, tx.init(p)))(members)
    for i in range(8):
        for x, y in zip(batched.values(), pure, strict=True):
            torch.testing.assert_close(x[i], y, **near)

    compiled = torch.compile(several, fullgraph=True)(start, tx.init(start))
    for x, y in zip(compiled.values(), pure, strict=True):
        torch.testing.assert_close(x, y, **near)

    first = {k: p.double().requires_grad_() for k, p in start.items()}

    def double(p: Any, i: Any) -> Tensor:
        return loss(lambda x: functional_call(model, p, (x.double(),)), i)

    end = fa.unroll(double, tx, first, range(steps)).params
    for x, y in zip(end.values(), pure, strict=True):
        torch.testing.assert_close(x.float(), y, **near)
    slope = torch.autograd.grad(double(end, 9), first["0.weight"])[0]
    moved = {k: p.detach().clone() for k, p in first.items()}
    direction = torch.randn_like(slope)
    values = []
    for sign in (1, -1):
        moved["0.weight"] = first["0.weight"].detach() + sign * 1e-6 * direction
        values.append(double(fa.unroll(double, tx, moved, range(steps)).params, 9))
    torch.testing.assert_close(
        (slope * direction).sum(), (values[0] - values[1]) / 2e-6, rtol=1e-7, atol=1e-10
    )


CONTINUE = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from functional_adamax import compat
from wrapped import RATE, network, recipe, train
model_state, state, wanted = torch.load(sys.argv[1], weights_only=True)
model = network(1)
model.load_state_dict(model_state)
optimizer = compat.Optimizer(model.named_parameters(), recipe, lr=RATE)
optimizer.load_state_dict(state)
got = train(model, optimizer, range(4, 8))
assert all(map(torch.equal, got, wanted)), (got, wanted)
"""


def test_it_continues_in_a_fresh_process(tmp_path: Any) -> None:
    model = network()
    optimizer = compat.Optimizer(model.named_parameters(), recipe, lr=RATE)
    train(model, optimizer, range(4))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    wanted = train(model, optimizer, range(4, 8))
    torch.save((*saved, wanted), tmp_path / "run.pt")
    done = subprocess.run(
        [sys.executable, "-c", CONTINUE, tmp_path / "run.pt", Path(__file__).parent],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_state_dict_is_torchs() -> None:
    model = network()
    optimizer = compat.Optimizer(model.named_parameters(), recipe, lr=RATE)
    train(model, optimizer, range(2))
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert set(saved["state"][0]) == {"step", "exp_avg", "exp_inf", "count"}
    assert saved["state"][0]["count"].dtype == torch.int64
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    for given in (saved, torch.load(file, weights_only=True)):
        other = compat.Optimizer(network().named_parameters(), recipe, lr=RATE)
        other.load_state_dict(given)
        for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
            for name, value in mine.items():
                assert torch.equal(value, theirs[name])
                assert value.dtype == theirs[name].dtype
                assert value.data_ptr() != theirs[name].data_ptr()


def test_names_twice_become_paths() -> None:
    w = nn.Parameter(torch.ones(2))
    w.grad = torch.ones(2)
    tx = fa.chain(fa.scale_by_adamax(), fa.trace(0.9), fa.scale_by_adamax(), fa.scale(-0.1))
    optimizer = compat.Optimizer([w], tx)
    optimizer.step()
    assert {"0.step", "2.step", "0.exp_avg", "2.exp_avg", "trace"} <= set(optimizer.state[w])
    assert optimizer.param_groups[0].keys() == {"params"}


AdamaxW = compat.wrap(fa.adamaxw, "AdamaxW")


def test_pickles_and_copies() -> None:
    model = network()
    optimizer = AdamaxW(model.parameters(), lr=0.1)
    train(model, optimizer, range(2))
    for other in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert type(other) is AdamaxW
        assert other.param_groups[0]["lr"] == 0.1
        for p in other.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        other.step()


def test_wrong_arguments() -> None:
    w = [nn.Parameter(torch.ones(2))]
    with pytest.raises(ValueError, match="couple must be 'group' or 'all'"):
        compat.Optimizer(w, fa.adamax, couple="none")
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        compat.Optimizer(w, fa.adamax, speed=1)
    with pytest.raises(ValueError, match="lr must be in"):
        compat.wrap(fa.adamax)(w, lr=-1.0)
    with pytest.raises(TypeError, match="factory must be"):
        compat.wrap(3)  # type: ignore[arg-type]


def test_checkpoints_of_torch_and_older_ones_load() -> None:
    model, twin = network(), network()
    optimizer = compat.Optimizer(model.parameters(), fa.adamax)
    reference = torch.optim.Adamax(twin.parameters())
    train(twin, reference, range(3))
    model.load_state_dict(copy.deepcopy(twin.state_dict()))
    optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))
    got, wanted = train(model, optimizer, range(3, 6)), train(twin, reference, range(3, 6))
    assert_equal(got, wanted)


def test_names_that_come_twice() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    pairs = [*a.named_parameters(), *b.named_parameters()]
    optimizer = compat.Optimizer(pairs, fa.adamax, lr=0.1)
    before = [p.detach().clone() for _, p in pairs]
    for _, p in pairs:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert len(optimizer.state) == 4
    assert not any(torch.equal(p, old) for (_, p), old in zip(pairs, before, strict=True))


@pytest.mark.parametrize("couple", ["group", "all"])
def test_masks_go_by_names_that_come_again(couple: str) -> None:
    def recipe(lr: float = 1.0) -> fa.GradientTransformation:
        mask = fa.by_path(lambda name: not name.endswith("bias"))
        return fa.chain(fa.masked(fa.add_decayed_weights(0.5), mask), fa.sgd(lr))

    modules = nn.Linear(2, 2), nn.ModuleDict({"1": nn.Linear(2, 2)}), nn.Linear(2, 2)
    pairs = [pair for module in modules for pair in module.named_parameters()]
    for _, p in pairs:
        nn.init.ones_(p)
        p.grad = torch.zeros_like(p)
    groups = [{"params": list(module.named_parameters())} for module in modules]
    compat.Optimizer(groups if couple == "all" else pairs, recipe, couple=couple).step()
    assert [p.flatten()[0].item() for _, p in pairs] == [0.5, 1.0] * 3


def test_factories_of_any_signature() -> None:
    def anything(**keywords: Any) -> Any:
        return fa.adamax(**keywords)

    (w,) = parameters(2)
    optimizer = compat.wrap(anything)([w], lr=0.1)
    assert optimizer.param_groups[0]["lr"] == 0.1
    optimizer.step()
    muon = compat.as_transform(torch.optim.Muon, lr=0.1)
    params = torch.ones(3, 3)
    assert fa.step(muon, torch.randn(3, 3), muon.init(params), params)[0].shape == (3, 3)
