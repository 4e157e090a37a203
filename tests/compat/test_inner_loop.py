"""Inner loops written with modules."""

from __future__ import annotations

import copy
from itertools import repeat
from typing import Any

import pytest
import torch
from trees import assert_equal, tree_map

import functional_adamax as fa
from functional_adamax.compat import (
    Adamax,
    Optimizer,
    hyperparameters_from_torch,
    hyperparameters_to_torch,
    inner_loop,
    state_from_torch,
)

D = torch.float64


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).to(D)


def support() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 4, dtype=D), torch.randn(5, 3, dtype=D)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_it_is_unroll(first_order: bool, checkpoint: bool) -> None:
    module, (x, y) = network(), support()
    lr = torch.tensor(0.05, dtype=D, requires_grad=True)
    with inner_loop(module, fa.adamax(lr), first_order=first_order) as (functional, inner):
        for _ in range(4):
            inner.step((functional(x) - y).square().mean())
        outer = (functional(x) - y).square().mean()
    inputs = [*module.parameters()] + ([] if first_order else [lr])
    got = torch.autograd.grad(outer, inputs)

    def loss(params: Any, batch: Any) -> torch.Tensor:
        return (torch.func.functional_call(module, params, (batch[0],)) - batch[1]).square().mean()

    params = dict(module.named_parameters())
    end = fa.unroll(
        loss,
        fa.adamax(lr),
        params,
        repeat((x, y), 4),
        first_order=first_order,
        checkpoint=checkpoint,
    )
    assert_equal(tree_map(torch.detach, functional.params), tree_map(torch.detach, end.params))
    want = torch.autograd.grad(loss(end.params, (x, y)), inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_module_and_its_buffers_are_untouched_and_receive_gradients() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).to(D)
    before, (x, y) = copy.deepcopy(module.state_dict()), support()
    with inner_loop(module, fa.adamax(0.1)) as (functional, inner):
        for _ in range(2):
            inner.step((functional(x) - y).square().mean())
        (functional(x) - y).square().mean().backward()
    assert_equal(module.state_dict(), before)
    assert int(functional.buffers["1.num_batches_tracked"]) == 3
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("cls", [torch.optim.Adamax, Adamax])
def test_it_starts_where_the_optimizer_stands(cls: Any) -> None:
    """Hyperparameters of groups, in another order than the module's, and state included."""
    module, (x, y) = network(), support()
    twin = copy.deepcopy(module)
    optimizers = []
    for net in (module, twin):
        a, b, c, d = net.parameters()
        optimizers.append(
            cls([{"params": [d, a], "lr": 0.1}, {"params": [c, b]}], weight_decay=0.01)
        )
    for net, optimizer, steps in ((module, optimizers[0], 2), (twin, optimizers[1], 5)):
        for _ in range(steps):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
    saved = copy.deepcopy(optimizers[0].state_dict())
    with inner_loop(module, optimizers[0]) as (functional, inner):
        for _ in range(3):
            inner.step((functional(x) - y).square().mean())
    for name, p in twin.named_parameters():
        assert torch.equal(functional.params[name], p)
    assert repr(optimizers[0].state_dict()) == repr(saved)


def test_learned_hyperparameters_are_overrides_and_are_written_back() -> None:
    module, (x, y) = network(), support()
    names = [name for name, _ in module.named_parameters()]
    optimizer = Adamax([{"params": [p]} for p in module.parameters()], lr=torch.tensor(0.1))
    rates = {
        name: torch.tensor(0.1 + 0.1 * i, dtype=D, requires_grad=True)
        for i, name in enumerate(names)
    }
    b1 = torch.tensor(0.8, dtype=D, requires_grad=True)
    with inner_loop(module, optimizer, lr=rates, betas=(b1, 0.99)) as (functional, inner):
        for _ in range(2):
            inner.step((functional(x) - y).square().mean())
        outer = (functional(x) - y).square().mean()
    slopes = torch.autograd.grad(outer, [*rates.values(), b1])
    assert all(slope.isfinite() and slope != 0 for slope in slopes)
    hyperparameters_to_torch({"lr": rates, "betas": (b1, 0.99), "eps": 1e-6}, module, optimizer)
    for i, group in enumerate(optimizer.param_groups):
        assert float(group["lr"]) == pytest.approx(0.1 + 0.1 * i)
        assert group["betas"] == pytest.approx((0.8, 0.99))
        assert group["eps"] == 1e-6
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)


