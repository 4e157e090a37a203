"""Checkpoints between torch.optim.Adamax, compat.Adamax and functional states, in mid-run."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from trees import DTYPES
from twins import assert_twins, copies, pair, parameters, same_bits

import functional_adamax as fa
from functional_adamax.compat import (
    Adamax,
    hyperparameters_from_torch,
    state_from_torch,
    state_to_torch,
)

pytestmark = pytest.mark.filterwarnings("ignore:eps=")


def through_a_file(state_dict: Any) -> Any:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def run(optimizers: list[Any], params: list[list[Any]], steps: int) -> None:
    for _ in range(steps):
        grads = [None if torch.rand(()) < 0.2 else torch.randn_like(p) for p in params[0]]
        for optimizer, group in zip(optimizers, params, strict=True):
            for p, g in zip(group, grads, strict=True):
                p.grad = None if g is None else g.clone()
            optimizer.step()


CLASSES = {"torch": torch.optim.Adamax, "ours": Adamax}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", CLASSES)
@pytest.mark.parametrize("target", CLASSES)
def test_resumed_run_is_the_uninterrupted_one(source: str, target: str, dtype: torch.dtype) -> None:
    a = parameters(dtype)
    options = {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1}
    first = CLASSES[source]([{"params": a[:2]}, {"params": a[2:], "lr": 0.1}], **options)
    run([first], [a], 5)
    b = copies(a)
    second = CLASSES[target]([{"params": b[:2]}, {"params": b[2:]}])
    saved = through_a_file(first.state_dict())
    second.load_state_dict(saved)
    assert_twins(first, second)
    assert_plain(saved)
    run([first, second], [a, b], 5)
    assert_twins(first, second)
    back = CLASSES[source]([{"params": a[:2]}, {"params": a[2:]}])
    back.load_state_dict(through_a_file(second.state_dict()))
    for group, other in zip(back.param_groups, first.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in other.items() if k != "params"
        }


def assert_plain(state_dict: dict[str, Any]) -> None:
    for entry in state_dict["state"].values():
        assert list(entry) == ["step", "exp_avg", "exp_inf"]


def test_a_checkpoint_is_key_for_key_torchs() -> None:
    a = parameters(torch.float32)
    b = copies(a)
    theirs, ours = torch.optim.Adamax(a), Adamax(b)
    run([theirs, ours], [a, b], 3)
    assert repr(theirs.state_dict()) == repr(ours.state_dict())


@pytest.mark.parametrize("number", [3, 3.0, np.int64(3)], ids=["int", "float", "numpy"])
def test_an_old_checkpoint_loads(number: float) -> None:
    a = parameters(torch.float32)
    theirs = torch.optim.Adamax(a)
    run([theirs], [a], 3)
    old = copy.deepcopy(theirs.state_dict())
    for name in ("foreach", "maximize", "differentiable", "capturable"):
        del old["param_groups"][0][name]
    for entry in old["state"].values():
        entry["step"] = type(number)(entry["step"])
    b, c = copies(a), copies(a)
    ours, reference = Adamax(b), torch.optim.Adamax(c)
    ours.load_state_dict(copy.deepcopy(old))
    reference.load_state_dict(copy.deepcopy(old))
    assert_twins(reference, ours)
    run([reference, ours], [c, b], 3)
    assert_twins(reference, ours)
    state = state_from_torch(old, list(a))
    assert [float(x) for x in state.step] == [
        float(old["state"].get(i, {"step": 0})["step"]) for i in range(len(a))
    ]


def test_loading_never_shares_tensors() -> None:
    a = parameters(torch.float32)
    first = Adamax(a)
    run([first], [a], 3)
    given = first.state_dict()
    kept = copy.deepcopy(given)
    b = copies(a)
    second = Adamax(b)
    second.load_state_dict(given)
    run([second], [b], 3)
    for key, entry in kept["state"].items():
        for name, value in entry.items():
            assert same_bits(value, first.state_dict()["state"][key][name])
    assert second.state[b[0]]["exp_avg"] is not first.state[a[0]]["exp_avg"]


def test_load_replaces_groups_and_state_and_keeps_foreign_entries() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Adamax([p])
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    nested = {"inner": torch.ones(1, dtype=torch.float64), "text": "kept"}
    saved["state"]["global"] = {"count": torch.tensor(3), "nested": nested}
    saved["unknown"] = 1
    torch_loaded = torch.optim.Adamax([p])
    torch_loaded.load_state_dict(copy.deepcopy(saved))
    groups, state = optimizer.param_groups, optimizer.state
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups is not groups
    assert optimizer.state is not state
    assert optimizer.state["global"]["count"] is not saved["state"]["global"]["count"]
    assert repr(dict(optimizer.state)) == repr(dict(torch_loaded.state))


def test_mismatched_checkpoints_fail_in_torchs_words_and_change_nothing() -> None:
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    for source in (Adamax([{"params": [p]}, {"params": [q]}]), Adamax([p, q])):
        errors = []
        for cls in (torch.optim.Adamax, Adamax):
            optimizer = cls([torch.nn.Parameter(torch.ones(2))])
            with pytest.raises(ValueError, match="loaded state dict") as caught:
                optimizer.load_state_dict(source.state_dict())
            errors.append(str(caught.value))
            assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 0
            assert len(optimizer.param_groups) == 1
        assert errors[0] == errors[1]


def test_loading_in_inference_mode() -> None:
    theirs, ours, a, b = pair(parameters(torch.float32))
    run([theirs, ours], [a, b], 2)
    saved = copy.deepcopy(ours.state_dict())
    with torch.inference_mode():
        ours.load_state_dict(saved)
    run([theirs, ours], [a, b], 2)
    assert_twins(theirs, ours)


# --- state_dtype ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_state_of_half_parameters_survives_a_checkpoint(dtype: torch.dtype) -> None:
    a = parameters(dtype)
    first = Adamax(a, lr=0.01, weight_decay=0.1, state_dtype=torch.float32)
    run([first], [a], 5)
    assert first.state[a[0]]["exp_avg"].dtype == torch.float32
    assert a[0].dtype == dtype
    b = copies(a)
    second = Adamax(b, state_dtype=torch.float32)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert_twins(first, second)
    run([first, second], [a, b], 5)
    assert_twins(first, second)


def test_the_key_state_dtype_of_a_checkpoint() -> None:
    a = parameters(torch.bfloat16)
    theirs = torch.optim.Adamax(a)
    run([theirs], [a], 2)
    without = copy.deepcopy(theirs.state_dict())

    b = copies(a)
    ours = Adamax(b, state_dtype=torch.float32)
    ours.load_state_dict(without)  # no key: the constructor's value
    assert ours.param_groups[0]["state_dtype"] == torch.float32
    key = next(iter(theirs.state))
    q = b[[p is key for p in a].index(True)]
    assert ours.state[q]["exp_avg"].dtype == torch.float32
    assert torch.equal(ours.state[q]["exp_avg"], theirs.state[key]["exp_avg"].float())

    c = copies(a)
    plain = Adamax(c)
    plain.load_state_dict(ours.state_dict())  # the key: the checkpoint's value
    assert plain.param_groups[0]["state_dtype"] == torch.float32
    late = copies(a)
    plain.add_param_group({"params": late})  # a new group: the constructor's value again
    assert "state_dtype" not in plain.param_groups[1]
    torch.optim.Adamax(c).load_state_dict(ours.state_dict())  # torch casts as it always does


def test_state_dtype_is_a_group_option_and_is_checked() -> None:
    p, q = torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2)
    optimizer = Adamax([{"params": [p], "state_dtype": torch.float32}, {"params": [q]}])
    for x in (p, q):
        x.grad = torch.ones_like(x)
    optimizer.step()
    assert optimizer.state[p]["exp_inf"].dtype == torch.float32
    for wrong in ("float32", torch.int64, torch.complex64):
        with pytest.raises(TypeError, match="state_dtype must be a real floating dtype or None"):
            Adamax([q], state_dtype=wrong)


def test_float32_state_is_the_cure_for_half_precision() -> None:
    with pytest.warns(UserWarning, match=r"eps=1e-08 rounds to zero.*state_dtype=torch.float32"):
        Adamax([torch.zeros(2, dtype=torch.float16)])
    for dtype in (torch.float16, torch.bfloat16):
        p = torch.nn.Parameter(torch.ones(2, dtype=dtype))
        optimizer = Adamax([p], lr=0.0, state_dtype=torch.float32)
        p.grad = torch.tensor([0.0, 1.0], dtype=dtype)
        optimizer.step()
        assert p.isfinite().all()
        p.grad = torch.full((2,), 1e-3, dtype=dtype)
        for _ in range(500):
            optimizer.step()
        assert optimizer.state[p]["exp_inf"][1].item() == pytest.approx(0.999**500, rel=1e-3)


def test_state_dtype_of_complex_parameters() -> None:
    p = torch.nn.Parameter(torch.randn(3, dtype=torch.complex64))
    optimizer = Adamax([p], state_dtype=torch.float64)
    p.grad = torch.randn_like(p)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype == torch.complex128
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[p]["exp_avg"].dtype == torch.complex128


# --- functional states ----------------------------------------------------------------------


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
