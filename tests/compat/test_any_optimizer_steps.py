"""One step of any transform as an optimizer: gradients that are missing, closures, and failures."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from wrapped import loss, network, parameters

import functional_adamax as fa
from functional_adamax import compat


def test_missing_gradients_and_late_ones() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = compat.wrap(fa.nadamax)([a, b], lr=0.1)
    for i in range(3):
        a.grad = torch.ones(2)
        b.grad = torch.ones(2) if i == 2 else None
        optimizer.step()
        assert (b in optimizer.state) == (i == 2)
    assert optimizer.state[a]["step"] == 3
    assert optimizer.state[b]["step"] == 1
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.3})
    assert optimizer.param_groups[1]["betas"] == (0.9, 0.999)
    optimizer.step()


def test_hooks_closures_and_schedulers() -> None:
    model = network()
    optimizer = compat.wrap(fa.adamaxw)(model.parameters())
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("loading"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model, 0)
        value.backward()
        return value

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert second < first
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["pre", "post", "pre", "post", "saved", "loading"]
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
    for _ in range(4):
        optimizer.step(closure)
        cycle.step()
    assert optimizer.param_groups[0]["betas"][0] != 0.9


def test_closures_give_the_value_and_gradients_elsewhere() -> None:
    seen: list[Any] = []

    def update(updates: Any, state: Any, params: Any = None, *, value: Any, grad_fn: Any) -> Any:
        seen.append((value, grad_fn([p + 1 for p in params])))
        return [-0.1 * u for u in updates], state

    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = compat.Optimizer([w], fa.GradientTransformation(lambda params: (), update))

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = (w**2).sum()
        value.backward()
        return value

    assert optimizer.step(closure) == 5
    ((value, (elsewhere,)),) = seen
    assert value == 5
    assert elsewhere.tolist() == [4.0, 6.0]
    assert w.grad.tolist() == [2.0, 4.0]
    assert w.tolist() == pytest.approx([0.8, 1.6])


def test_a_failing_group_leaves_all_as_they_were() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = compat.wrap(fa.adamaxw)([{"params": [a]}, {"params": [b]}], lr=0.1)
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    before = copy.deepcopy((a, b, optimizer.state_dict()["state"]))
    optimizer.param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be in"):
        optimizer.step()
    assert torch.equal(a, before[0])
    assert torch.equal(optimizer.state[a]["step"], before[2][0]["step"])


SHARED = [
    fa.params_ema(0.9),
    fa.add_noise(0.1, 0.5),
    fa.apply_if_finite(fa.sgd(0.1), 3),
    fa.multi_steps(fa.sgd(0.1), 2),
    fa.inject_hyperparams(fa.adamax)(lr=0.1),
    fa.adamax(fa.linear_schedule(0.1, 0.0, 10)),
]


@pytest.mark.parametrize("tx", SHARED, ids=lambda tx: repr(tx).split("(")[0])
def test_a_step_without_gradients_does_nothing(tx: Any) -> None:
    (w,) = parameters(2)
    w.grad = None
    optimizer = compat.Optimizer([{"params": [w]}, {"params": []}], tx)
    optimizer.step()
    assert not optimizer.state
    w.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.state[w]


def test_a_failed_step_makes_no_state() -> None:
    w, v = parameters(2, 2)
    optimizer = compat.Optimizer([{"params": [w]}, {"params": [v]}], fa.reduce_on_plateau())
    with pytest.raises((TypeError, ValueError), match="value"):
        optimizer.step()
    assert not optimizer.state
    v.grad = torch.ones(2).to_sparse()
    sparse = compat.Optimizer([{"params": [w]}, {"params": [v]}], fa.adamax)
    with pytest.raises(RuntimeError, match=r"grads\[0\]: Adamax does not support sparse gradients"):
        sparse.step()
    assert not sparse.state
    assert w.tolist() == [1.0, 1.0]


def test_gradients_elsewhere_leave_those_of_other_groups_alone() -> None:
    a, b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))
    optimizer = compat.Optimizer(
        [{"params": [a]}, {"params": [b]}], fa.sam(fa.sgd(0.0), rho=0.5), couple="group"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = a**2 * b
        value.backward()
        return value

    optimizer.step(closure)
    assert a.grad == 4
    assert b.grad == 1
