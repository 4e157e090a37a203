"""What a wrapped transform keeps, as the functional form has it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from trees import assert_equal
from wrapped import network, train

import functional_adamax as fa
from functional_adamax import compat


@pytest.mark.parametrize("couple", ["group", "all"])
def test_it_goes_on_in_the_functional_form(couple: str) -> None:
    module, tx = network(), fa.chain(fa.clip_by_global_norm(1.0), fa.adamax(0.1), fa.ema(0.5))
    optimizer = compat.Optimizer(module.named_parameters(), tx, couple=couple)
    train(module, optimizer, range(3))
    params, state = optimizer.functional_state()
    params, state = copy.deepcopy((params, state))
    grads = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    for name, p in module.named_parameters():
        p.grad = grads[name]
    optimizer.step()
    params, state = fa.step(tx, grads, state, params)
    assert_equal((params, state), optimizer.functional_state())


def test_groups_and_parameters_without_state() -> None:
    a, b, c = (nn.Parameter(torch.ones(2)) for _ in range(3))
    groups = [{"params": [a, b]}, {"params": [c]}]
    optimizer = compat.Adamax(groups)
    a.grad = torch.ones(2)
    optimizer.step()
    params, state = optimizer.functional_state()
    assert params[0].data_ptr() == a.data_ptr()
    assert not params[0].requires_grad
    assert torch.equal(params[1], b)
    assert state.exp_avg[0] is optimizer.state[a]["exp_avg"]
    assert state.exp_avg[1] == fa.EmptyState()
    assert optimizer.functional_state(-1)[1].step == [fa.EmptyState()]
    assert len(optimizer.state) == 1
    coupled = compat.Optimizer(groups, fa.adamax, couple="all")
    assert len(coupled.functional_state(1)[0]) == 3
    with pytest.raises(IndexError):
        optimizer.functional_state(2)


def evaluated(optimizer: Any) -> torch.Tensor:
    params, state = optimizer.functional_state()
    return fa.schedule_free_eval_params(state, params)[0]


def test_averages_of_a_wrapped_transform() -> None:
    p = nn.Parameter(torch.ones(2))
    q, tx = torch.ones(2), fa.schedule_free(fa.sgd(0.5), 0.5)
    optimizer, state = compat.Optimizer([p], tx), tx.init(q)
    for i in range(3):
        p.grad = torch.full((2,), i + 1.0)
        optimizer.step()
        q, state = fa.step(tx, p.grad, state, q)
        assert torch.equal(evaluated(optimizer), fa.schedule_free_eval_params(state, q))
    averaging = compat.Optimizer([p], fa.chain(fa.sgd(0.1), fa.params_ema(0.5)))
    averaging.step()
    params, state = averaging.functional_state()
    assert torch.equal(fa.averaged(state, params)[0], averaging.state[p]["average"])
