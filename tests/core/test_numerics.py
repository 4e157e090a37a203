"""Arithmetic on one tensor: the bits of torch's operations, and of NumPy where it is the judge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from trees import DTYPES

from functional_adamax._core import numerics

HALVES = [torch.float16, torch.bfloat16]
REAL = [torch.float32, torch.float64]


def double(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_dtypes() -> None:
    assert numerics.step_dtype(torch.device("cpu")) == torch.float64
    assert numerics.step_dtype(torch.device("mps")) == torch.float32
    p, z = torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.complex64)
    assert numerics.moment_dtype(p, None) == torch.bfloat16
    assert numerics.moment_dtype(p, torch.float32) == torch.float32
    assert numerics.moment_dtype(z, torch.float64) == torch.complex128


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_halves_are_widened(dtype: torch.dtype) -> None:
    x = torch.randn(3, dtype=dtype)
    assert numerics.wide(x).dtype == (torch.float32 if dtype in HALVES else dtype)
    assert dtype in HALVES or numerics.wide(x) is x
    assert numerics.cast(0.5, x) == 0.5
    assert numerics.cast(double(0.5), x).dtype == dtype


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_a_scaled_sum_has_the_same_bits_for_a_number_and_a_tensor(dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 1003, dtype=dtype)
    want = torch.add(x, y, alpha=0.1)
    assert torch.equal(numerics.add_scaled(x, y, 0.1), want)
    assert torch.equal(numerics.add_scaled(x, y, double(0.1)), want)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_are_scaled_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    x = torch.randn(999, dtype=dtype)
    for factor in (0.1, double(0.1)):
        assert torch.equal(numerics.scaled(x, factor), (x.float() * 0.1).to(dtype))


def test_complex_numbers_are_scaled_by_components() -> None:
    z = torch.tensor([complex(torch.inf, 0), complex(torch.nan, 3)])
    got = torch.view_as_real(numerics.scaled(z, 2.0))
    np.testing.assert_array_equal(got.numpy(), [[np.inf, 0], [np.nan, 6]])
    by_element = numerics.scaled(torch.tensor([1 + 2j, 3 + 4j]), torch.tensor([2.0, 10.0]))
    assert by_element.tolist() == [2 + 4j, 30 + 40j]


@pytest.mark.parametrize("b1", [0.0, 0.5, 0.9, 0.9999999])
@pytest.mark.parametrize("t", [1, 2, 7, 1000, 10**6])
def test_the_bias_is_that_of_python(b1: float, t: int) -> None:
    want = 0.002 / (1 - b1**t)
    assert numerics.bias_corrected(0.002, b1, double(t)).item() == want
    assert numerics.over_bias(0.002, b1, double(t)).item() == want
    assert numerics.over_bias(0.002, double(b1), torch.tensor(t)).item() == pytest.approx(want)


def test_a_rate_that_is_a_tensor_keeps_its_dtype() -> None:
    for dtype in (*REAL, *HALVES):
        found = numerics.bias_corrected(torch.tensor(0.5, dtype=dtype), 0.5, double(1))
        assert (found.dtype, found.item()) == (dtype, 1.0)
    assert numerics.bias_corrected(torch.tensor(2), 0.5, double(1)).dtype == torch.float32


def test_before_the_first_step_the_bias_is_zero() -> None:
    assert numerics.bias_corrected(0.1, 0.9, double(0)).item() == math.inf
    assert numerics.bias_corrected(0.0, 0.9, double(0)).isnan()
    assert numerics.over_bias(1.0, 0.9, double(0)).item() == math.inf


@pytest.mark.parametrize("dtype", [*REAL, *HALVES], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, double(0.9)])
def test_averages_have_the_bits_of_torch(dtype: torch.dtype, decay: Any) -> None:
    m, g = torch.randn(2, 1003, dtype=dtype)
    wide = torch.float32 if dtype in HALVES else dtype
    rest = (1 - decay).to(wide) if isinstance(decay, torch.Tensor) else 1 - decay
    decay_ = decay.to(wide) if isinstance(decay, torch.Tensor) else decay
    found = numerics.average(m, g, decay)
    assert torch.equal(found, torch.lerp(m.to(wide), g.to(wide), rest).to(dtype))
    v, kept = m.abs(), (m.abs().to(wide) * decay_).to(dtype).to(wide)
    want = torch.addcmul(kept, g.to(wide) * rest, g.to(wide)).to(dtype)
    assert torch.equal(numerics.average_square(v, g, decay), want)
    want = torch.maximum((v.to(wide) * decay_).to(dtype), g.abs() + 1e-3)
    assert torch.equal(numerics.maximum_norm(v, g, decay, 1e-3), want)


def test_averages_are_those_of_numpy() -> None:
    m, g = torch.randn(2, 99, dtype=torch.float64)
    x, y = m.numpy(), g.numpy()
    near = {"rtol": 1e-13, "atol": 1e-15}
    np.testing.assert_allclose(numerics.average(m, g, 0.9), 0.9 * x + 0.1 * y, **near)
    np.testing.assert_allclose(numerics.average_square(m, g, 0.9), 0.9 * x + 0.1 * y**2, **near)
    np.testing.assert_allclose(numerics.blend(m, g, 0.25), x + 0.25 * (y - x), **near)
    largest = np.maximum(0.9 * x, abs(y) + 0.1)
    np.testing.assert_allclose(numerics.maximum_norm(m, g, 0.9, 0.1), largest, **near)


def test_a_norm_that_is_no_number_stays() -> None:
    u = numerics.maximum_norm(
        torch.tensor([torch.nan, 1.0, torch.inf, 1e-45]),
        torch.tensor([1.0, torch.nan, -torch.inf, 0.0]),
        0.5,
        0.0,
    )
    np.testing.assert_array_equal(u.numpy(), [np.nan, np.nan, np.inf, 0.0])


def test_the_sign_of_nan_is_nan_and_the_root_of_zero_has_a_derivative() -> None:
    x = torch.tensor([torch.nan, -torch.inf, -0.0, 0.0, 5e-324], dtype=torch.float64)
    np.testing.assert_array_equal(numerics.sign(x).numpy(), [np.nan, -1, 0, 0, 1])
    y = torch.tensor([0.0, 4.0, torch.inf]).requires_grad_()
    root = numerics.root(y)
    assert root.tolist() == [0.0, 2.0, torch.inf]
    assert torch.autograd.grad(root.sum(), y)[0].tolist() == [0.0, 0.25, 0.0]


def test_a_blend_has_exact_ends_and_goes_by_components() -> None:
    for dtype in DTYPES:
        old, new = torch.randn(2, 9, dtype=dtype)
        assert torch.equal(numerics.blend(old, new, 0.0), old)
        assert torch.equal(numerics.blend(old, new, 1.0), new)
    z = numerics.blend(torch.tensor([0j]), torch.tensor([complex(torch.nan, 2)]), 0.5)
    assert z.real.isnan()
    assert z.imag == 1


def test_lazy_views_are_resolved_where_they_are_taken_apart() -> None:
    z = torch.randn(3, dtype=torch.complex64)
    (parts,) = numerics.real_views(z)
    assert parts.data_ptr() == z.data_ptr()
    (conjugate,) = numerics.real_views(z.conj())
    assert torch.equal(conjugate[..., 1], -z.imag)


def test_the_exact_root_is_the_nearest_number_on_every_computer() -> None:
    x = torch.rand(5_000, dtype=torch.float64) * 10.0 ** torch.randint(-200, 200, (5_000,))
    assert numerics.exact_root(x).tolist() == [math.sqrt(y) for y in x.tolist()]
    odd = torch.tensor([0.0, torch.inf, torch.nan], dtype=torch.float64, requires_grad=True)
    found = numerics.exact_root(odd)
    assert found[:2].tolist() == [0.0, torch.inf]
    assert found[2].isnan()
    found[0].backward()
    assert odd.grad is not None
    assert odd.grad[0] == 0
