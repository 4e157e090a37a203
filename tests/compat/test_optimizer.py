"""What torch's machinery expects of an optimizer: schedulers, AMP, SWA, profiler, copies."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from twins import assert_twins, copies, one, parameters, set_grads

import compat
import functional_adamax as fa
import functional_adamax.compat
from functional_adamax.compat import Adamax, Optimizer


def test_it_is_an_optimizer_under_both_names() -> None:
    assert compat.Adamax is functional_adamax.compat.Adamax
    assert issubclass(Adamax, torch.optim.Optimizer)
    assert issubclass(Adamax, Optimizer), "it is an instance of the same machinery"
    assert compat.__all__ == functional_adamax.compat.__all__
    for name in compat.__all__:
        assert getattr(compat, name) is getattr(functional_adamax.compat, name)


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 0.9**e),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=12),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [3],
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.5, anneal_epochs=4),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
def test_schedulers_drive_both_alike(name: str, tensor: bool) -> None:
    source = parameters(torch.float32)
    a, b = copies(source), copies(source)
    rates = [torch.tensor(0.05) if tensor else 0.05 for _ in range(2)]
    theirs, ours = torch.optim.Adamax(a, lr=rates[0]), Adamax(b, lr=rates[1])
    schedulers = [SCHEDULERS[name](o) for o in (theirs, ours)]
    for i in range(10):
        set_grads(a, b)
        theirs.step()
        ours.step()
        for scheduler in schedulers:
            scheduler.step(*([float(i)] if name == "ReduceLROnPlateau" else []))
        assert float(theirs.param_groups[0]["lr"]) == float(ours.param_groups[0]["lr"])
        assert theirs.param_groups[0]["betas"] == ours.param_groups[0]["betas"]
        assert_twins(theirs, ours)


def test_grad_scaler_skips_a_bad_step_without_touching_state() -> None:
    p, optimizer = one()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = p.detach().clone()
    for bad in (True, False):
        optimizer.zero_grad()
        scaler.scale((p * (float("inf") if bad else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert bad == torch.equal(p.detach(), before)
        assert bad == (len(optimizer.state) == 0)
    assert torch.equal(p.grad, torch.ones(3))


@pytest.mark.parametrize(
    ("make", "twin", "tolerance"),
    [
        (Adamax, torch.optim.Adamax, 0.0),
        (partial(Optimizer, factory=fa.adamw), partial(torch.optim.AdamW, fused=True), 1e-5),
    ],
    ids=["Adamax", "adamw, to fused"],
)
def test_grad_scaler_with_one_bad_step_in_five(make: Any, twin: Any, tolerance: float) -> None:
    """Parameters, moments and counters as torch has them, whose fused forms skip in the kernel.

    Those round otherwise: 16 steps of some roundings each stay below 1e-5.
    """
    ends = []
    for cls in (make, twin):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(7))
        optimizer = cls([p], lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        for i in range(20):
            optimizer.zero_grad()
            spoil = torch.inf if i % 5 == 3 else 1.0
            scaler.scale((p**2 * torch.rand(7) * spoil).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        state = optimizer.state[p]
        ends.append([scaler.get_scale(), p.detach(), *(state[name] for name in sorted(state))])
    for got, wanted in zip(*ends, strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=0.0, check_dtype=False)
    assert ends[0][-1] == 16


def test_averaged_model_and_profiler() -> None:
    model = torch.nn.Linear(2, 2)
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = Adamax(model.parameters())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(torch.randn(1, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    average.update_parameters(model)
    names = {event.name for event in profile.events()}
    assert {"Optimizer.step#Adamax.step", "Optimizer.zero_grad#Adamax.zero_grad"} <= names


def test_optimizer_in_backward() -> None:
    model = torch.nn.Linear(2, 2)
    handles = []
    optimizers = {p: Adamax([p], lr=0.1) for p in model.parameters()}
    for p in model.parameters():
        handles.append(
            p.register_post_accumulate_grad_hook(lambda q: (optimizers[q].step(), None)[1])
        )
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(1, 2)).sum().backward()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("options", [{}, {"state_dtype": torch.float64}], ids=str)
def test_copies_go_on_with_the_same_bits(how: str, options: dict[str, Any]) -> None:
    p, optimizer = one(lr=torch.tensor(0.1), weight_decay=0.1, **options)
    optimizer.step()
    optimizer.register_step_post_hook(lambda *_: pytest.fail("hooks are not copied, as in torch"))
    twin = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    q = twin.param_groups[0]["params"][0]
    optimizer._optimizer_step_post_hooks.clear()
    assert twin.defaults.keys() == optimizer.defaults.keys()
    for _ in range(3):
        q.grad = p.grad = torch.randn(3)
        optimizer.step()
        twin.step()
        assert_twins(optimizer, twin)


def test_a_schedule_is_sent_to_the_class_that_takes_it() -> None:
    with pytest.raises(TypeError, match=r"lr must be a number .* compat.Optimizer\(params, "):
        Adamax([torch.nn.Parameter(torch.ones(2))], lr=fa.linear_schedule(0.1, 0.0, 10))
    p, optimizer = one()
    with pytest.raises(TypeError, match="lr must be a number"):
        optimizer.add_param_group({"params": [p], "lr": fa.linear_schedule(0.1, 0.0, 10)})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("foreach", [None, True, False])
def test_a_rate_of_one_element_has_any_shape(foreach: bool | None) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    Adamax([p], lr=torch.tensor([[0.5]]), foreach=foreach).step()
    assert p.tolist() == [0.5, 0.5]


def test_an_old_pickle_without_the_newer_flags_steps() -> None:
    p, optimizer = one()
    optimizer.step()
    state = optimizer.__getstate__()
    for name in ("foreach", "maximize", "differentiable", "capturable"):
        del state["param_groups"][0][name]
    state["state"][p]["step"] = 1
    old = Adamax.__new__(Adamax)
    old.__setstate__(state)
    old.step()
    assert old.state[p]["step"].item() == 2.0


def test_nothing_warns_in_an_ordinary_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p, optimizer = one()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        for _ in range(3):
            optimizer.step()
            scheduler.step()
    assert optimizer.state[p]["step"] == 3
    assert optimizer.param_groups[0]["lr"] < 2e-3


@pytest.mark.skipif(
    not hasattr(torch.optim, "swap_in_optimizer_params_and_state"),
    reason="this version of torch does not swap them in",
)
def test_parameters_and_state_swapped_in() -> None:
    """Only in-place edits come back, so the step must write over what it is given."""
    results = []
    for cls in (torch.optim.Adamax, Adamax):
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        optimizer = cls([p], lr=0.1)
        optimizer.step()
        kept, state = p.detach().clone(), copy.deepcopy(optimizer.state_dict())
        other = torch.nn.Parameter(torch.full((3,), 5.0))
        with torch.optim.swap_in_optimizer_params_and_state(optimizer, {"p": other}, state):
            other.grad = torch.tensor([1.0, -2.0, 0.5])
            optimizer.step()
        assert torch.equal(p.detach(), kept)
        results.append([other.detach(), *state["state"][0].values()])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    assert results[1][1].item() == 2.0
