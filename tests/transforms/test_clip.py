"""Clipping, against NumPy and torch.nn.utils, and where norms are zero, huge or tiny."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap
from trees import Pair, assert_equal, grads_like, leaves, params, with_gaps

import functional_adamax as fa


def once(tx: fa.GradientTransformation, updates: Any, tree: Any = None) -> Any:
    return tx.update(updates, tx.init(tree), tree)[0]


def as_numpy(tree: Any) -> list[np.ndarray]:
    return [x.numpy() for x in leaves(tree)]


def assert_near(got: Any, want: list[np.ndarray], rtol: float = 1e-14) -> None:
    for x, y in zip(leaves(got), want, strict=True):
        np.testing.assert_allclose(x.numpy(), y, rtol=rtol, atol=1e-300)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("bound", [1.7, 100.0])
def test_global_norm_is_that_of_numpy(dtype: torch.dtype, bound: float) -> None:
    updates = params(dtype)
    arrays = as_numpy(updates)
    norm = np.sqrt(sum((abs(x) ** 2).sum() for x in arrays))
    np.testing.assert_allclose(fa.global_norm(updates).item(), norm, rtol=1e-14)
    got = once(fa.clip_by_global_norm(bound), updates)
    assert_near(got, [x * min(1.0, bound / norm) for x in arrays])
    if bound > norm:
        assert_equal(got, updates)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_global_norm_clips_as_torch_does(dtype: torch.dtype) -> None:
    updates = {"a": torch.randn(5, 3, dtype=dtype), "b": torch.randn(4, dtype=dtype)}
    owners = [torch.zeros_like(x).requires_grad_() for x in updates.values()]
    for owner, update in zip(owners, updates.values(), strict=True):
        owner.grad = update.clone()
    norm = torch.nn.utils.clip_grad_norm_(owners, 1.0)
    torch.testing.assert_close(fa.global_norm(updates), norm)
    got = once(fa.clip_by_global_norm(1.0), updates)
    for owner, x in zip(owners, got.values(), strict=True):
        torch.testing.assert_close(x, owner.grad)


def test_by_value_is_that_of_numpy_and_torch() -> None:
    updates = params()
    assert_near(once(fa.clip(0.5), updates), [x.clip(-0.5, 0.5) for x in as_numpy(updates)])
    owner = torch.zeros(9).requires_grad_()
    owner.grad = torch.randn(9)
    got = once(fa.clip(0.3), owner.grad.clone())
    torch.nn.utils.clip_grad_value_(owner, 0.3)
    assert torch.equal(got, owner.grad)


def test_by_value_takes_components_and_keeps_nan() -> None:
    got = once(fa.clip(1.0), torch.tensor([3 - 0.5j, -2j]))
    assert torch.equal(got, torch.tensor([1 - 0.5j, -1j]))
    got = once(fa.clip(1.0), torch.tensor([float("nan"), float("-inf")]))
    assert got[0].isnan()
    assert got[1] == -1


def test_by_value_takes_a_bound_for_each_element() -> None:
    bound = torch.tensor([0.5, 2.0])
    assert torch.equal(once(fa.clip({"w": bound}), {"w": torch.ones(2)})["w"], bound.clamp(max=1))
    got = once(fa.clip({"w": bound}), {"w": torch.tensor([1 + 1j, 1 + 3j])})["w"]
    assert torch.equal(got, torch.tensor([0.5 + 0.5j, 1 + 2j]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_block_rms_is_that_of_numpy(dtype: torch.dtype) -> None:
    updates = params(dtype)
    want = [
        x / max(1.0, np.sqrt((abs(x) ** 2).mean()) / 0.6) if x.size else x
        for x in as_numpy(updates)
    ]
    assert_near(once(fa.clip_by_block_rms(0.6), updates), want)


def make_all() -> dict[str, fa.GradientTransformation]:
    return {
        "clip": fa.clip(1.0),
        "clip_by_global_norm": fa.clip_by_global_norm(1.0),
        "clip_by_block_rms": fa.clip_by_block_rms(1.0),
        "adaptive_grad_clip": fa.adaptive_grad_clip(0.1),
    }


@pytest.mark.parametrize("name", make_all())
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_the_derivative_at_zero_is_the_identity(name: str, shape: tuple[int, ...]) -> None:
    tx, tree = make_all()[name], torch.ones(shape, dtype=torch.float64)
    zeros = torch.zeros(shape, dtype=torch.float64)
    n = zeros.numel()
    identity = torch.eye(n, dtype=torch.float64).reshape((*shape, *shape))
    for derivative in (jacrev, jacfwd):
        assert torch.equal(derivative(lambda g: once(tx, g, tree))(zeros), identity)
    second = jacrev(jacrev(lambda g: once(tx, g, tree)))(zeros)
    assert torch.equal(second, torch.zeros_like(second))


@pytest.mark.parametrize("dtype", [torch.complex128], ids=str)
@pytest.mark.parametrize("name", make_all())
def test_complex_updates_are_twice_differentiable(name: str, dtype: torch.dtype) -> None:
    inputs = [torch.randn(2, 2, dtype=dtype, requires_grad=True) for _ in range(2)]

    def function(g: Any, p: Any) -> Any:
        return once(make_all()[name], g, p)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1.0, 1e30, 3e38])
def test_no_size_overflows_or_vanishes(size: float) -> None:
    """At the largest the norm itself is infinite in float32, and still the direction is right."""
    g = torch.full((16,), size)
    if size < 1e38:
        torch.testing.assert_close(fa.global_norm([g]), g[0] * 4)
    for tx in (fa.clip_by_global_norm(1e-42), fa.clip_by_block_rms(1e-42)):
        assert once(tx, g).isfinite().all()
    if size >= 1:
        for tx, want in (
            (fa.clip_by_global_norm(1.0), 0.25),
            (fa.clip_by_block_rms(0.25), 0.25),
            (fa.adaptive_grad_clip(0.5), 0.25),
        ):
            torch.testing.assert_close(once(tx, g, torch.full((16,), 0.5)), torch.full((16,), want))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_counted_in_float32(dtype: torch.dtype) -> None:
    g = {"w": torch.full((300, 300), 300.0, dtype=dtype)}
    assert fa.global_norm(g).dtype == torch.float32
    torch.testing.assert_close(fa.global_norm(g), torch.tensor(90000.0))
    got = once(fa.clip_by_global_norm(3.0), g)["w"]
    assert got.dtype == dtype
    torch.testing.assert_close(got, torch.full_like(got, 0.01))


def test_mixed_dtypes_are_counted_in_the_widest() -> None:
    tree = [
        torch.tensor(1e300, dtype=torch.float64),
        torch.ones(2),
        torch.ones(1, dtype=torch.half),
        torch.tensor(1e30j),
    ]
    assert fa.global_norm(tree).dtype == torch.float64
    assert fa.global_norm(tree).item() == 1e300
    got = once(fa.clip_by_global_norm(1.0), tree)
    assert [x.dtype for x in got] == [x.dtype for x in tree]
    assert got[0] == 1
    assert all(x.isfinite().all() for x in got)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    g = [torch.tensor([1.0, bad]), torch.tensor(1.0)]
    assert not fa.global_norm(g).isfinite()
    got = once(fa.clip_by_global_norm(1.0), g)
    assert got[0][1].isnan()
    if bad == float("inf"):
        assert got[0][0] == got[1] == 0
    else:
        assert got[0][0].isnan()
        assert got[1].isnan()


def test_a_bound_of_zero_leaves_nothing() -> None:
    g = [torch.ones(2), torch.zeros(2)]
    for tx in (fa.clip(0.0), fa.clip_by_global_norm(0.0), fa.clip_by_block_rms(0.0)):
        assert all(torch.equal(x, torch.zeros(2)) for x in once(tx, g))


@pytest.mark.parametrize("name", make_all())
def test_none_empty_and_no_leaves(name: str) -> None:
    tx = make_all()[name]
    tree = with_gaps(params())
    updates = grads_like(tree)
    updates["inner"]["w"] = None
    got = once(tx, updates, tree)
    assert [x is None for x in leaves(got)] == [x is None for x in leaves(updates)]
    assert once(tx, {}, {}) == {}
    assert once(tx, None, None) is None
    empty = torch.zeros(2, 0)
    assert torch.equal(once(tx, empty, empty), empty)


def test_each_member_has_a_norm_of_its_own() -> None:
    g = {"w": torch.randn(3, 4), "b": torch.randn(3)}
    got = vmap(fa.global_norm)(g)
    torch.testing.assert_close(got, (g["w"].square().sum(1) + g["b"].square()).sqrt())
    bounds = torch.tensor([0.1, 1.0, 100.0])
    clipped = vmap(lambda m, g: once(fa.clip_by_global_norm(m), g))(bounds, g)
    torch.testing.assert_close(vmap(fa.global_norm)(clipped), torch.minimum(got, bounds))


def test_the_bound_has_a_derivative() -> None:
    g = torch.tensor([3.0, 4.0])

    def total(bound: Any) -> Any:
        return once(fa.clip_by_global_norm(bound), g).sum()

    torch.testing.assert_close(grad(total)(torch.tensor(2.0)), torch.tensor(1.4))
    torch.testing.assert_close(grad(total)(torch.tensor(9.0)), torch.tensor(0.0))


def test_a_bound_of_one_element_widens_nothing() -> None:
    for tx in (
        fa.clip(torch.tensor([0.5])),
        fa.clip_by_global_norm(torch.tensor([0.5])),
        fa.clip_by_block_rms(torch.tensor([0.5])),
        fa.adaptive_grad_clip(torch.tensor([0.5])),
    ):
        assert once(tx, torch.tensor(3.0), torch.tensor(1.0)).item() == 0.5


def test_errors_say_what_to_do() -> None:
    g = Pair(torch.ones(2), torch.ones(2))
    for make in (fa.clip, fa.clip_by_global_norm, fa.clip_by_block_rms, fa.adaptive_grad_clip):
        with pytest.raises(ValueError, match=r"must be in \[0, inf\), got -1"):
            make(-1.0)
        with pytest.raises(TypeError, match="must be a real number or a real tensor, got 'one'"):
            make("one")
        tx = make(1.0)
        with pytest.raises(RuntimeError, match=r"updates.left: .* does not support sparse.*to_de"):
            once(tx, g._replace(left=torch.ones(2).to_sparse()), g)
        with pytest.raises(TypeError, match=r"updates.left must be a tensor or None, got str"):
            once(tx, g._replace(left="one"), g)
    with pytest.raises(TypeError, match=r"max_norm.*a tensor of shape \(\).*got a dict.*block_rms"):
        fa.clip_by_global_norm({"w": 1.0})
    with pytest.raises(ValueError, match=r"max_norm.*got a tensor of shape \(2,\)"):
        fa.clip_by_global_norm(torch.ones(2))
    with pytest.raises(ValueError, match=r"params must be given for adaptive_grad_clip.*params\)"):
        once(fa.adaptive_grad_clip(0.1), g)
    with pytest.raises(ValueError, match=r"updates.right must have the shape of its parameter"):
        once(fa.adaptive_grad_clip(0.1), g, g._replace(right=torch.ones(3)))
    with pytest.raises(TypeError, match=r"tree\['w'\] must be a tensor or None, got float"):
        fa.global_norm({"w": 1.0})
