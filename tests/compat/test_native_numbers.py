"""The native step has torch's bits for unusual numbers, or leaves them to what raises and warns."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_adamax._execution.native import kernel
from functional_adamax._execution.native.kernel import Group
from functional_adamax.compat import Adamax

pytestmark = pytest.mark.skipif(kernel._native is None, reason="built without a compiler")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
GIVEN = {"lr": 0.1, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
BEYOND = [{"lr": 1e39}, {"lr": 3.5e38}, {"lr": 1e38, "b1": 0.9}, {"weight_decay": 1e39}]
OUT_OF_RANGE = [
    *({"lr": x} for x in (-0.1, -1e-19, nan, torch.tensor(-0.1), torch.tensor(nan))),
    *({"b1": x} for x in (-0.5, 1.0, 1.045, inf, nan)),
    *({"b2": x} for x in (-0.5, 1.0, 1.045, inf, nan)),
    *({"eps": x} for x in (-1.0, -inf, nan)),
    *({"weight_decay": x} for x in (-0.1, nan)),
]
IN_RANGE = [
    *({"lr": x} for x in (0.0, inf, 1e30, torch.tensor(0.1), torch.tensor(inf))),
    *({"eps": x} for x in (0.0, 1e5, 1e39, inf)),
    *({"weight_decay": x} for x in (0.1, inf)),
    {"b2": 0.0},
]


def named(change: dict[str, Any]) -> str:
    ((name, value),) = list(change.items())[:1]
    return f"{name}={value}"


def tensors(dtype: torch.dtype) -> tuple[nn.Parameter, dict[str, Tensor]]:
    p = nn.Parameter(torch.tensor([1.0, -2.0, 0.0, 3.0]).to(dtype))
    p.grad = torch.tensor([0.5, -0.25, 0.0, 2.0]).to(dtype)
    m, u = torch.tensor([0.5, 0.25, 0.0, -1.0]), torch.tensor([0.5, 0.25, 0.0, 4.0])
    return p, {"step": torch.tensor(3.0), "exp_avg": m.to(dtype), "exp_inf": u.to(dtype)}


def advance(dtype: torch.dtype, change: dict[str, Any]) -> tuple[Any, list[Tensor]]:
    """What the kernel answers to one step, and the tensors after it."""
    p, entry = tensors(dtype)
    for mode in range(3):
        kernel.is_active(dtype, dtype, mode)
    group = Group([p], **{**GIVEN, **change}, maximize=False, decoupled=False)
    return kernel.advance([group], {p: entry}, []), [p.detach(), *entry.values()]


def torchs(dtype: torch.dtype, change: dict[str, Any]) -> list[Tensor]:
    p, entry = tensors(dtype)
    values = {**GIVEN, **change}
    optimizer = torch.optim.Adamax([p], foreach=False)
    optimizer.param_groups[0].update(values, betas=(values["b1"], values["b2"]))
    optimizer.state[p] = entry
    optimizer.step()
    return [p.detach(), *entry.values()]


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("change", IN_RANGE, ids=named)
def test_numbers_in_range_have_torchs_bits(dtype: torch.dtype, change: dict[str, Any]) -> None:
    wanted = torchs(dtype, change)
    answer, found = advance(dtype, change)
    decays = "weight_decay" in change and dtype not in (torch.float32, torch.float64)
    assert (answer is None) == decays, "the kernel takes all but the decay of halves and complex"
    if answer is not None:
        assert_same(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("change", BEYOND, ids=named)
def test_numbers_beyond_the_arithmetic_are_left_to_what_raises(
    dtype: torch.dtype, change: dict[str, Any]
) -> None:
    if change.get("lr") == 1e38:  # which only the bias correction of a first step takes beyond it
        change = {**change, "b1": 0.99}
    answer, found = advance(dtype, change)
    assert answer is None
    p, entry = tensors(dtype)
    assert_same(found, [p.detach(), *entry.values()])
    if change.get("lr") != 1e38:
        with pytest.raises(RuntimeError, match="without overflow"):
            torchs(dtype, change)


def test_doubles_take_numbers_beyond_float32() -> None:
    for change in ({"lr": 1e39}, {"weight_decay": 1e39}):
        answer, found = advance(torch.float64, change)
        assert answer is not None
        assert_same(found, torchs(torch.float64, change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("change", OUT_OF_RANGE, ids=named)
def test_hyperparameters_out_of_range_are_left_to_what_warns(
    dtype: torch.dtype, change: dict[str, Any]
) -> None:
    answer, found = advance(dtype, change)
    assert answer is None
    p, entry = tensors(dtype)
    assert_same(found, [p.detach(), *entry.values()])


@pytest.mark.parametrize("b1", [0.9, 0.9999999, 1 - 1e-9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_counter_that_stands_still_corrects_the_bias_as_torch_does(
    b1: float, dtype: torch.dtype
) -> None:
    """2^24 + 1 is 2^24 in float32, and torch uses what it stored."""

    def run(cls: Any) -> tuple[list[Tensor], Any]:
        p, entry = tensors(dtype)
        entry["step"] = torch.tensor(2.0**24 - 1)
        optimizer = cls([p], lr=0.1, betas=(b1, 0.999))
        optimizer.state[p] = entry
        for _ in range(4):
            optimizer.step()
        return [p.detach(), *optimizer.state[p].values()], optimizer

    found, ours = run(Adamax)
    wanted, _ = run(torch.optim.Adamax)
    assert ours._written, "the kernel took the step"
    assert_same(found, wanted)
    assert found[1] == 2**24


@pytest.mark.parametrize("counter", [-1.0, -2.0, nan])
def test_counters_from_which_torch_cannot_correct_are_left_to_it(counter: float) -> None:
    p, entry = tensors(torch.float32)
    entry["step"] = torch.tensor(counter)
    group = Group([p], **GIVEN, maximize=False, decoupled=False)
    assert kernel.is_active(torch.float32, torch.float32, 0)
    assert kernel.advance([group], {p: entry}, []) is None


@pytest.mark.parametrize("name", ["exp_avg", "exp_inf", "step"])
@pytest.mark.parametrize("same_memory", [False, True], ids=["new memory", "same memory"])
def test_a_known_tensor_that_became_a_lazy_negative_is_noticed(
    name: str, same_memory: bool
) -> None:
    def run(cls: Any) -> list[Tensor]:
        p, _ = tensors(torch.float32)
        optimizer = cls([p], lr=0.1)
        for i in range(5):
            p.grad = torch.tensor([1.0, -2.0, 0.5, i])
            if i == 3:
                assert cls is torch.optim.Adamax or optimizer._written
                x = optimizer.state[p][name]
                memory = x.detach().neg_() if same_memory else x.detach().neg()
                x.data = torch._neg_view(memory)
                assert x.is_neg()
            optimizer.step()
        return [p.detach(), *(x.resolve_neg() for x in optimizer.state[p].values())]

    assert_same(run(Adamax), run(torch.optim.Adamax))


def test_a_known_complex_moment_that_became_a_lazy_conjugate_is_noticed() -> None:
    """torch refuses it; its numbers are those of a moment that is written out."""

    def run(cls: Any, lazy: bool) -> list[Tensor]:
        p = nn.Parameter(torch.tensor([1 + 2j, -3 + 1j]))
        optimizer = cls([p], lr=0.1)
        for i in range(5):
            p.grad = torch.tensor([1 - 1j, 2 + 0.5j]) * (i + 1)
            if i == 3:
                m = optimizer.state[p]["exp_avg"]
                m.data = m.detach().clone().conj_physical_()
                if lazy:
                    assert optimizer._written
                    m.data = m.detach().conj_physical_().conj()
            optimizer.step()
        return [p.detach(), *(x.resolve_conj() for x in optimizer.state[p].values())]

    assert_same(run(Adamax, lazy=True), run(torch.optim.Adamax, lazy=False))
