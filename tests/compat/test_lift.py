"""Optimizers of torch as transforms."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import vmap
from trees import assert_equal
from wrapped import loss, network, train

import functional_adamax as fa
from functional_adamax import compat

LIFTED = [
    (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9}),
    (torch.optim.Adam, {"lr": 0.1, "amsgrad": True}),
    (torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.5}),
    (torch.optim.NAdam, {"lr": 0.1}),
    (torch.optim.Rprop, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.Adadelta, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adamax, {}),
]


@pytest.mark.parametrize(("cls", "keywords"), LIFTED, ids=lambda x: getattr(x, "__name__", ""))
def test_lifted_is_the_class(cls: Any, keywords: dict[str, Any]) -> None:
    params: Any = {"a": torch.randn(3), "b": torch.randn(2, 2), "n": None}
    twins = {k: nn.Parameter(p.clone()) for k, p in params.items() if p is not None}
    optimizer = cls(twins.values(), **keywords)
    tx = compat.as_transform(cls, **keywords)
    state = tx.init(params)
    for i in range(5):
        grads = {"a": torch.randn(3), "b": torch.randn(2, 2) if i != 2 else None, "n": None}
        for k, p in twins.items():
            p.grad = None if grads[k] is None else grads[k].clone()
        optimizer.step()
        before = copy.deepcopy((params, grads, state))
        new, new_state = fa.step(tx, grads, state, params)
        updates, _ = tx.update(grads, state, params)
        assert str(before) == str((params, grads, state))
        assert (updates["b"] is None) == (grads["b"] is None)
        params, state = new, new_state
        assert all(torch.equal(params[k], twins[k]) for k in twins)
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert cls.__name__ in repr(tx)


def test_lifted_in_a_chain_and_wrapped_again() -> None:
    model, twin = network(), network()
    tx = fa.chain(fa.clip(0.05), compat.as_transform(torch.optim.Adam, lr=0.1))
    optimizer = compat.Optimizer(model.parameters(), tx)
    reference = torch.optim.Adam(twin.parameters(), lr=0.1)
    for i in range(4):
        train(model, optimizer, range(i, i + 1))
        reference.zero_grad()
        loss(twin, i).backward()
        nn.utils.clip_grad_value_(twin.parameters(), 0.05)
        reference.step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_lifted_and_wrapped_it_resumes_and_takes_late_parameters() -> None:
    tx = compat.as_transform(torch.optim.Adam, lr=0.1)
    model, other = network(), network()
    optimizer = compat.Optimizer(model.named_parameters(), tx)
    train(model, optimizer, range(4))
    resumed = compat.Optimizer(other.named_parameters(), tx)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    wanted = train(model, optimizer, range(4, 8))
    assert_equal(train(other, resumed, range(4, 8)), wanted)

    pairs = [[nn.Parameter(torch.ones(1)) for _ in "abc"] for _ in range(2)]
    both = compat.Optimizer(pairs[0][:2], tx), torch.optim.Adam(pairs[1][:2], lr=0.1)
    for i in range(6):
        for ps, opt in zip(pairs, both, strict=True):
            if i == 4:
                opt.add_param_group({"params": [ps[2]]})
            for k, p in enumerate(ps):
                p.grad = torch.tensor([1.0 + i]) if i >= 2 * k else None
            opt.step()
        assert_equal(*pairs)


def test_lifted_says_what_it_cannot_do() -> None:
    tx = compat.as_transform(torch.optim.SGD, lr=0.1)
    params = torch.ones(3)
    with pytest.raises(RuntimeError, match="SGD writes in place"):
        vmap(lambda p: fa.step(tx, p, tx.init(p), p)[0])(params)
    with pytest.raises(ValueError, match="params must be given"):
        tx.update(params, tx.init(params))
    with pytest.raises(TypeError, match="LBFGS"):
        compat.as_transform(torch.optim.LBFGS)
