"""State dicts of Adamax as functional states and back."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from saving import CLASSES, through_a_file
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from twins import assert_twins

import functional_adamax as fa
from functional_adamax.compat import (
    Adamax,
    hyperparameters_from_torch,
    state_from_torch,
    state_to_torch,
)

pytestmark = pytest.mark.filterwarnings("ignore:eps=")


class Net(torch.nn.Module):
    """Parameters whose order is not alphabetical, so that order and sorted order differ."""

    def __init__(self) -> None:
        super().__init__()
        self.z = torch.nn.Linear(3, 3)
        self.a = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(self.z(x).tanh())


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(p) for name, p in model.named_parameters()}


def drive(model: Any, optimizer: Any, grads: list[dict[str, torch.Tensor]]) -> None:
    for g in grads:
        for name, p in model.named_parameters():
            p.grad = g[name].clone()
        optimizer.step()


def as_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def as_nested(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        layer, kind = name.split(".")
        nested.setdefault(layer, {})[kind] = value
    return nested


@pytest.mark.parametrize(
    "tree", [as_dict, lambda m: OrderedDict(as_dict(m))], ids=["dict", "ordered"]
)
@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("named", [False, True], ids=["positions", "names"])
def test_class_to_functional_and_back(cls: Any, tree: Any, named: bool) -> None:
    model = Net()
    grads = [gradients(model) for _ in range(9)]
    whole = copy.deepcopy(model)

    def make(module: torch.nn.Module) -> Any:
        params = list(module.named_parameters() if named else module.parameters())
        groups = [{"params": params[:1], "lr": 0.3}, {"params": params[1:], "weight_decay": 0.1}]
        return cls(groups, lr=0.02)

    reference = make(whole)
    drive(whole, reference, grads)

    optimizer = make(model)
    drive(model, optimizer, grads[:3])
    saved = through_a_file(optimizer.state_dict())
    params = tree(model)
    state = state_from_torch(saved, params)
    tx = fa.adamax(**hyperparameters_from_torch(saved, params))
    for g in grads[3:6]:
        params, state = fa.step(tx, g, state, params)

    last = Net()
    last.load_state_dict(params)
    resumed = make(last)
    resumed.load_state_dict(through_a_file(state_to_torch(state, params, resumed)))
    drive(last, resumed, grads[6:])
    for p, q in zip(whole.parameters(), last.parameters(), strict=True):
        assert torch.equal(p, q)
    assert_twins(reference, resumed)


def test_groups_in_another_order_are_paired_by_names() -> None:
    model = Net()
    grads = [gradients(model) for _ in range(4)]
    names = [name for name, _ in model.named_parameters()]
    order = names[::-1]
    whole = copy.deepcopy(model)
    parts = dict(model.named_parameters())
    optimizer = torch.optim.Adamax([parts[name] for name in order])
    drive(model, optimizer, grads[:2])
    reference = torch.optim.Adamax(whole.parameters())
    drive(whole, reference, grads)
    params = as_nested(as_dict(model))
    state = state_from_torch(optimizer, params, order=order)
    for g in grads[2:]:
        params, state = fa.step(fa.adamax(), as_nested(g), state, params)
    for name, p in whole.named_parameters():
        layer, kind = name.split(".")
        assert torch.equal(params[layer][kind], p)
    with pytest.raises(ValueError, match="exp_avg of parameter 0 .* must have the shape of params"):
        state_from_torch(optimizer, params)


def test_a_checkpoint_with_names_for_numbers() -> None:
    """As torch.distributed.checkpoint writes it."""
    model = Net()
    optimizer = torch.optim.Adamax(model.parameters())
    drive(model, optimizer, [gradients(model) for _ in range(2)])
    saved = get_optimizer_state_dict(model, optimizer)
    params = dict(reversed(as_dict(model).items()))
    state = state_from_torch(saved, params)
    for name, p in model.named_parameters():
        assert torch.equal(state.exp_avg[name], optimizer.state[p]["exp_avg"])


def test_hyperparameters_are_plain_numbers_and_copies() -> None:
    p = torch.zeros(2)
    lr = torch.tensor([[0.1]])
    optimizer = torch.optim.Adamax([{"params": [p], "lr": lr, "eps": np.float32(1e-3)}])
    hyper = hyperparameters_from_torch(optimizer, p)
    assert hyper["lr"].shape == ()
    lr.fill_(0.5)
    assert float(hyper["lr"]) == pytest.approx(0.1)
    assert isinstance(hyper["eps"], float)
    fa.adamax(**hyper)


def test_errors_of_the_conversion() -> None:
    model = Net()
    optimizer = Adamax(model.parameters())
    params = as_dict(model)
    state = fa.adamax().init(params)
    fewer = {"a.bias": params["a.bias"]}
    with pytest.raises(ValueError, match="the state dict has 4 parameters and params has 1"):
        state_from_torch(optimizer, fewer)
    with pytest.raises(ValueError, match=r"missing \['a.bias'\], unknown \['wrong'\]"):
        state_from_torch(optimizer, params, order=["z.weight", "z.bias", "a.weight", "wrong"])
    scheduled = fa.adamax(lr=lambda count: 0.1).init(params)
    with pytest.raises(TypeError, match="AdamaxState, got ScheduledState.*inner"):
        state_to_torch(scheduled, params, optimizer)
    with pytest.raises(ValueError, match="state.step must have the structure of params"):
        state_to_torch(state, fewer, optimizer)
    groups = Adamax(
        [{"params": [params["a.bias"]], "maximize": True}, {"params": [params["z.bias"]]}]
    )
    with pytest.raises(ValueError, match="differ in maximize"):
        hyperparameters_from_torch(groups, [params["a.bias"], params["z.bias"]])


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("as_dict", [False, True], ids=["optimizer", "state dict"])
def test_conversion_shares_no_tensor_and_no_group(cls: Any, as_dict: bool) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    lr = torch.tensor(0.1)
    optimizer = cls([p], lr=lr, foreach=False)
    p.grad = torch.ones(2)
    optimizer.step()
    source = optimizer.state_dict() if as_dict else optimizer
    params = [p.detach()]
    state = state_from_torch(source, params)
    state = state._replace(step=[state.step[0].float()])  # the dtype that it has in torch
    back = state_to_torch(state, params, source)
    entries = [*optimizer.state[p].values(), *back["state"][0].values()]
    rates = [hyperparameters_from_torch(source, params)["lr"], back["param_groups"][0]["lr"]]
    tensors = [p, lr, *entries, *(column[0] for column in state), *rates]
    assert len(tensors) == 2 + 3 + 3 + 3 + 2
    assert len({x.data_ptr() for x in tensors}) == len(tensors)
    if as_dict:
        assert back["param_groups"][0] is not source["param_groups"][0]


def test_conversion_keeps_unstepped_leaves_and_none_leaves() -> None:
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    optimizer = Adamax([p, q])
    p.grad = torch.ones(2)
    optimizer.step()
    params = {"p": p.detach(), "gone": None, "q": q.detach()}
    state = state_from_torch(optimizer, params)
    assert state.step["gone"] == fa.EmptyState()
    assert (float(state.step["p"]), float(state.step["q"])) == (1.0, 0.0)
    back = state_to_torch(state, params, optimizer)
    assert list(back["state"]) == [0]
    assert back["state"][0]["step"].dtype == torch.float32
    wide = state_from_torch(optimizer, params, state_dtype=torch.float64)
    assert wide.exp_avg["p"].dtype == torch.float64
