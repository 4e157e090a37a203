"""Parameter groups: what they hold, and what is refused, in torch's words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from twins import assert_twins, copies, one, parameters, set_grads

import functional_adamax as fa
from functional_adamax._execution.native import kernel
from functional_adamax._execution.program import machine
from functional_adamax.compat import Adamax, wrap


def test_defaults_have_torchs_keys_in_torchs_order() -> None:
    p = torch.zeros(2)
    theirs, ours = torch.optim.Adamax([p]), Adamax([p])
    assert list(ours.defaults.items()) == list(theirs.defaults.items())
    assert list(ours.param_groups[0]) == list(theirs.param_groups[0])
    assert repr(ours) == repr(theirs)
    assert "state_dtype" not in ours.defaults
    assert list(Adamax([p], state_dtype=torch.float32).defaults)[-1] == "state_dtype"


def bad_groups() -> dict[str, Any]:
    p, q = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    return {
        "not a dict": (q, [p]),
        "set": ({"params": {q}}, [p]),
        "some names missing": ({"params": [("q", q), torch.zeros(1)]}, [("p", p)]),
        "not a tensor": ({"params": [1.0]}, [p]),
        "non-leaf": ({"params": [q * 2]}, [p]),
        "overlap": ({"params": [p]}, [p]),
        "names mixed": ({"params": [("q", q)]}, [p]),
        "no params": ({"lr": 1.0}, [p]),
    }


@pytest.mark.parametrize("case", bad_groups())
def test_add_param_group_fails_in_torchs_words(case: str) -> None:
    errors = []
    for cls in (torch.optim.Adamax, Adamax):
        group, params = bad_groups()[case]
        optimizer = cls(params)
        with pytest.raises((TypeError, ValueError, KeyError)) as caught:
            optimizer.add_param_group(group)
        errors.append((type(caught.value), str(caught.value)))
        assert len(optimizer.param_groups) == 1
    assert errors[0] == errors[1]


def test_a_group_that_the_factory_refuses_is_not_added() -> None:
    p, q = torch.zeros(2), torch.zeros(3)
    optimizer = wrap(fa.nadamax)([p], lr=0.1)
    with pytest.raises(ValueError, match=r"lr must be in \[0, inf\), got -1"):
        optimizer.add_param_group({"params": [q], "lr": -1.0})
    assert [group["params"] for group in optimizer.param_groups] == [[p]]


@pytest.mark.parametrize("params", [[], torch.zeros(2), None], ids=["empty", "tensor", "None"])
def test_bad_params_fail_in_torchs_words(params: Any) -> None:
    errors = []
    for cls in (torch.optim.Adamax, Adamax):
        with pytest.raises((TypeError, ValueError)) as caught:
            cls(params)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def test_a_group_added_in_mid_run() -> None:
    source = parameters(torch.float32)
    a, b = copies(source), copies(source)
    theirs, ours = torch.optim.Adamax(a[:2]), Adamax(b[:2])
    for i in range(6):
        if i == 3:
            theirs.add_param_group({"params": a[2:], "lr": 0.1})
            ours.add_param_group({"params": b[2:], "lr": 0.1})
        set_grads(a, b)
        theirs.step()
        ours.step()
        assert_twins(theirs, ours)


@pytest.mark.parametrize("make", [Adamax, wrap(fa.adamaxw), wrap(fa.adam)])
def test_a_group_appended_by_hand(make: Any) -> None:
    p, q = parameters(torch.float32)[:2]
    optimizer, usual = make([p], lr=0.1), make(copies([p, q]), lr=0.1)
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [q]})
    twins = usual.param_groups[0]["params"]
    for _ in range(3):
        set_grads([p, q], twins, missing=0.0)
        optimizer.step()
        usual.step()
    assert torch.equal(p, twins[0])
    assert torch.equal(q, twins[1])


@pytest.mark.parametrize("couple", ["group", "all"])
@pytest.mark.parametrize("native", [True, False])
def test_no_groups_at_all(couple: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(machine, "_machine", None)
        monkeypatch.setattr(kernel, "_native", None)
    p = torch.zeros(2)
    p.grad = torch.ones(2)
    optimizer = wrap(fa.adam)([p], couple=couple)
    optimizer.param_groups.clear()
    optimizer.step()
    assert p.tolist() == [0.0, 0.0]
    assert not optimizer.state


def test_lazy_modules_may_come_before_their_first_batch() -> None:
    module = torch.nn.LazyLinear(3)
    optimizer = Adamax(module.parameters())
    module(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert optimizer.state[module.weight]["exp_avg"].shape == (3, 4)


def test_foreign_group_keys_are_ignored_kept_and_saved() -> None:
    p, optimizer = one()
    optimizer.param_groups[0].update(initial_lr=0.1, swa_lr=0.2, max_momentum=0.9, mine="text")
    optimizer.step()
    saved = optimizer.state_dict()["param_groups"][0]
    assert (saved["initial_lr"], saved["mine"]) == (0.1, "text")
    other = Adamax([p])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["swa_lr"] == 0.2


def test_tensor_lr_is_kept_as_the_object_it_is() -> None:
    for lr in (torch.tensor(0.1), torch.tensor([0.1])):
        p, optimizer = one(lr=lr)
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] is lr
        assert lr.item() == pytest.approx(0.1)
        assert p.shape == (3,)
        scalar = torch.nn.Parameter(torch.tensor(1.0))
        scalar.grad = torch.tensor(1.0)
        Adamax([scalar], lr=lr).step()
        assert scalar.shape == ()


def test_named_parameters() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = Adamax(model.named_parameters())
    model(torch.randn(1, 2)).sum().backward()
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_parameters_sharing_memory_are_reported_by_name() -> None:
    p = torch.zeros(3)
    with pytest.warns(UserWarning, match="a and b are the same memory") as first:
        Adamax([("a", p), ("b", p.view(3))])
    optimizer = Adamax([("z", torch.zeros(1))])
    with pytest.warns(UserWarning, match="a and b are the same memory") as second:
        optimizer.add_param_group({"params": [("a", p), ("b", p.view(3))]})
    assert first[0].filename == second[0].filename == __file__


def test_a_refused_group_is_not_added() -> None:
    _, optimizer = one()
    with pytest.raises(TypeError, match="state_dtype must be"):
        optimizer.add_param_group({"params": [torch.zeros(2)], "state_dtype": "float32"})
    assert len(optimizer.param_groups) == 1
