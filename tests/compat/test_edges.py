"""Where torch steps with odd numbers: its bits and its errors."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from twins import BOTH

import functional_adamax as fa
from functional_adamax.compat import Adamax, Optimizer

pytestmark = pytest.mark.filterwarnings("ignore:eps=")  # float16 without state_dtype, on purpose

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.complex128,
]
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 1e-3]


def bits(x: Tensor) -> Tensor:
    """The bits of each component, with one pattern for all NaN."""
    x = torch.view_as_real(x.detach()) if x.is_complex() else x.detach()
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return torch.where(x.isnan(), 7, x.view(whole))


def trained(
    cls: Any, start: list[Tensor], grads: list[list[Tensor]], **options: Any
) -> list[Tensor]:
    """Parameters and moments after a step for each of ``grads``."""
    params = [torch.nn.Parameter(x.clone()) for x in start]
    optimizer = cls(params, **options)
    for given in grads:
        for p, g in zip(params, given, strict=True):
            p.grad = g.clone()
        optimizer.step()
    moments = [optimizer.state[p][k] for p in params for k in ("exp_avg", "exp_inf", "step")]
    return [*params, *moments]


def assert_same_bits(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted) > 0
    for x, y in zip(got, wanted, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(bits(x), bits(y))


def special(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random numbers, a third of them special ones, in each component."""
    if dtype.is_complex:
        return torch.complex(*(special(shape, dtype.to_real()) for _ in range(2)))
    odd = torch.tensor(SPECIAL, dtype=dtype)[torch.randint(len(SPECIAL), shape)]
    return torch.where(torch.rand(shape) < 1 / 3, odd, torch.randn(shape, dtype=dtype))


