"""Every executor has the bits of the rule, in every dtype it takes."""

from __future__ import annotations

import itertools

import executors
import pytest
import torch
from executors import (
    HALF,
    LEARNING_RATES,
    SHAPES,
    bits,
    by_the_rule,
    copy,
    kernel_takes,
    leaf,
    needs_kernel,
    strange,
)
from trees import DTYPES

import functional_adamax as fa
from functional_adamax._core import numerics
from functional_adamax._execution import inplace
from functional_adamax._execution.native import kernel
from functional_adamax.compat import Adamax


@pytest.mark.parametrize("how", ["leaves", "donated", "class"])
def test_forced(how: str, request: pytest.FixtureRequest, ran: list[str]) -> None:
    """The executor asked for by ``--executor`` takes each step in place, and no other does."""
    executor = request.config.getoption("executor")
    if executor == "native" and kernel._native is None:
        executor = "torch"
    x = leaf((4, 3), torch.float32, 0.1, 0.1, False)
    state = fa.AdamaxState(x.t, x.m, x.u)
    betas, rates = (x.b1, x.b2), (x.eps, x.weight_decay)
    tx = fa.adamax(x.lr, betas, *rates, maximize=True)
    optimizer = Adamax([x.p], x.lr, betas, *rates, maximize=True)
    optimizer.state[x.p] = dict(zip(state._fields, state, strict=True))
    x.p.grad = x.g
    for _ in range(2):
        want = by_the_rule(x, True)
        if how == "leaves":
            executors.plan([x], True, False)()
        elif how == "donated":
            fa.step(tx, x.g, state, x.p, donate=True)
        else:
            optimizer.step()
        for got, expected in zip((x.p, x.m, x.u, x.t), want, strict=True):
            assert torch.equal(got, expected)
    assert ran == [executor] * 2


OF_THE_RULE = {
    "inplace": DTYPES,
    "foreach": [x for x in DTYPES if x not in HALF],  # torch's foreach form has other bits there
    "kernel": DTYPES,
}
PAIRS = [
    pytest.param(executor, dtype, marks=needs_kernel if executor == "kernel" else ())
    for executor, dtypes in OF_THE_RULE.items()
    for dtype in dtypes
]


@pytest.mark.parametrize(("executor", "dtype"), PAIRS, ids=str)
@pytest.mark.parametrize("special", [False, True], ids=["ordinary", "special"])
def test_the_bits_of_the_rule(executor: str, dtype: torch.dtype, special: bool) -> None:
    decays = (0.0,) if executor == "foreach" and dtype.is_complex else (0.0, 0.1)  # as above
    compared = 0
    for lr, weight_decay, maximize in itertools.product(LEARNING_RATES, decays, (False, True)):
        leaves = [leaf(shape, dtype, lr, weight_decay, special) for shape in SHAPES]
        wanted = [by_the_rule(x, maximize) for x in leaves]
        assert all(inplace.takes(x) for x in leaves)
        if executor == "kernel":
            taken = executors.ready(leaves, maximize, False)
            if not kernel_takes(dtype, dtype, weight_decay, lr, maximize):
                assert taken is None
                continue
            assert taken
            assert executors.write(taken, maximize, False)
        elif executor == "inplace":
            executors.inplace(leaves, maximize)
        else:
            executors.foreach(leaves, maximize)
        for x, want in zip(leaves, wanted, strict=True):
            for got, expected in zip((x.p, x.m, x.u, x.t), want, strict=True):
                assert torch.equal(bits(got), bits(expected))
                compared += 1
    assert compared


UNTAKEN = {
    "tensor beta": lambda x: x._replace(b1=torch.tensor(0.9)),
    "tensor decay": lambda x: x._replace(weight_decay=torch.tensor(0.1)),
    "rate per element": lambda x: x._replace(lr=torch.rand(4, 3)),
    "rate that torch refuses for a number": lambda x: x._replace(lr=1e39),
    "state dtype": lambda x: x._replace(m=x.m.double(), u=x.u.double()),
    "gradient dtype": lambda x: x._replace(g=x.g.double()),
}


@pytest.mark.parametrize("case", UNTAKEN)
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("decoupled", [False, True], ids=["coupled", "decoupled"])
def test_what_no_executor_takes_goes_by_the_rule(case: str, foreach: bool, decoupled: bool) -> None:
    x = UNTAKEN[case](leaf((4, 3), torch.float32, 0.1, 0.1, False))
    assert not inplace.takes(x._replace(decoupled=decoupled))
    want = by_the_rule(copy(x), True, decoupled)
    executors.plan([x], True, decoupled, foreach)()
    for got, expected in zip((x.p, x.m, x.u, x.t), want, strict=True):
        assert torch.equal(got, expected)


def test_lazy_views() -> None:
    """A negative view is written through; a conjugate one, which has no real view, is copied."""
    for dtype in (torch.float32, torch.complex64):
        x = leaf((4, 3), dtype, 0.1, 0.1, False)
        x = x._replace(p=torch._neg_view(x.p), g=torch._neg_view(x.g))
        if dtype.is_complex:
            x = x._replace(p=x.p.conj(), g=x.g.conj())
        want = by_the_rule(x, False)
        executors.plan([x], False, False)()
        for got, expected in zip((x.p, x.m, x.u, x.t), want, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("case", list(strange(leaf((4, 3), torch.float32, 0.1, 0.0, False))))
@pytest.mark.parametrize("with_grad", [False, True], ids=["plain", "recorded"])
def test_strange_memory(case: str, with_grad: bool) -> None:
    x = strange(leaf((4, 3), torch.float32, 0.1, 0.1, False))[case]
    if with_grad:
        x = x._replace(g=x.g.clone(memory_format=torch.preserve_format).requires_grad_())
    (row,) = executors.compute([x], True, False, add=True)
    update, *state = executors.rule_step(x, True, False)
    for got, wanted in zip(row, [numerics.add(x.p, update), *state], strict=True):
        assert torch.equal(got, wanted)
        assert got.requires_grad == wanted.requires_grad
        assert got.shape == wanted.shape
