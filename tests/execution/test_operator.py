"""The kernel under ``torch.compile``: one operator for all leaves, the bits of the eager step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import executors
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad

import functional_adamax as fa
from functional_adamax._execution import operator as _operator  # noqa: F401 - which registers it
from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.native import kernel

needs_kernel = pytest.mark.skipif(kernel._native is None, reason="built without a compiler")


class Graphs:
    """A backend that keeps the graphs it is given and runs them as they are."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.graphs.append(graph)
        return graph.forward

    def operators(self) -> list[int]:
        wanted = torch.ops.functional_adamax.step.default
        return [sum(node.target == wanted for node in g.graph.nodes) for g in self.graphs]


def trees(count: int, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        {str(i): torch.randn(3, 2, generator=generator).to(dtype) for i in range(count)}
        for _ in range(2)
    )


def compiled(function: Callable[..., Any]) -> tuple[Callable[..., Any], Graphs]:
    torch._dynamo.reset()
    backend = Graphs()
    return torch.compile(function, fullgraph=True, backend=backend), backend


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factory", [fa.adamax, fa.adamaxw], ids=["coupled", "decoupled"])
def test_one_operator_and_the_bits_of_the_eager_step(factory: Any, dtype: torch.dtype) -> None:
    params, grads = trees(20, dtype)
    grads["3"] = None  # type: ignore[assignment]
    state_dtype = torch.float32 if dtype == torch.bfloat16 else None

    def step(params: Any, grads: Any, state: Any, lr: Tensor) -> Any:
        return fa.step(factory(lr=lr, state_dtype=state_dtype), grads, state, params)

    function, backend = compiled(step)
    found = wanted = (params, factory(state_dtype=state_dtype).init(params))
    for i in range(4):
        lr = torch.tensor(0.1 / (i + 1))
        found = function(found[0], grads, found[1], lr)
        wanted = step(wanted[0], grads, wanted[1], lr)
    assert backend.operators() == [1]
    leaves = [torch.utils._pytree.tree_leaves(x) for x in (found, wanted)]
    assert all(torch.equal(a, b) for a, b in zip(*leaves, strict=True))


@needs_kernel
@pytest.mark.parametrize("lr", [[0.1, 0.2, 0.1, 0.3], [0.1, torch.tensor(0.2), 0.1, 0.1]])
def test_a_rate_for_each_leaf_is_one_operator(lr: Any) -> None:
    params, grads = (list(tree.values()) for tree in trees(4))
    grads[2] = None  # type: ignore[call-overload]
    tx = fa.adamax(lr=lr)
    function, backend = compiled(lambda p, g, s: fa.step(tx, g, s, p))
    found = function(params, grads, tx.init(params))
    wanted = fa.step(tx, grads, tx.init(params), params)
    assert all(torch.equal(a, b) for a, b in zip(found[0], wanted[0], strict=True))
    assert backend.operators() == [1]


@needs_kernel
def test_numbers_that_change_are_compiled_twice_at_most() -> None:
    params, grads = trees(3)
    state = fa.adamax().init(params)

    def step(lr: float, b1: float) -> Any:
        return fa.step(fa.adamax(lr=lr, betas=(b1, 0.9)), grads, state, params)

    function, backend = compiled(step)
    for i in range(6):
        found, wanted = (f(0.1 / (i + 1), 0.5 + 0.01 * i) for f in (function, step))
        assert all(torch.equal(found[0][k], wanted[0][k]) for k in params)
    assert len(backend.graphs) <= 3
    assert set(backend.operators()) == {1}


@needs_kernel
def test_code_is_followed_once_and_a_changing_rate_stays_a_number() -> None:
    """Counters in float64 do not make Dynamo start over, and do not make constants of others."""
    params, grads = trees(120)
    state = fa.adamax().init(params)
    times = torch._dynamo.utils.compilation_time_metrics

    def step(lr: float, params: Any, grads: Any, state: Any) -> Any:
        return fa.step(fa.adamax(lr), grads, state, params)

    torch._dynamo.reset()
    function = torch.compile(step, fullgraph=True, backend="aot_eager")
    before = len(times.get("bytecode_tracing", []))
    for i in range(5):
        function(0.1 / (i + 1), params, grads, state)
    assert len(times["bytecode_tracing"]) - before == 2  # for a number, and for any number


@needs_kernel
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_counter_written_in_compiled_code(backend: str) -> None:
    """Of a marked counter Dynamo would drop the write."""
    tx, p, g = fa.adamax(0.1), torch.zeros(3), torch.ones(3)
    state = tx.init(p)

    def step(g: Tensor, state: Any, p: Tensor) -> None:
        new, after = fa.step(tx, g, state, p)
        for old, x in zip((p, *state), (new, *after), strict=True):
            old.copy_(x)

    torch._dynamo.reset()
    function = torch.compile(step, fullgraph=True, backend=backend)
    for i in range(3):
        function(g, state, p)
        assert state.step == i + 1
    torch.testing.assert_close(p, torch.full((3,), -0.3))


