"""The native kernel has the bits of the rule in every kind, layout and number that it takes."""

from __future__ import annotations

import itertools
from typing import Any

import executors
import pytest
import torch
from executors import (
    HALF,
    LEARNING_RATES,
    SHAPES,
    SPECIAL,
    bits,
    by_the_rule,
    copy,
    kernel_takes,
    leaf,
    needs_kernel,
    strange,
)

from functional_adamax._core import numerics
from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.native import kernel


@needs_kernel
@pytest.mark.parametrize("kind", kernel._KINDS, ids=str)
@pytest.mark.parametrize("special", [False, True], ids=["ordinary", "special"])
@pytest.mark.parametrize("add", [False, True], ids=["update", "parameter"])
def test_the_kernel_has_the_bits_of_the_rule(kind: Any, special: bool, add: bool) -> None:
    value, moment = kind
    for lr, decay, b1, maximize, decoupled in itertools.product(
        LEARNING_RATES, (0.0, 0.1, 2), (0.0, 0.3, 0.5, 0.9), (False, True), (False, True)
    ):
        leaves = [leaf(shape, value, lr, decay, special)._replace(b1=b1) for shape in SHAPES]
        leaves = [x._replace(m=x.m.to(moment), u=x.u.to(moment)) for x in leaves]
        before = [copy(x) for x in leaves]
        taken = executors.ready(leaves, maximize, decoupled)
        coupled = 0.0 if decoupled and not value.is_complex else decay
        if b1 == 0 or not kernel_takes(
            value, moment, coupled, lr, maximize
        ):  # with 0, zeros of any sign
            assert taken is None
            continue
        assert taken
        results = executors.compute(leaves, maximize, decoupled, add)
        for x, old, result in zip(leaves, before, results, strict=True):
            update, *state = executors.rule_step(x, maximize, decoupled)
            wanted = [numerics.add(x.p, update) if add else update, *state]
            assert all(torch.equal(bits(a), bits(b)) for a, b in zip(result, wanted, strict=True))
            assert all(torch.equal(bits(a), bits(b)) for a, b in zip(x[:5], old[:5], strict=True))


