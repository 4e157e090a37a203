"""The classic step: what it writes, and that it writes nothing where it fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from twins import BOTH, one

from functional_adamax.compat import Adamax


def test_step_writes_in_place_and_leaves_gradients_alone() -> None:
    for options in ({}, {"weight_decay": 0.1, "maximize": True}, {"foreach": True}):
        p, optimizer = one(**options)
        grad, address, version = p.grad, p.data_ptr(), p._version
        kept = grad.clone()
        optimizer.step()
        state = {k: v.data_ptr() for k, v in optimizer.state[p].items()}
        optimizer.step()
        assert p.grad is grad
        assert torch.equal(grad, kept)
        assert p.data_ptr() == address
        assert p._version > version  # autograd notices a parameter changed under its feet
        assert state == {k: v.data_ptr() for k, v in optimizer.state[p].items()}


def test_backward_through_a_stepped_parameter_raises_as_with_torch() -> None:
    p, optimizer = one()
    loss = (p**3).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_state_is_made_at_the_first_gradient() -> None:
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = Adamax([p, q])
    assert optimizer.state_dict()["state"] == {}
    p.grad = torch.ones(2)
    optimizer.step()
    assert q not in optimizer.state
    assert list(optimizer.state[p]) == ["step", "exp_avg", "exp_inf"]
    assert optimizer.state[p]["step"].dtype == torch.float32


@BOTH
def test_closure_runs_with_gradients_and_its_loss_comes_back(cls: Any) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = cls([p], lr=0.1)

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert float(optimizer.step(closure)) == 2.0
    assert p.detach().tolist() == pytest.approx([0.9, 0.9])
    assert optimizer.step() is None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    p, optimizer = one()
    optimizer.zero_grad(set_to_none=set_to_none)
    assert p.grad is None if set_to_none else torch.equal(p.grad, torch.zeros(3))


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_create_graph_does_not_grow_a_graph() -> None:
    p, optimizer = one()
    for _ in range(3):
        optimizer.zero_grad()
        (p**3).sum().backward(create_graph=True)
        optimizer.step()
    assert p.grad_fn is None
    assert all(not x.requires_grad for x in optimizer.state[p].values())
    p.grad = None


def failing_in_the_second_group(kind: str) -> tuple[type[Exception], str, Any]:
    good = torch.nn.Parameter(torch.ones(3))
    bad = torch.nn.Parameter(torch.ones(3))
    good.grad = torch.ones(3)
    if kind == "sparse":
        bad.grad = torch.ones(3).to_sparse()
        return RuntimeError, "Adamax does not support sparse gradients", (good, bad, {})
    if kind == "dtype":
        bad.grad_dtype = torch.float64
        bad.grad = torch.ones(3, dtype=torch.float64)
        return (
            RuntimeError,
            "expected a gradient of the dtype.*float32.*float64",
            (good, bad, {}),
        )
    bad.grad = torch.ones(3)
    if kind == "capturable":
        return AssertionError, "If capturable=True", (good, bad, {"capturable": True})
    return (
        AssertionError,
        "_foreach ops don't support autograd",
        (
            good,
            bad,
            {"foreach": True, "differentiable": True},
        ),
    )


@pytest.mark.parametrize("kind", ["sparse", "dtype", "capturable", "foreach"])
def test_all_groups_are_checked_before_anything_is_written(kind: str) -> None:
    error, message, (good, bad, options) = failing_in_the_second_group(kind)
    optimizer = Adamax([{"params": [good]}, {"params": [bad], **options}])
    with pytest.raises(error, match=message):
        optimizer.step()
    assert torch.equal(good.detach(), torch.ones(3))
    assert len(optimizer.state) == 0


def test_bad_group_values_and_bad_state_are_found_before_anything_is_written() -> None:
    def broken_value(name: str, value: Any) -> Any:
        return lambda group, state: group.__setitem__(name, value)

    def broken_state(name: str, value: Any) -> Any:
        return lambda group, state: state.__setitem__(name, value)

    cases = [
        (broken_value("weight_decay", None), TypeError, "weight_decay of a parameter group"),
        (broken_value("lr", [0.1, 0.2]), TypeError, "lr of a parameter group must be a number"),
        (broken_value("lr", torch.ones(3)), TypeError, "lr of a parameter group"),
        (broken_value("betas", (0.9, 0.9, 0.9)), ValueError, "too many values"),
        (broken_state("exp_inf", torch.ones(7)), RuntimeError, r"shape \(3,\) and .* \(7,\)"),
        (broken_state("step", 3), RuntimeError, "API has changed"),
        (
            broken_state("exp_avg", torch.ones(3, dtype=torch.float64)),
            RuntimeError,
            "expected a gradient of the dtype of the moments",
        ),
    ]
    for foreach in (False, True):
        for break_it, error, message in cases:
            good, bad = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
            optimizer = Adamax([{"params": [good]}, {"params": [bad]}], foreach=foreach)
            good.grad = bad.grad = torch.ones(3)
            optimizer.step()
            before = good.detach().clone()
            break_it(optimizer.param_groups[1], optimizer.state[bad])
            with pytest.raises(error, match=message):
                optimizer.step()
            assert torch.equal(good.detach(), before)
            assert optimizer.state[good]["step"].item() == 1.0


def test_a_beta_that_would_divide_by_zero_fails_as_in_torch() -> None:
    for cls in (torch.optim.Adamax, Adamax):
        p = torch.nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        optimizer = cls([p])
        optimizer.param_groups[0]["betas"] = (1.0, 0.999)
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
    assert p.tolist() == [1.0, 1.0]


def test_state_made_in_inference_mode_is_refused_outside_before_anything_is_written() -> None:
    p, optimizer = one()
    with torch.inference_mode():
        optimizer.step()
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside"):
        optimizer.step()
    assert torch.equal(p.detach(), before)


@pytest.mark.parametrize("foreach", [False, True])
def test_another_default_device_does_not_matter(foreach: bool) -> None:
    p, optimizer = one(foreach=foreach)
    optimizer.step()
    with torch.device("meta"):
        optimizer.step()
    assert optimizer.state[p]["step"].item() == 2.0


def test_fake_tensors_and_traced_steps() -> None:
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        Adamax([p]).step()
        assert p.shape == (3,)

    def step(start: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        p = start.clone()
        p.grad = grad
        Adamax([p], lr=0.1).step()
        return p

    args = torch.ones(3), torch.tensor([1.0, -2.0, 0.5])
    assert torch.equal(make_fx(step)(*args)(*args), step(*args))


@BOTH
def test_float32_moments_beside_a_half_parameter(cls: Any) -> None:
    """torch steps them if the gradient is float32 too."""
    p = torch.nn.Parameter(torch.linspace(-1, 1, 9).bfloat16())
    p.grad_dtype = torch.float32
    p.grad = torch.linspace(1, 3, 9)
    optimizer = cls([p], lr=0.1)
    moments = {"exp_avg": torch.ones(9), "exp_inf": torch.full((9,), 2.0)}
    optimizer.state[p] = {"step": torch.tensor(3.0), **moments}
    optimizer.step()
    want = torch.linspace(-1, 1, 9).bfloat16()
    want.addcdiv_(moments["exp_avg"], moments["exp_inf"], value=-0.1 / (1 - 0.9**4))
    assert torch.equal(p.detach(), want)


def test_sliced_parameters_are_stepped_in_place_beside_dense_ones() -> None:
    results = []
    for cls in (torch.optim.Adamax, Adamax):
        torch.manual_seed(0)
        whole = torch.randn(4, 6)
        sliced, dense = whole[:, ::2], torch.randn(5)
        optimizer = cls([sliced, dense], lr=0.1)
        for _ in range(3):
            sliced.grad, dense.grad = torch.randn(4, 3), torch.randn(5)
            optimizer.step()
        results.append((whole, dense))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("foreach", [False, True])
def test_capturable_on_a_cpu_fails_in_torchs_words(foreach: bool) -> None:
    errors = []
    for cls in (torch.optim.Adamax, Adamax):
        p = torch.nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        with pytest.raises(AssertionError) as caught:
            cls([p], capturable=True, foreach=foreach).step()
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