BAD = {
    "a parameter is missing": ({"a": None}, {}, {}),
    "a parameter is missing beside a gradient that is": ({"b": None}, {"b": None}, {}),
    "the shape of a parameter without gradient": ({"b": torch.ones(7)}, {"b": None}, {}),
    "the shape of a moment without gradient": ({}, {"b": None}, {"b": torch.ones(7)}),
    "the shape of a gradient": ({}, {"a": torch.ones(7)}, {}),
}


@needs_kernel
@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("add", [False, True], ids=["update", "step"])
def test_compiled_code_refuses_what_eager_code_does(case: str, add: bool) -> None:
    params, grads, inf = ({k: torch.ones(2) for k in "abc"} for _ in range(3))
    state = fa.adamax().init(params)._replace(exp_inf=inf | BAD[case][2])
    params, grads = params | BAD[case][0], grads | BAD[case][1]

    def step(params: Any, grads: Any, state: Any) -> Any:
        tx = fa.adamax()
        return fa.step(tx, grads, state, params) if add else tx.update(grads, state, params)

    with pytest.raises(ValueError, match="must"):
        step(params, grads, state)
    function, _ = compiled(step)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="ValueError"):
        function(params, grads, state)


@needs_kernel
@pytest.mark.parametrize("case", ["requires grad", "vmap", "floor", "rate per element"])
def test_what_the_compiler_is_shown_the_rule_for(case: str) -> None:
    p, g = torch.randn(4, 3), torch.randn(4, 3)
    tx = fa.adamax(
        lr=torch.rand(3) if case == "rate per element" else 0.1,
        derivative_floor=1e-3 if case == "floor" else None,
    )
    if case == "requires grad":
        g.requires_grad_()

    def step(p: Tensor, g: Tensor) -> Tensor:
        return fa.step(tx, g, tx.init(p.detach()), p)[0]

    whole = torch.vmap(step) if case == "vmap" else step
    function, backend = compiled(whole)
    torch.testing.assert_close(function(p, g), whole(p, g))
    assert backend.operators() == [0]


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_kernel)])
def test_the_operator_itself(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fake agrees with it, and on a machine without the kernel it is the rule."""
    if not native:
        monkeypatch.setattr(kernel, "_native", None)
    operator = torch.ops.functional_adamax.step.default
    p, g, m = (torch.randn(2, 3, 4, 5) for _ in range(3))
    g = g.to(memory_format=torch.channels_last)
    t, lr = torch.tensor(3.0, dtype=torch.float64), torch.tensor(0.1)
    in_place = torch.ops.functional_adamax.step_.default
    for decay, add, *how in (
        (0.0, False, False, False),
        (0.1, True, True, False),
        (0.1, False, False, True),
    ):
        numbers = [0.0, 0.9, 0.99, 1e-8, decay]
        inputs = ([p], [g], [m], [m.abs()], [t], [lr], [0], numbers, *how, add)
        found = [column[0] for column in operator(*inputs)]
        leaf = AdamaxLeaf(p, g, m, m.abs(), t, lr, *numbers[1:])
        update, *state = executors.rule_step(leaf, *how)
        wanted = [p + update if add else update, *state]
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        torch.library.opcheck(operator, inputs)
        old = [x.clone() for x in (p, m, m.abs(), t)]
        in_place([old[0]], [g], *([x] for x in old[1:]), [lr], [0], numbers, *how)
        for x, new in zip(old, (p + update, state[1], state[2], state[0]), strict=True):
            assert torch.equal(x, new)


def test_numbers_of_other_functions_are_not_made_constants() -> None:
    tx = fa.adamax(0.1)
    params = [torch.ones(3) for _ in range(120)]
    torch._dynamo.reset()
    step = torch.compile(lambda g, s, p: fa.step(tx, g, s, p), backend="eager", fullgraph=True)
    step(params, tx.init(params), params)
    backend = CompileCounter()
    scaled = torch.compile(lambda x, lr: x * lr + 1, backend=backend, fullgraph=True)
    for i in range(6):
        scaled(torch.ones(3), 0.1 * (i + 1))
    assert backend.frame_count == 2


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_forward_mode_derivatives(backend: str) -> None:
    tx = fa.adamax(0.1)
    p, g, direction = torch.randn(3, 4)[:, :3]
    state = fa.step(tx, torch.randn(3), tx.init(p), p)[1]
    torch._dynamo.reset()
    tangents = []

    def eager(g: Tensor) -> Tensor:
        return fa.step(tx, g, state, p)[0]

    for function in (eager, torch.compile(eager, backend=backend)):
        function(g)
        with forward_ad.dual_level():
            dual = function(forward_ad.make_dual(g, direction))
            tangents.append(forward_ad.unpack_dual(dual).tangent)
    torch.testing.assert_close(tangents[1], tangents[0])