def any_bits(n: int, dtype: torch.dtype) -> torch.Tensor:
    """Elements of random bits: of all magnitudes, and in halves all that there are."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    most = torch.iinfo(integer)
    return torch.randint(most.min, most.max, (n,), dtype=integer).view(dtype)


@needs_kernel
@pytest.mark.parametrize("kind", [k for k in kernel._KINDS if not k[0].is_complex], ids=str)
@pytest.mark.parametrize("decoupled", [False, True])
def test_any_bits_in_tensors_larger_than_a_block(kind: Any, decoupled: bool) -> None:
    value, moment = kind
    n = 3 * 2**16 + 1000
    p, g = (any_bits(n, value) for _ in range(2))
    m, u = (any_bits(n, moment) for _ in range(2))
    rates = (0.01, 0.9, 0.999, 1e-8, 0.1 if decoupled else 0.0)
    x = AdamaxLeaf(p, g, m, u.abs(), torch.tensor(3.0, dtype=torch.float64), *rates)
    want = by_the_rule(x, False, decoupled)
    assert executors.write(executors.ready([x], False, decoupled) or [], False, decoupled)
    for got, expected in zip((x.p, x.m, x.u, x.t), want, strict=True):
        assert torch.equal(bits(got), bits(expected))


@needs_kernel
@pytest.mark.parametrize("kind", kernel._KINDS, ids=str)
def test_without_eps_the_norm_may_be_zero_or_denormal(kind: Any) -> None:
    value, moment = kind
    pairs = torch.tensor(list(itertools.product(SPECIAL, SPECIAL)))
    first, second = (x.to(value) for x in pairs.unbind(1))
    u = torch.complex(second.real.abs(), second.imag) if value.is_complex else second.abs()
    t = torch.tensor(3.0, dtype=torch.float64)
    m = second.flip(0).to(moment)
    x = AdamaxLeaf(first.flip(0), first, m, u.to(moment), t, 0.01, 0.9, 0.999, 0.0, 0.0)
    taken = executors.ready([x], False, False)
    assert taken
    (row,) = kernel.step(taken)
    for got, want in zip(row[:4], executors.rule_step(x, False), strict=True):
        assert torch.equal(bits(got), bits(want))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zeros_for_large_moments(dtype: torch.dtype) -> None:
    p = torch.randn(1024, 1025, dtype=dtype).t()
    full = torch.full_like(p, 7.0)  # memory that may be used again, and is not zero
    del full
    zeros = kernel.zeros_like(p, torch.float32)
    assert (zeros.dtype, zeros.shape, zeros.stride()) == (torch.float32, p.shape, p.stride())
    assert not zeros.any()


@needs_kernel
@pytest.mark.parametrize("kind", kernel._KINDS, ids=str)
@pytest.mark.parametrize("rate_dtype", [torch.float32, torch.float64], ids=str)
def test_hyperparameters_that_are_tensors(kind: Any, rate_dtype: torch.dtype) -> None:
    value, moment = kind
    names = ("lr", "b1", "b2", "eps", "weight_decay")
    for chosen in itertools.product((False, True), repeat=5):
        for decoupled, b1 in itertools.product((False, True), (0.9, 0.3, 0.0)):
            x = leaf((257, 3), value, 0.01, 0.1, True)
            x = x._replace(m=x.m.to(moment), u=x.u.to(moment), b1=b1)
            for name, yes in zip(names, chosen, strict=True):
                if yes:
                    number = torch.tensor(getattr(x, name), dtype=rate_dtype)
                    x = x._replace(**{name: number})
            taken = executors.ready([x], False, decoupled)
            refused = value.is_complex or (value in HALF and moment == value and not decoupled)
            if refused or b1 == 0:
                assert taken is None
                continue
            assert taken
            update, *state = executors.rule_step(x, False, decoupled)
            (row,) = kernel.step(taken, add=True)
            for got, want in zip(row[:4], [numerics.add(x.p, update), *state], strict=True):
                assert torch.equal(bits(got), bits(want)), (chosen, decoupled, b1)


@needs_kernel
def test_a_write_is_seen_by_autograd() -> None:
    x = leaf((4, 3), torch.float32, 0.1, 0.0, False)
    versions = [y._version for y in (x.p, x.m, x.u, x.t)]
    w = torch.randn(3, requires_grad=True)
    product = x.p @ w
    assert executors.write([x], False, False)
    assert [y._version for y in (x.p, x.m, x.u, x.t)] == [v + 1 for v in versions]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@needs_kernel
@pytest.mark.parametrize("aliased", [("g", "p"), ("m", "g"), ("u", "m")])
def test_shared_memory_goes_by_torchs_operations(aliased: tuple[str, str]) -> None:
    x = leaf((4, 3), torch.float32, 0.1, 0.0, False)
    x = x._replace(**{aliased[0]: getattr(x, aliased[1])})
    assert not executors.write([x], False, False)
    twin = copy(x)
    twin = twin._replace(**{aliased[0]: getattr(twin, aliased[1])})
    executors.plan([x], False, False)()
    executors.inplace([twin], False)
    for got, wanted in zip((x.p, x.m, x.u, x.t), (twin.p, twin.m, twin.u, twin.t), strict=True):
        assert torch.equal(got, wanted)


@needs_kernel
def test_memory_shared_between_leaves_goes_by_torchs_operations() -> None:
    x, y = (leaf((4, 3), torch.float32, 0.1, 0.0, False) for _ in range(2))
    for odd in (
        [x, y._replace(p=x.p)],
        [x._replace(g=y.p), y._replace(g=x.p)],
        [x, y._replace(t=x.t)],
        [x, y._replace(m=x.m)],
        [x, y._replace(u=x.p)],
    ):
        before = [copy(z) for z in odd]
        assert not executors.write(odd, False, False)
        for z, old in zip(odd, before, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(z[:5], old[:5], strict=True))
    assert executors.write([x, y._replace(g=x.g)], False, False)


@needs_kernel
def test_the_kernel_takes_ordinary_leaves() -> None:
    """So that the tests above do not compare the rule with itself."""
    for dtype in (torch.float32, torch.float64):
        assert all(kernel.is_active(dtype, dtype, mode) for mode in range(3))
        x = leaf((4, 3), dtype, 0.1, 0.1, False)
        assert executors.ready([x, x._replace(lr=torch.tensor(0.1))], False, False)
        assert executors.ready([x, x._replace(b1=torch.tensor(0.9))], False, False)
        assert not executors.ready([x, x._replace(lr=torch.rand(4, 3))], False, False)
        assert not executors.ready([x, x._replace(lr=torch.tensor(1))], False, False)
        assert not executors.ready([x, x._replace(floor=1e-3)], False, False)
        taken = {name for name, odd in strange(x).items() if executors.ready([odd], False, False)}
        expected = {"gradient in another order", "all in another order", "one gradient for all"}
        assert taken == expected | {"counter on its side"}
