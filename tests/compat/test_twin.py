"""``compat.Adamax`` and ``torch.optim.Adamax`` have the same bits, over all options."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    optim_error_inputs_func_adamax,
    optim_inputs_func_adamax,
)
from trees import DTYPES
from twins import assert_twins, copies, pair, parameters, set_grads

from functional_adamax.compat import Adamax

pytestmark = pytest.mark.filterwarnings("ignore:eps=")  # float16 without state_dtype, on purpose

OPTIONS = [
    {},
    {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-4},
    {"betas": (0.0, 0.0)},
    {"eps": 0.0},
    {"lr": 0.0, "weight_decay": 0.1},
    {"weight_decay": 0.1},
    {"maximize": True},
    {"maximize": True, "weight_decay": 0.9},
    {"lr": torch.tensor(0.01)},
    {"lr": torch.tensor([0.01], dtype=torch.float64), "weight_decay": 0.01},
    {"lr": torch.tensor(0.01, dtype=torch.bfloat16)},
    {"lr": torch.tensor(1)},
    {"lr": 2e-3, "weight_decay": 0.2, "betas": (0.9999, 0.99)},
]


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_thirty_steps(options: dict[str, Any], dtype: torch.dtype, foreach: bool | None) -> None:
    theirs, ours, a, b = pair(parameters(dtype), foreach=foreach, **options)
    for _ in range(30):
        set_grads(a, b)
        theirs.step()
        ours.step()
        assert_twins(theirs, ours)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_inputs_torch_tests_itself_with(dtype: torch.dtype, foreach: bool) -> None:
    for given in optim_inputs_func_adamax(torch.device("cpu"), dtype):
        theirs, ours, a, b = pair(parameters(dtype), foreach=foreach, **given.kwargs)
        for _ in range(30):
            set_grads(a, b)
            theirs.step()
            ours.step()
        assert_twins(theirs, ours)


@pytest.mark.parametrize(
    "given",
    optim_error_inputs_func_adamax("cpu", torch.float32),
    ids=lambda e: e.optimizer_error_input.desc,
)
def test_the_errors_torch_tests_itself_with(given: Any) -> None:
    assert given.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    inputs = given.optimizer_error_input
    params = inputs.params
    if params is None:
        params = [torch.nn.Parameter(torch.randn(2, 3))]
    messages = []
    for cls in (torch.optim.Adamax, Adamax):
        copied = [dict(p) if isinstance(p, dict) else p for p in params]
        with pytest.raises(given.error_type, match=given.error_regex) as caught:
            cls(params if isinstance(params, torch.Tensor) else copied, **inputs.kwargs)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"lr": float("nan")},
        {"lr": torch.tensor(-1.0)},
        {"lr": torch.tensor([1.0, 2.0])},
        {"eps": -1e-8},
        {"betas": (1.0, 0.5)},
        {"betas": (-0.1, 0.5)},
        {"betas": (0.5, 1.0)},
        {"weight_decay": -0.1},
        {"nonsense": 1},
    ],
    ids=str,
)
def test_bad_arguments_fail_in_torchs_words(options: dict[str, Any]) -> None:
    errors = []
    for cls in (torch.optim.Adamax, Adamax):
        with pytest.raises((ValueError, TypeError)) as caught:
            cls([torch.zeros(2)], **options)
        errors.append((type(caught.value), str(caught.value).split("__init__")[-1].split(";")[0]))
    assert errors[0] == errors[1]


def test_positions_and_keywords_of_the_signature() -> None:
    theirs = inspect.signature(torch.optim.Adamax.__init__).parameters
    ours = inspect.signature(Adamax.__init__).parameters
    described = [(p.name, p.kind, p.default) for p in theirs.values()]
    assert [(p.name, p.kind, p.default) for p in ours.values()][: len(described)] == described
    assert list(ours)[len(described) :] == ["state_dtype"]


def test_groups_with_their_own_options() -> None:
    def groups(params: list[Any]) -> list[dict[str, Any]]:
        return [
            {"params": params[:2]},
            {"params": params[2:3], "lr": 0.3, "betas": (0.5, 0.6), "maximize": True},
            {"params": params[3:], "weight_decay": 0.2, "eps": 1e-3, "foreach": True},
            {"params": []},
        ]

    source = parameters(torch.float32)
    a, b = copies(source), copies(source)
    theirs, ours = torch.optim.Adamax(groups(a), lr=0.01), Adamax(groups(b), lr=0.01)
    for _ in range(10):
        set_grads(a, b)
        theirs.step()
        ours.step()
        assert_twins(theirs, ours)


def test_hyperparameters_changed_between_steps_are_obeyed() -> None:
    theirs, ours, a, b = pair(parameters(torch.float32))
    for i in range(10):
        for group in (theirs.param_groups[0], ours.param_groups[0]):
            group["lr"] = 0.1 / (i + 1)
            group["betas"] = (0.9 - 0.01 * i, 0.999)
            group["weight_decay"] = 0.1 * (i % 2)
            group["maximize"] = i % 3 == 0
            group["eps"] = 10.0 ** -(i + 2)
            group["foreach"] = i % 2 == 0
        set_grads(a, b)
        theirs.step()
        ours.step()
        assert_twins(theirs, ours)


def test_mixed_dtypes_in_one_group() -> None:
    source = [p for dtype in DTYPES for p in parameters(dtype)]
    for foreach in (False, True):
        theirs, ours, a, b = pair(source, foreach=foreach, weight_decay=0.1)
        for _ in range(5):
            set_grads(a, b)
            theirs.step()
            ours.step()
        assert_twins(theirs, ours)


def test_a_duplicate_parameter_is_stepped_twice_as_in_torch() -> None:
    results = []
    for cls in (torch.optim.Adamax, Adamax):
        p = torch.nn.Parameter(torch.ones(3))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = cls([p, p], lr=0.1)
        for i in range(3):
            p.grad = torch.full((3,), float(i + 1))
            optimizer.step()
        results.append((p.detach(), optimizer.state[p]["step"]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_float64_as_default_dtype_and_bfloat16_too() -> None:
    for default in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(default)
        try:
            theirs, ours, a, b = pair(parameters(torch.float32))
            for _ in range(3):
                set_grads(a, b)
                theirs.step()
                ours.step()
            assert_twins(theirs, ours)
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_signs_of_zeros_without_momentum(
    maximize: bool, foreach: bool, pytestconfig: pytest.Config
) -> None:
    if pytestconfig.getoption("executor") == "triton":
        pytest.skip("where a zero lies decides on its sign only on a CPU")
    source = [torch.nn.Parameter(torch.zeros(n)) for n in (1, 3, 8, 17, 64)]
    options: dict[str, Any] = {"betas": (0.0, 0.999), "maximize": maximize, "foreach": foreach}
    theirs, ours, a, b = pair(source, **options)
    for zero in (0.0, -0.0):
        for p in (*a, *b):
            p.grad = torch.full_like(p, zero)
        theirs.step()
        ours.step()
        for p, q in zip(a, b, strict=True):
            m, n = theirs.state[p]["exp_avg"], ours.state[q]["exp_avg"]
            assert torch.equal(p.signbit(), q.signbit())
            assert torch.equal(m.signbit(), n.signbit())


def test_special_values_of_gradients() -> None:
    values = [0.0, -0.0, 1e-45, 1e-38, 1e38, 3e38, float("inf"), -float("inf"), float("nan"), 1.0]
    for dtype, foreach in itertools.product((torch.float32, torch.float64), (False, True)):
        source = [torch.nn.Parameter(torch.ones(len(values), dtype=dtype))]
        theirs, ours, a, b = pair(source, foreach=foreach, weight_decay=0.1)
        for i in range(5):
            a[0].grad = torch.tensor(values, dtype=dtype).roll(i)
            b[0].grad = a[0].grad.clone()
            theirs.step()
            ours.step()
            assert_twins(theirs, ours)
