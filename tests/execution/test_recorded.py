"""Steps that autograd records as one node: their derivatives are those of the rule, to the bit.

The file is longer than others: each way to differentiate is tried on the same methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import executors
import pytest
import torch
from executors import bits
from torch import Tensor
from torch.utils import _pytree as pytree
from trees import assert_equal

import functional_adamax as fa
from functional_adamax._core import numerics
from functional_adamax._execution import recorded
from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.program import machine

SIZE = 37
FLOAT, DOUBLE = torch.float32, torch.float64
pytestmark = pytest.mark.skipif(not machine.is_there(), reason="the machine is not built")


def leaf(dtype: torch.dtype, **changes: Any) -> AdamaxLeaf:
    """A leaf where |g| and b2 u are greater in turn, tie, and are zero."""
    p, g, m, u = torch.randn(4, SIZE, dtype=dtype).unbind()
    u = u.abs()
    g[:6] = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, 0.0])
    u[:6] = torch.tensor([0.0, 0.0, 2.0, 2.0, 4.0, 1.0])  # with b2 = 0.5 and eps = 0: ties
    t = torch.tensor(2.0, dtype=DOUBLE)
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


def assert_bits(found: Any, wanted: Any) -> None:
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        assert torch.equal(bits(a.detach() + 0.0), bits(b.detach() + 0.0))  # zeros are alike


CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ties": {"eps": 0.0},
    "decay": {"weight_decay": 0.1},
    "learned rate": {"lr": torch.tensor(0.1, requires_grad=True)},
    "learned rate and decay": {"lr": torch.tensor(0.1, requires_grad=True), "weight_decay": 0.1},
    "learned decay": {"weight_decay": torch.tensor(0.1, requires_grad=True)},
    "far from the old": {"b1": 0.2},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE], ids=str)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("given", ["all", "out", "m", "u", "out and u"])
def test_derivatives_of_the_rule(
    change: str, dtype: torch.dtype, maximize: bool, decoupled: bool, add: bool, given: str
) -> None:
    x = leaf(dtype, **CHANGES[change])
    cotangents: list[Any] = list(torch.randn(3, SIZE, dtype=dtype).unbind())
    for i, name in enumerate(("out", "m", "u")):
        if given != "all" and name not in given.split(" and "):
            cotangents[i] = None
    (row,) = executors.compute([x], maximize, decoupled, add)
    assert "_Step" in str(row[2].grad_fn)
    wanted = derivatives(x, by_the_rule(x, maximize, decoupled, add), cotangents)
    assert_bits(derivatives(x, row, cotangents), wanted)


METHODS: dict[str, Callable[..., Any]] = {
    "adamax": fa.adamax,
    "adamaxw": fa.adamaxw,
    "adam": fa.adam,
    "amsgrad": lambda lr: fa.adam(lr, amsgrad=True, weight_decay=0.1),
    "adamw": fa.adamw,
    "nadamax": fa.nadamax,
    "sgd": lambda lr: fa.sgd(lr, momentum=0.9, nesterov=True, weight_decay=0.1),
    "plain sgd": fa.sgd,
    "rmsprop": lambda lr: fa.rmsprop(lr, momentum=0.9, centered=True),
    "lion": fa.lion,
    "scale_by_adam": lambda lr: fa.chain(fa.scale_by_adam(), fa.scale_by_learning_rate(lr)),
}
OF_ROOTS = ("adam", "amsgrad", "adamw", "rmsprop", "scale_by_adam")  # torch's may not be IEEE's
Tree = dict[str, Tensor]


def trained(make: Callable[..., Any], lr: Any, params: Tree, steps: int = 3) -> Tensor:
    """A loss after some steps, in which gradients and parameters depend on what was before."""
    tx = make(lr)
    state = tx.init(params)
    for k in range(steps):
        grads = {name: x * x.sin() + 0.1 * k for name, x in params.items()}
        params, state = fa.step(tx, grads, state, params)
    return sum((x**2).sum() for x in params.values())  # type: ignore[return-value]


def start(dtype: torch.dtype) -> Tree:
    torch.manual_seed(0)
    return {
        "a": torch.randn(5, 3, dtype=dtype),
        "b": torch.randn((), dtype=dtype),
        "c": torch.randn(7, 2, dtype=dtype).t(),
    }


@pytest.fixture
def by_rule(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Call a function while no step is one node."""

    def call(function: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(recorded, "part", lambda *_: {})
            return function()

    return call


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of leaves in each node."""
    found: list[int] = []
    part = recorded.part

    def noted(*given: Any) -> Any:
        rows = part(*given)
        found.append(len(rows))
        return rows

    monkeypatch.setattr(recorded, "part", noted)
    return found


RATES: dict[str, Callable[[], Any]] = {
    "a number": lambda: 0.1,
    "learned": lambda: torch.tensor(0.1, dtype=DOUBLE, requires_grad=True),
    "learned in float32": lambda: torch.tensor(0.1, requires_grad=True),
}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_methods(name: str, dtype: torch.dtype, rate: str, nodes: list[int], by_rule: Any) -> None:
    """Through several steps, under autograd; each method, with what of it is learned."""

    def run() -> Any:
        lr, params = RATES[rate](), start(dtype)
        inputs = [x.requires_grad_() for x in params.values()]
        inputs += [lr] if isinstance(lr, Tensor) else []
        return torch.autograd.grad(trained(METHODS[name], lr, params), inputs)

    found = run()
    assert nodes == [3, 3, 3] or (dtype == DOUBLE and name in OF_ROOTS)
    wanted = by_rule(run)
    assert_bits(found[:3], wanted[:3])  # a learned rate is summed in another order
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_under_torch_func(name: str, dtype: torch.dtype, nodes: list[int], by_rule: Any) -> None:
    params, lr = start(dtype), torch.tensor(0.1, dtype=DOUBLE)

    def run() -> Any:
        return torch.func.grad(trained, argnums=(1, 2))(METHODS[name], lr, params)

    found = run()
    assert nodes == [3, 3, 3] or (dtype == DOUBLE and name in OF_ROOTS)
    wanted = by_rule(run)
    assert_bits(found[1], wanted[1])
    tolerance = {FLOAT: 1e-5, DOUBLE: 1e-12}[dtype]
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def batched(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.vmap(function, in_dims=(0, None))


RATE = 1
WAYS: dict[str, Callable[[Callable[..., Tensor], Tensor, Tree], Any]] = {
    "vmap of grad": lambda f, lr, p: batched(torch.func.grad(f, argnums=(0, 1)))(lr, p),
    "grad of vmap": lambda f, lr, p: torch.func.grad(
        lambda *x: batched(f)(*x).sum(), argnums=(0, 1)
    )(lr, p),
    "autograd of vmap": lambda f, lr, p: torch.autograd.grad(
        batched(f)(lr.requires_grad_(), p).sum(), [lr]
    ),
    "grad of grad": lambda f, lr, p: torch.func.grad(
        lambda *x: torch.func.grad(f)(*x) ** 2, argnums=(0, 1)
    )(lr[0], p),
    "grad of vmap of grad": lambda f, lr, p: torch.func.grad(
        lambda *x: (batched(torch.func.grad(f))(*x) ** 2).sum(), argnums=(0, 1)
    )(lr, p),
    "forward": lambda f, lr, p: torch.func.jacfwd(f, argnums=(0, 1))(lr[0], p),
    "hessian": lambda f, lr, p: torch.func.hessian(f, argnums=(0, 1))(lr[0], p),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["adamax", "nadamax", "sgd", "adam"])
def test_other_ways_go_through_the_rule(name: str, way: str, by_rule: Any) -> None:
    lrs = torch.tensor([0.1, 0.2], dtype=DOUBLE)
    params = {k: x for k, x in start(DOUBLE).items() if k != "a"}

    def run() -> Any:
        def loss(lr: Tensor, p: Tree) -> Tensor:
            return trained(METHODS[name], lr, p, 2)

        return WAYS[way](loss, lrs.clone(), params)

    wanted = pytree.tree_leaves(by_rule(run))
    for a, b in zip(pytree.tree_leaves(run()), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("change", ["plain", "decay", "learned rate"])
def test_second_derivatives(change: str) -> None:
    x = leaf(DOUBLE, **CHANGES[change])
    x = x._replace(u=x.u.detach() + 3, g=x.g.detach() + 0.1)  # away from the kinks
    x = x._replace(u=x.u.requires_grad_(), g=x.g.requires_grad_())

    def function(*inputs: Tensor) -> Any:
        y = x._replace(**dict(zip(("p", "g", "m", "u"), inputs[:4], strict=True)))
        y = y._replace(lr=inputs[4]) if len(inputs) == 5 else y
        (row,) = executors.compute([y], False, False, add=True)
        return row[0], row[2], row[3]

    inputs = [*x[:4]]
    if isinstance(x.lr, Tensor):
        inputs.append(torch.tensor(0.1, dtype=DOUBLE, requires_grad=True))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    assert torch.autograd.gradcheck(function, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)


def test_cotangents_of_any_layout() -> None:
    x = leaf(FLOAT)
    (row,) = executors.compute([x], False, False, add=True)
    strided = torch.randn(SIZE, 2)[:, 0]
    wanted = derivatives(x, row, [strided.clone(), None, None])
    (row,) = executors.compute([x], False, False, add=True)
    found = derivatives(x, row, [strided, None, None])
    assert_equal(list(found), list(wanted))
    (row,) = executors.compute([x], False, False, add=True)
    row[0].sum().backward()  # its cotangent is one number, expanded
    assert torch.equal(x.p.grad, torch.ones(SIZE))


def test_nothing_depends_on_what_is_constant() -> None:
    x = leaf(FLOAT)
    x = x._replace(g=x.g.detach(), m=x.m.detach(), u=x.u.detach())
    (row,) = executors.compute([x], False, False, add=True)
    assert "Add" in str(row[0].grad_fn)
    assert not row[2].requires_grad
    assert not row[3].requires_grad
    decayed = x._replace(weight_decay=0.1)
    (row,) = executors.compute([decayed], False, True, add=True)
    assert [y.requires_grad for y in row] == [True, False, False, False]
    rate = x._replace(p=x.p.detach(), lr=torch.tensor(0.1, requires_grad=True))
    (row,) = executors.compute([rate], False, False, add=True)
    assert [y.requires_grad for y in row][:2] == [True, False]


def test_many_leaves_are_one_node() -> None:
    leaves = [leaf(DOUBLE), leaf(FLOAT), leaf(FLOAT, b1=0.5)]
    rows = executors.compute(leaves, False, False, add=True)
    nodes = {y.grad_fn for row in rows for y in (row[0], row[2], row[3])}
    assert len(nodes) == 1


def test_what_it_keeps() -> None:
    """The gradient, m and u; of these m and u are results of the step before."""
    x = leaf(FLOAT)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y):
        executors.compute([x], False, False, add=True)
    assert [y.data_ptr() for y in kept if y.numel() == SIZE] == [y.data_ptr() for y in x[1:4]]


def test_a_counter_may_be_differentiated(nodes: list[int]) -> None:
    x = leaf(DOUBLE)
    x.t.requires_grad_()
    (row,) = executors.compute([x], False, False, add=True)
    assert nodes == [1]
    found = torch.autograd.grad(row[0].sum() + 3 * row[1], [x.t, x.g])
    first, t, *_ = by_the_rule(x, False, False, True)
    assert_bits(found, torch.autograd.grad(first.sum() + 3 * t, [x.t, x.g]))


def test_a_bounded_derivative_is_left_to_the_rule(nodes: list[int], by_rule: Any) -> None:
    def run() -> Any:
        g = torch.tensor([1e-12, 1.0], requires_grad=True)
        tx = fa.adamax(0.1, derivative_floor=1e-3)
        update, _ = tx.update(g, tx.init(g.detach()))
        return torch.autograd.grad(update.sum(), g)

    found = run()
    assert nodes == [0]
    assert_bits(found, by_rule(run))


def test_saved_tensors_that_come_back_in_another_layout() -> None:
    x = leaf(DOUBLE)
    square = {k: getattr(x, k)[:36].detach().view(6, 6) for k in ("p", "g", "m", "u")}
    x = x._replace(**{k: v.t().contiguous().t().requires_grad_() for k, v in square.items()})
    cotangents = [torch.randn(6, 6, dtype=DOUBLE), None, None]

    def run() -> Any:
        (row,) = executors.compute([x], False, False, add=True)
        return row

    wanted = derivatives(x, run(), cotangents)
    for turned in range(4):  # each of the saved tensors in turn
        count = iter(range(100))

        def unpack(y: Tensor, turned: int = turned, count: Iterator[int] = count) -> Tensor:
            return y.contiguous() if next(count) == turned else y

        with torch.autograd.graph.saved_tensors_hooks(lambda y: y, unpack):
            row = run()
        assert_bits(derivatives(x, row, cotangents), wanted)


def test_autograd_sees_a_tensor_that_was_changed_between() -> None:
    x = leaf(FLOAT)
    (row,) = executors.compute([x], False, False, add=True)
    with torch.no_grad():
        x.m.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        row[0].sum().backward()