def test_unused_and_frozen_parameters_are_left_alone() -> None:
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    module["a"].bias.requires_grad_(False)

    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts["a"](x)

    net = Half()
    with inner_loop(net, fa.adamax(0.1, weight_decay=0.1)) as (functional, inner):
        inner.step(functional(torch.randn(3, 2)).square().mean())
    for name, p in net.named_parameters():
        assert torch.equal(functional.params[name], p) == (name != "parts.a.weight")
    assert float(inner.state.step["parts.b.weight"]) == 0.0


def test_a_transform_is_given_the_loss_and_what_the_step_is_given() -> None:
    module, seen = network(), []

    def update(grads: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        seen.append(extra)
        return grads, state

    tx = fa.GradientTransformation(lambda params: (), update)
    with inner_loop(module, tx) as (functional, inner):
        loss = functional(support()[0]).square().mean()
        inner.step(loss, temperature=2.0)
    assert seen == [{"value": loss, "temperature": 2.0}]


def test_it_trains_without_grad_mode() -> None:
    module = network()
    with torch.no_grad(), inner_loop(module, fa.sgd(0.1)) as (functional, inner):
        x, y = support()
        before = (functional(x) - y).square().mean()
        inner.step(before)
        assert (functional(x) - y).square().mean() < before


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adam,
        lambda params: torch.optim.SGD(params, lr=0.1),
        lambda params: Optimizer(params, fa.adamaxw),
    ],
    ids=["Adam", "SGD", "adamaxw"],
)
def test_another_optimizer_is_not_taken_for_an_adamax(make: Any) -> None:
    module = network()
    optimizer, params = make(module.parameters()), dict(module.named_parameters())
    for call in (
        lambda: inner_loop(module, optimizer).__enter__(),
        lambda: state_from_torch(optimizer, params),
        lambda: hyperparameters_from_torch(optimizer, params),
    ):
        with pytest.raises(TypeError, match="an Adamax is needed, or its state dict, got"):
            call()
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    if type(optimizer) is torch.optim.Adam:
        with pytest.raises(TypeError, match="got that of another optimizer"):
            state_from_torch(optimizer.state_dict(), params)
    wrapped = Optimizer(module.parameters(), fa.adamax, lr=0.3)
    with inner_loop(module, wrapped) as (_, inner):
        assert inner.tx == fa.adamax(0.3)


def test_errors_of_inner_loops() -> None:
    module = network()
    with pytest.raises(ValueError, match="lr must have one element, got a torch.float32 tensor"):
        hyperparameters_to_torch({"lr": torch.ones(2)}, module, Adamax(module.parameters()))
    cases: list[tuple[Any, dict[str, Any], Any, str]] = [
        (fa.adamax(), {"lr": 0.1}, TypeError, r"a transform has its hyperparameters, got \['lr'\]"),
        (Adamax([*module.parameters()][:1]), {}, ValueError, "must have the parameters of the"),
        (Adamax(module.parameters()), {"momentum": 0.1}, TypeError, "unexpected keyword argument"),
    ]
    for optimizer, options, error, message in cases:
        with pytest.raises(error, match=message), inner_loop(module, optimizer, **options):
            pass
    optimizer = Adamax(module.parameters())
    rates = {name: float(i) for i, (name, _) in enumerate(module.named_parameters())}
    with pytest.raises(ValueError, match="lr differs among the parameters of one group"):
        hyperparameters_to_torch({"lr": rates}, module, optimizer)
    assert optimizer.param_groups[0]["lr"] == 2e-3
    with pytest.raises(TypeError, match=r"unknown hyperparameters \['momentum'\]"):
        hyperparameters_to_torch({"momentum": 0.1}, module, optimizer)
