"""What a script may do to an optimizer between two steps; torch's optimizer does the same."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import UserDict
from typing import Any

import pytest
import torch
from torch import nn

import functional_adamax as fa
from functional_adamax._execution.native import kernel
from functional_adamax.compat import Adamax, Optimizer

CLASSES = (Adamax, torch.optim.Adamax)


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    numbers = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
    return nn.Parameter(numbers.to(dtype))


def take(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int = 1) -> None:
    for _ in range(steps):
        for p in params:
            p.grad = torch.full_like(p, 0.3)
        optimizer.step()


def both(run: Any) -> None:
    """``run`` returns the same tensors with either class."""
    ours, theirs = (run(cls) for cls in CLASSES)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parameters_that_come_and_go(options: dict[str, Any], dtype: torch.dtype) -> None:
    def run(cls: Any) -> list[torch.Tensor]:
        a, b, c = (parameter(n, dtype=dtype) for n in (3, 2, 2))
        optimizer = cls([a, b], **options)
        take(optimizer, [a, b], 2)
        optimizer.param_groups[0]["params"].pop()
        take(optimizer, [a])
        optimizer.param_groups[0]["params"].append(c)
        take(optimizer, [a, c], 2)
        return [a, b, c]

    both(run)


def test_a_named_parameter_that_goes() -> None:
    def run(cls: Any) -> list[torch.Tensor]:
        a, b, c = parameter(3), parameter(2), parameter(2)
        optimizer = cls([("a", a), ("b", b), ("c", c)])
        take(optimizer, [a, b], 2)
        optimizer.param_groups[0]["params"].pop(1)
        take(optimizer, [a])
        take(optimizer, [a, c])
        return [a, b, c]

    both(run)


def test_other_containers() -> None:
    def run(cls: Any) -> list[torch.Tensor]:
        a, b = parameter(3), parameter(2)
        optimizer = cls([a, b])
        take(optimizer, [a, b], 2)
        optimizer.param_groups[0]["params"] = (a, b)
        take(optimizer, [a, b])
        optimizer.state = UserDict(optimizer.state)
        take(optimizer, [a, b])
        return [a, b]

    both(run)


def test_data_that_becomes_a_lazy_view() -> None:
    def run(cls: Any) -> list[torch.Tensor]:
        a = parameter(3)
        optimizer = cls([a])
        take(optimizer, [a], 2)
        a.data = torch._neg_view(torch.tensor([1.0, 2.0, 3.0]))
        take(optimizer, [a])
        return [a.detach().clone()]

    both(run)


@pytest.mark.parametrize("name", ["exp_avg", "exp_inf", "step"])
def test_state_that_becomes_an_inference_tensor(name: str) -> None:
    a = parameter(3)
    optimizer = Adamax([a])
    take(optimizer, [a], 2)
    with torch.inference_mode():
        optimizer.state[a][name] = optimizer.state[a][name].clone()
    before = a.detach().clone()
    with pytest.raises(RuntimeError, match="inference tensor"):
        take(optimizer, [a])
    assert torch.equal(a.detach(), before)


@pytest.mark.parametrize("name", ["exp_avg", "exp_inf", "step"])
def test_state_that_is_gone(name: str) -> None:
    for cls in CLASSES:
        a = parameter(3)
        optimizer = cls([a])
        take(optimizer, [a], 2)
        del optimizer.state[a][name]
        with pytest.raises(KeyError, match=name):
            take(optimizer, [a])


def test_a_decay_of_zero_is_none_as_a_tensor_too() -> None:
    def run(cls: Any) -> list[torch.Tensor]:
        a = nn.Parameter(torch.tensor([1.0, torch.inf]))
        optimizer = cls([a], weight_decay=torch.tensor(0.0), foreach=False)
        take(optimizer, [a], 3)
        return [a]

    both(run)


@pytest.mark.parametrize("name", ["adamax", "adam"])
def test_hyperparameters_are_obeyed_however_they_are_changed(name: str) -> None:
    """Numbers that are replaced, a list or a tensor that is changed in place, another group."""
    make = getattr(fa, name)

    def moved(change: Any, **options: Any) -> torch.Tensor:
        w = parameter(3)
        optimizer = Optimizer([w], make, **options)
        for _ in range(2):
            take(optimizer, [w])
            optimizer.state.clear()
            w.data = parameter(3).data
        change(optimizer)
        take(optimizer, [w])
        return w.detach()

    def replace(optimizer: Any) -> None:
        optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 0.5}

    def spoil(optimizer: Any) -> None:
        optimizer.param_groups[0]["betas"][0] = 1.5

    lr = torch.tensor(0.1)
    new = moved(lambda _: None, lr=0.5)
    assert torch.equal(moved(lambda x: x.param_groups[0].update(lr=0.5), lr=0.1), new)
    assert torch.equal(moved(replace, lr=0.1), new)
    torch.testing.assert_close(moved(lambda _: lr.fill_(0.5), lr=lr), new)
    with pytest.raises(ValueError, match=r"betas\[0\] must be in \[0, 1\), got 1.5"):
        moved(spoil, betas=[0.9, 0.9])


def test_an_optimizer_is_freed_when_nobody_holds_it() -> None:
    w = parameter(3)
    for make in (Adamax, lambda params: Optimizer(params, fa.adam)):
        optimizer = make([w])
        take(optimizer, [w], 2)
        gc.collect()
        gc.disable()
        try:
            seen = weakref.ref(optimizer)
            del optimizer
            assert seen() is None
        finally:
            gc.enable()


def test_a_parameter_that_cannot_be_written_is_named() -> None:
    w, expanded = parameter(3), nn.Parameter(torch.ones(1).expand(3), requires_grad=False)
    optimizer = Optimizer([("w", w), ("expanded", expanded)], fa.sgd, lr=0.1)
    w.grad = expanded.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"clone\(\) expanded before"):
        optimizer.step()


def test_groups_coupled_that_cease_to_fit() -> None:
    a, b = parameter(3), parameter(2)
    optimizer = Optimizer([{"params": [a]}, {"params": [b]}], fa.adamax, couple="all")
    take(optimizer, [a, b], 2)
    optimizer.param_groups[1]["maximize"] = True
    with pytest.raises(ValueError, match="may differ in numbers only"):
        take(optimizer, [a, b])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_default_dtype_may_be_any(dtype: torch.dtype) -> None:
    kernel.is_active.cache_clear()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        both(lambda cls: [p for p in [parameter(3)] if take(cls([p], eps=1e-4), [p], 3) is None])
        with torch.device("meta"):
            p = nn.Parameter(torch.ones(3, device="cpu"))
            p.grad = torch.ones(3, device="cpu")
            Adamax([p], eps=1e-4).step()
    finally:
        torch.set_default_dtype(before)
        kernel.is_active.cache_clear()


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_eps_that_counts_in_halves(dtype: torch.dtype, eps: float) -> None:
    def run(cls: Any) -> list[torch.Tensor]:
        p = nn.Parameter(torch.randn(20000, generator=torch.Generator().manual_seed(0)).to(dtype))
        optimizer = cls([p], eps=eps)
        for i in range(3):
            p.grad = torch.randn(20000, generator=torch.Generator().manual_seed(i)).to(dtype)
            p.grad *= eps
            optimizer.step()
        return [p, *optimizer.state[p].values()]

    both(run)


def test_another_thread_may_replace_the_state() -> None:
    params = [nn.Parameter(torch.ones(8)) for _ in range(20)]
    optimizer = Adamax(params)
    take(optimizer, params)
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for p in params:
                for name in ("exp_avg", "exp_inf"):
                    optimizer.state[p][name] = torch.zeros(8)
                optimizer.state[p]["step"] = torch.tensor(1.0)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(300):
            optimizer.step()
    finally:
        stop.set()
        thread.join()
    for p in params:
        assert p.isfinite().all()
        assert (p < 1).all()
