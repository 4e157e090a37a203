"""Steps that autograd records as one node: their derivatives are those of the rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import executors
import pytest
import torch
from torch import Tensor
from trees import assert_equal

from functional_adamax._core import numerics
from functional_adamax._execution import recorded
from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.native import kernel

SIZE = 37


@pytest.fixture(params=["kernel", "torch"])
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "torch":
        monkeypatch.setattr(kernel, "_native", None)
    elif kernel._native is None:
        pytest.skip("built without a compiler")
    return request.param


def leaf(dtype: torch.dtype, **changes: Any) -> AdamaxLeaf:
    """A leaf where |g| and b2 u are greater in turn, tie, and are zero."""
    p, g, m, u = torch.randn(4, SIZE, dtype=dtype).unbind()
    u = u.abs()
    g[:6] = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, 0.0])
    u[:6] = torch.tensor([0.0, 0.0, 2.0, 2.0, 4.0, 1.0])  # with b2 = 0.5 and eps = 0: ties
    t = torch.tensor(2.0, dtype=torch.float64)
    x = AdamaxLeaf(p, g, m, u, t, 0.1, 0.9, 0.5, 1e-3, 0.0)._replace(**changes)
    names = ("p", "g", "m", "u")
    return x._replace(**{name: getattr(x, name).clone().requires_grad_() for name in names})


def derivatives(x: AdamaxLeaf, row: Any, cotangents: list[Tensor | None]) -> list[Tensor]:
    used = [i for i, c in enumerate(cotangents) if c is not None]
    outputs = [[row[0], row[2], row[3]][i] for i in used]
    inputs = [y for y in (*x[:4], x.lr) if isinstance(y, Tensor)]
    return torch.autograd.grad(
        outputs, inputs, [cotangents[i] for i in used], materialize_grads=True
    )


def by_the_rule(x: AdamaxLeaf, maximize: bool, decoupled: bool, add: bool) -> Any:
    update, *state = executors.rule_step(x, maximize, decoupled)
    return [numerics.add(x.p, update) if add else update, *state]


CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ties": {"eps": 0.0},
    "decay": {"weight_decay": 0.1},
    "learned rate": {"lr": torch.tensor(0.1, requires_grad=True)},
    "learned rate and decay": {"lr": torch.tensor(0.1, requires_grad=True), "weight_decay": 0.1},
    "far from the old": {"b1": 0.2},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("given", ["all", "out", "m", "u", "out and u"])
def test_derivatives_of_the_rule(
    executor: str,
    change: str,
    dtype: torch.dtype,
    maximize: bool,
    decoupled: bool,
    add: bool,
    given: str,
) -> None:
    x = leaf(dtype, **CHANGES[change])
    if change == "ties":  # where u is zero too, all is NaN
        x = x._replace(u=torch.where(x.u == 0, 1, x.u).detach().requires_grad_())
    cotangents: list[Any] = list(torch.randn(3, SIZE, dtype=dtype).unbind())
    for i, name in enumerate(("out", "m", "u")):
        if given != "all" and name not in given.split(" and "):
            cotangents[i] = None
    (row,) = executors.compute([x], maximize, decoupled, add)
    assert "_Steps" in str(row[2].grad_fn)
    wanted = derivatives(x, by_the_rule(x, maximize, decoupled, add), cotangents)
    found = derivatives(x, row, cotangents)
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-14}[dtype]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_kernel_differentiates_to_the_bit(
    dtype: torch.dtype, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel._native is None:
        pytest.skip("built without a compiler")
    x = leaf(dtype, **{"b1": 0.3, **CHANGES[change]})
    cotangents: list[Any] = list(torch.randn(3, SIZE, dtype=dtype).unbind())
    found = []
    for native in (True, False):
        if not native:
            monkeypatch.setattr(kernel, "_native", None)
        (row,) = executors.compute([x], False, False, add=True)
        found.append(derivatives(x, row, cotangents))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(a.signbit() | a.isnan(), b.signbit() | b.isnan())


@pytest.mark.parametrize("change", ["plain", "decay", "learned rate"])
def test_second_derivatives(executor: str, change: str) -> None:
    x = leaf(torch.float64, **CHANGES[change])
    x = x._replace(u=x.u.detach() + 3, g=x.g.detach() + 0.1)  # away from the kinks
    x = x._replace(u=x.u.requires_grad_(), g=x.g.requires_grad_())

    def function(*inputs: Tensor) -> Any:
        y = x._replace(**dict(zip(("p", "g", "m", "u"), inputs[:4], strict=True)))
        y = y._replace(lr=inputs[4]) if len(inputs) == 5 else y
        (row,) = executors.compute([y], False, False, add=True)
        return row[0], row[2], row[3]

    inputs = [*x[:4]]
    if isinstance(x.lr, Tensor):
        inputs.append(torch.tensor(0.1, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    assert torch.autograd.gradcheck(function, inputs, check_batched_grad=True)


def test_cotangents_of_any_layout(executor: str) -> None:
    x = leaf(torch.float32)
    (row,) = executors.compute([x], False, False, add=True)
    strided = torch.randn(SIZE, 2)[:, 0]
    wanted = derivatives(x, row, [strided.clone(), None, None])
    (row,) = executors.compute([x], False, False, add=True)
    found = derivatives(x, row, [strided, None, None])
    assert_equal(list(found), list(wanted))
    (row,) = executors.compute([x], False, False, add=True)
    row[0].sum().backward()  # its cotangent is one number, expanded
    assert torch.equal(x.p.grad, torch.ones(SIZE))


def test_nothing_depends_on_what_is_constant(executor: str) -> None:
    x = leaf(torch.float32)
    x = x._replace(g=x.g.detach(), m=x.m.detach(), u=x.u.detach())
    (row,) = executors.compute([x], False, False, add=True)
    assert row[0].requires_grad
    assert not row[2].requires_grad
    assert not row[3].requires_grad
    rate = x._replace(p=x.p.detach(), lr=torch.tensor(0.1, requires_grad=True))
    (row,) = executors.compute([rate], False, False, add=True)
    assert [y.requires_grad for y in row] == [True, False, False, False]


def test_many_leaves_are_one_node(executor: str) -> None:
    leaves = [leaf(torch.float64), leaf(torch.float32), leaf(torch.float32, b1=0.5)]
    rows = executors.compute(leaves, False, False, add=True)
    nodes = {y.grad_fn for row in rows for y in (row[0], row[2], row[3])}
    assert len(nodes) == 1, executor


def test_what_it_keeps(executor: str) -> None:
    """Four tensors of the size of the leaf: g, and m and u before and after, less m before."""
    x = leaf(torch.float32)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y):
        recorded.step([x], add=True)
    assert [y.numel() for y in kept].count(SIZE) == 4


def test_saved_tensors_that_come_back_in_another_layout(executor: str) -> None:
    x = leaf(torch.float64)
    square = {k: getattr(x, k)[:36].detach().view(6, 6) for k in ("p", "g", "m", "u")}
    x = x._replace(**{k: v.t().contiguous().t().requires_grad_() for k, v in square.items()})
    cotangents = [torch.randn(6, 6, dtype=torch.float64), None, None]

    def run() -> Any:
        (row,) = executors.compute([x], False, False, add=True)
        return row

    wanted = derivatives(x, run(), cotangents)
    for turned in range(4):  # each of the four saved tensors in turn
        count = iter(range(100))

        def unpack(y: Tensor, turned: int = turned, count: Iterator[int] = count) -> Tensor:
            return y.contiguous() if next(count) == turned else y

        with torch.autograd.graph.saved_tensors_hooks(lambda y: y, unpack):
            row = run()
        for a, b in zip(derivatives(x, row, cotangents), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