@pytest.mark.parametrize("foreach", [None, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decay", [0.1, torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64)])
def test_special_values_and_tensor_decays_have_torchs_bits(
    decay: Any, dtype: torch.dtype, foreach: bool | None
) -> None:
    for betas, maximize in itertools.product([(0.9, 0.999), (0.0, 0.5)], [False, True]):
        start = [special((n,), dtype) for n in (1, 7, 70)]
        grads = [[special(x.shape, dtype) for x in start] for _ in range(3)]
        options = {"weight_decay": decay, "betas": betas, "maximize": maximize, "foreach": foreach}
        ours, theirs = (trained(c, start, grads, **options) for c in (Adamax, torch.optim.Adamax))
        assert_same_bits(ours, theirs)


ODD = [
    ("betas", (1.045, 0.999)),
    ("betas", (math.nan, 0.999)),
    ("betas", (0.9, 1.5)),
    ("betas", (-0.2, 0.999)),
    ("lr", -0.1),
    ("lr", math.nan),
    ("lr", torch.tensor(-0.1)),
    ("eps", -1.0),
    ("weight_decay", math.nan),
    ("weight_decay", -0.5),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "value"), ODD, ids=str)
def test_a_group_out_of_range_is_stepped_with_torchs_bits_and_a_warning_once(
    name: str, value: Any, dtype: torch.dtype
) -> None:
    start = [torch.randn(9, dtype=dtype), torch.randn(5, dtype=dtype)]
    grads = [[torch.randn_like(x) for x in start] for _ in range(3)]
    results, heard = [], []
    for cls in (Adamax, torch.optim.Adamax):
        params = [torch.nn.Parameter(x.clone()) for x in start]
        optimizer = cls([{"params": [p]} for p in params], lr=0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for i, given in enumerate(grads):
                for p, g in zip(params, given, strict=True):
                    p.grad = g.clone()
                if i == 1:
                    optimizer.param_groups[1][name] = value
                optimizer.step()
        moments = [optimizer.state[p][k] for p in params for k in ("exp_avg", "exp_inf", "step")]
        results.append([*params, *moments])
        heard.append([str(w.message) for w in caught])
    assert_same_bits(*results)
    (message,) = heard[0]
    assert name in message
    assert "parameter group 1 should be in [0, " in message
    assert heard[1] == []


@pytest.mark.parametrize("factory", [fa.adamax, fa.adamaxw, fa.adam, fa.nadamax])
@pytest.mark.parametrize(("name", "value"), [x for x in ODD if not isinstance(x[1], Tensor)])
def test_other_optimizers_refuse_a_group_out_of_range_before_they_write(
    factory: Any, name: str, value: Any
) -> None:
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = Optimizer([{"params": [p]} for p in params], factory, lr=0.1)
    for p in params:
        p.grad = torch.ones(2)
    optimizer.step()
    optimizer.param_groups[1][name] = value
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match=name):
        optimizer.step()
    assert all(torch.equal(p, x) for p, x in zip(params, before, strict=True))


@pytest.mark.parametrize("factory", [fa.adamax, fa.adamaxw, fa.adam, fa.nadamax])
def test_a_rate_that_rounding_drove_below_zero_is_zero(factory: Any) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = Optimizer([p], factory, lr=0.1)
    p.grad = torch.ones(2)
    optimizer.step()
    before = p.detach().clone()
    optimizer.param_groups[0]["lr"] = -1e-19
    optimizer.step()
    assert torch.equal(p, before)
    assert optimizer.state[p]["step"] == 2


OVERFLOWING = [
    {"lr": 1e39},
    {"lr": 3e38},  # times ten in the first step
    {"lr": torch.tensor(1e39, dtype=torch.float64)},
    {"lr": 1e308},  # to infinity, which is no error
    {"lr": math.inf},
    {"lr": 1e5},
    {"weight_decay": 1e5},
    {"weight_decay": 1e39},
    {"weight_decay": torch.tensor(1e39, dtype=torch.float64)},
    {"weight_decay": math.inf},
    {"eps": 1e39},
    {"eps": 1e5},
]


@pytest.mark.parametrize("foreach", [None, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OVERFLOWING, ids=str)
def test_numbers_beyond_the_range_of_a_dtype_do_what_they_do_in_torch(
    options: dict[str, Any], dtype: torch.dtype, foreach: bool | None
) -> None:
    def outcome(cls: Any) -> tuple[Any, list[Tensor]]:
        p = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=dtype))
        optimizer = cls([p], foreach=foreach, **options)
        p.grad = torch.ones_like(p)
        try:
            optimizer.step()
        except RuntimeError as error:
            return str(error), [p]
        return None, [p, *optimizer.state[p].values()]

    (ours, results), (theirs, wanted) = outcome(Adamax), outcome(torch.optim.Adamax)
    assert ours == theirs
    if theirs is None:
        assert_same_bits(results, wanted)
    else:
        assert torch.equal(results[0].detach(), torch.tensor([1.0, 2.0], dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_have_torchs_sign_without_a_first_moment(dtype: torch.dtype) -> None:
    start = [torch.randn(70, dtype=dtype)]
    signs = torch.where(torch.rand(3, 70) < 0.5, 0.0, -0.0).to(dtype)
    ours, theirs = (
        trained(c, start, [[g] for g in signs], betas=(0.0, 0.999), eps=1e-2)
        for c in (Adamax, torch.optim.Adamax)
    )
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("dtype", [x for x in DTYPES if not x.is_complex], ids=str)
def test_the_sign_of_zeros_in_a_gradient_of_another_layout(dtype: torch.dtype) -> None:
    """torch's own sign depends on the layout; in halves ours is that of a contiguous gradient."""
    start = [torch.randn(70, dtype=dtype)]
    signs = torch.where(torch.rand(3, 70) < 0.5, 0.0, -0.0).to(dtype)
    apart = torch.stack([signs, signs], -1)[..., 0]
    options: dict[str, Any] = {"betas": (0.0, 0.999), "eps": 1e-2, "lr": 0.1}

    def after(cls: Any, grads: Tensor) -> list[Tensor]:
        p = torch.nn.Parameter(start[0].clone())
        optimizer = cls([p], **options)
        for g in grads:
            p.grad = g
            assert p.grad.stride() == g.stride()
            optimizer.step()
        return [p, *optimizer.state[p].values()]

    half = dtype in (torch.float16, torch.bfloat16)
    theirs = after(torch.optim.Adamax, signs if half else apart)
    assert_same_bits(after(Adamax, apart), theirs)

    tx = fa.adamax(**options)
    results = []
    for donate in (False, True):
        p = start[0].clone()
        state = tx.init(p)
        for g in apart:
            p, state = fa.step(tx, g, state, p, donate=donate)
        results.append([p, *state])
    assert_same_bits(*results)


@BOTH
@pytest.mark.parametrize("value", [torch.tensor(0.1), torch.tensor(1)], ids=str)
def test_a_tensor_decay_is_read_at_every_step(cls: Any, value: Tensor) -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = cls([p], lr=0.1, weight_decay=value)
    p.grad = torch.zeros(3)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].tolist() == pytest.approx([0.1 * value.item()] * 3)
    optimizer.param_groups[0]["weight_decay"] = torch.zeros_like(value)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].tolist() == pytest.approx([0.09 * value.item()] * 3)
