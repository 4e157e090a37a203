"""Wrappers that need a closure or more than one sequence, as torch optimizers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from trees import assert_equal

import functional_adamax as fa
from functional_adamax import compat

BATCHES = torch.randn(12, 8, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def loss(model: Any, i: int) -> Tensor:
    return (model(BATCHES[i].double()) - 1).square().mean()


def step(model: nn.Module, optimizer: Any, i: int) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model, i)
        value.backward()
        return value

    return optimizer.step(closure)


def sharpness_aware(lr: Any = 0.1, momentum: Any = 0.0, rho: Any = 0.05, adaptive: bool = False):
    return fa.sam(fa.sgd(lr, momentum), rho, adaptive)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_is_the_two_passes_written_out(adaptive: bool) -> None:
    model, twin, rho = network(), network(), 0.2
    optimizer = compat.Optimizer(
        model.named_parameters(), sharpness_aware, momentum=0.9, rho=rho, adaptive=adaptive
    )
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    ours = list(model.parameters())
    for i in range(10):
        value = step(model, optimizer, i)

        sgd.zero_grad()
        other = loss(twin, i)
        other.backward()
        start = [p.detach().clone() for p in twin.parameters()]
        with torch.no_grad():
            sizes = [p.abs() if adaptive else torch.ones_like(p) for p in start]
            pairs = list(zip(twin.parameters(), sizes, strict=True))
            norm = torch.stack([(t * p.grad).norm() for p, t in pairs]).norm()
            for p, t in pairs:
                p.add_(rho * t**2 * p.grad / norm)
        sgd.zero_grad()
        loss(twin, i).backward()
        with torch.no_grad():
            for p, x in zip(twin.parameters(), start, strict=True):
                p.copy_(x)
        sgd.step()

        torch.testing.assert_close(value, other)
        for p, q in zip(ours, twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_sam_leaves_the_gradients_of_the_first_pass() -> None:
    model, twin = network(), network()
    optimizer = compat.Optimizer(model.named_parameters(), sharpness_aware, rho=0.2)
    step(model, optimizer, 0)
    loss(twin, 0).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
        assert not torch.equal(p, q)


def test_sam_without_a_closure_says_what_to_do() -> None:
    model = network()
    optimizer = compat.Optimizer(model.parameters(), sharpness_aware)
    loss(model, 0).backward()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match="give a closure to the step of a compat.Optimizer"):
        optimizer.step()
    assert all(torch.equal(before[k], x) for k, x in model.state_dict().items())


def test_sam_takes_a_function_of_ones_own() -> None:
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = compat.Optimizer([w], sharpness_aware, lr=0.5, rho=1.0)
    w.grad = w.detach().clone()
    optimizer.step(grad_fn=lambda params: params)
    torch.testing.assert_close(w.data, torch.tensor([3 - 1.8, 4 - 2.4]))


def schedule_free(lr: Any = 0.1, b1: Any = 0.9, weight_decay: Any = 0.0):
    inner = fa.adamw(lr, (0.0, 0.999), weight_decay=weight_decay)
    return fa.schedule_free(inner, lr, b1)


def lookahead(lr: Any = 0.1, slow_step_size: Any = 0.5):
    return fa.lookahead(fa.adamax(lr), 3, slow_step_size)


@pytest.mark.parametrize("lr", [0.1, fa.warmup_constant_schedule(0.01, 0.1, 4)])
@pytest.mark.parametrize("factory", [schedule_free, lookahead, sharpness_aware])
def test_it_is_the_pair(factory: Any, lr: Any) -> None:
    model = network()
    optimizer = compat.Optimizer(model.named_parameters(), factory, lr=lr)
    tx, still = factory(lr=lr), network()
    params = {k: p.detach() for k, p in still.named_parameters()}
    state = tx.init(params)
    for i in range(8):
        step(model, optimizer, i)
        slope = grad(lambda p, i=i: loss(lambda x: functional_call(still, p, (x,)), i))
        params, state = fa.step(tx, slope(params), state, params, grad_fn=slope)
        for k, p in model.named_parameters():
            torch.testing.assert_close(p.data, params[k], rtol=1e-12, atol=1e-13)
    if factory is schedule_free:
        want = fa.schedule_free_eval_params(state, params)
        for k, p in model.named_parameters():
            kept = optimizer.state[p]
            torch.testing.assert_close(kept["z"] + (p.data - kept["z"]) / kept["b1"], want[k])


@pytest.mark.parametrize("factory", [schedule_free, lookahead])
def test_it_continues_from_a_checkpoint(factory: Any) -> None:
    model = network()
    optimizer = compat.Optimizer(model.parameters(), factory)
    for i in range(4):
        step(model, optimizer, i)
    other = network()
    other.load_state_dict(model.state_dict())
    again = compat.Optimizer(other.parameters(), factory)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for i in range(4, 8):
        step(model, optimizer, i)
        step(other, again, i)
    assert_equal(list(model.parameters()), list(other.parameters()))


def test_groups_of_schedule_free_have_their_own_rates() -> None:
    model, alone = network(), network()
    groups = [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}]
    together = compat.Optimizer(groups, schedule_free, couple="all", b1=0.8)
    twins = [
        compat.Optimizer(alone[0].parameters(), schedule_free, lr=0.02, b1=0.8),
        compat.Optimizer(alone[2].parameters(), schedule_free, b1=0.8),
    ]
    for i in range(5):
        step(model, together, i)
        alone.zero_grad()
        loss(alone, i).backward()
        for twin in twins:
            twin.step()
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)
