"""Steps under ``torch.compile``: one operator for all leaves, the bits of the eager step.

The file is longer than others: all of it looks for operators in the graphs of one backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad

import functional_adamax as fa
from functional_adamax._execution import operator as _operator  # noqa: F401 - which registers it
from functional_adamax._execution.native import kernel
from functional_adamax._execution.program import machine

OP = torch.ops.functional_adamax.step.default

needs_kernel = pytest.mark.skipif(kernel._native is None, reason="built without a compiler")


class Graphs:
    """A backend that keeps the graphs it is given and runs them as they are."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.graphs.append(graph)
        return graph.forward

    def operators(self) -> list[int]:
        return [sum(node.target == OP for node in g.graph.nodes) for g in self.graphs]


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


@dataclass(frozen=True, eq=False, repr=False)
class Halved(fa.Stage):
    rate: float = 0.5

    def rule(self, x: Any) -> Tensor:
        return x.u * x.h["rate"]


@dataclass(frozen=True, eq=False, repr=False)
class Centred(Halved):
    def rule(self, x: Any) -> Tensor:
        return x.u - x.u.mean()


CHAIN = fa.clip_by_global_norm(1.0), fa.scale_by_adamax(), fa.add_decayed_weights(0.1)
WHOLE = {
    "chain": lambda lr: fa.chain(*CHAIN, fa.scale_by_learning_rate(lr)),
    "named": lambda lr: fa.named_chain(("a", fa.scale_by_adam()), ("b", fa.scale(-lr))),
    "adamw": fa.adamw,
    "schedule": lambda lr: fa.chain(fa.sgd(fa.cosine_decay_schedule(0.1, 9)), fa.scale(lr)),
    "mask": lambda lr: fa.chain(
        fa.masked(fa.add_decayed_weights(0.1), {"a": {"b": True, "c": False}, "d": [True]}),
        fa.adam(lr),
    ),
    "partition": lambda lr: fa.partition({"x": fa.adamax(lr), "y": fa.sgd(0.1)}, LABELS),
    "injected": lambda lr: fa.chain(fa.inject_hyperparams(fa.adamax)(0.1), fa.scale(lr)),
    "accumulated": lambda lr: fa.multi_steps(fa.adamax(lr), 2),
    "rates": lambda lr: fa.chain(fa.adamax({"a": {"b": 0.1, "c": 0.2}, "d": [0.3]}), fa.scale(lr)),
    "own stage": lambda lr: fa.chain(fa.adamax(lr), Halved().pair()),
    "unchanged": lambda lr: fa.chain(fa.identity(), fa.scale(lr)),
}
LABELS = {"a": {"b": "x", "c": "y"}, "d": ["x"]}


def nested(*shapes: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    b, c, d = (torch.randn(shape, generator=generator) for shape in shapes)
    return {"d": [d], "a": {"c": c, "b": b}}


def stepped(tx: Any, add: bool, grads: Any, state: Any, params: Any) -> Any:
    return fa.step(tx, grads, state, params) if add else tx.update(grads, state, params)


def assert_same(found: Any, wanted: Any) -> None:
    (a, spec), (b, other) = map(torch.utils._pytree.tree_flatten, (found, wanted))
    assert spec == other
    assert all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


needs_programs = pytest.mark.skipif(not machine.is_there(), reason="no programs run here")


@needs_programs
@pytest.mark.parametrize("add", [False, True], ids=["update", "step"])
@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_transform_is_one_operator(case: str, add: bool) -> None:
    """Whatever the values; where a gradient is missing, it is compiled once more."""
    params = nested((3, 2), (2,), ())
    state = WHOLE[case](0.1).init(params)

    def step(grads: Any, state: Any, lr: Tensor) -> Any:
        return stepped(WHOLE[case](lr), add, grads, state, params)

    function, backend = compiled(step)
    found = wanted = (None, state)
    for i in range(4):
        grads = nested((3, 2), (2,), (), seed=i)
        if i > 1:
            grads["a"]["c"] = None
        lr = torch.tensor(0.1 / (i + 1), dtype=torch.float64)
        found, wanted = (f(grads, x[1], lr) for f, x in ((function, found), (step, wanted)))
        assert_same(found, wanted)
    assert backend.operators() == [1, 1]


def double(tree: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda x: 2 * x, tree)


@needs_programs
@pytest.mark.parametrize("case", ["noise", "centred", "pair", "own schedule"])
def test_of_what_is_no_program_the_compiler_follows_the_code(case: str) -> None:
    tx = {
        "noise": fa.add_noise(0.1, 0.5),
        "centred": Centred().pair(),
        "pair": fa.GradientTransformation(lambda p: (), lambda u, s, p=None: (double(u), s)),
        "own schedule": fa.adamw(lambda count: 0.1 * 0.9**count),
    }[case]
    params, grads = (nested((3, 2), (2,), (), seed=i) for i in range(2))
    state = tx.init(params)
    function, backend = compiled(lambda g, s: tx.update(g, s, params))
    found, wanted = function(grads, state), tx.update(grads, state, params)
    for x, y in zip(*map(torch.utils._pytree.tree_leaves, (found, wanted)), strict=True):
        torch.testing.assert_close(x, y)
    assert backend.operators() == [0]


@needs_programs
def test_a_number_that_changes_keeps_the_bits_of_a_number() -> None:
    params, grads = trees(3)
    state = fa.chain(fa.scale_by_adam(), fa.scale(1.0), fa.multi_steps(fa.scale(2), 2)).init(params)

    def step(rate: float, every: int) -> Any:
        tx = fa.chain(fa.scale_by_adam(), Halved(rate).pair(), fa.multi_steps(fa.scale(2), every))
        return tx.update(grads, state)

    function, backend = compiled(step)
    for i in range(4):
        assert_same(function(0.1 / (i + 1), 2 + i), step(0.1 / (i + 1), 2 + i))
    assert len(backend.graphs) <= 3
    assert set(backend.operators()) == {1}


def noted(add: bool, donate: bool = False) -> tuple[Any, ...]:
    """The inputs of an operator, as a compiler made them."""
    params, grads = (nested((3, 2), (2, 4, 4, 3), (), seed=i) for i in range(2))
    grads["a"]["c"] = grads["a"]["c"].to(memory_format=torch.channels_last)
    tx = WHOLE["chain"](0.1)
    function, backend = compiled(partial(stepped, tx, add))
    state = tx.init(params)
    function(grads, state, params)
    ((name, *_),) = (
        node.args for g in backend.graphs for node in g.graph.nodes if node.target == OP
    )
    lists = [torch.utils._pytree.tree_leaves(x) for x in (grads, params, state)]
    return name, *([x.clone() for x in row] for row in lists), []


@needs_programs
@pytest.mark.parametrize("add", [False, True], ids=["update", "step"])
def test_the_operator_is_what_its_fake_says(add: bool) -> None:
    inputs = noted(add)
    in_place = torch.ops.functional_adamax.step_.default
    for operator in (OP, in_place) if add else (OP,):
        assert set(torch.library.opcheck(operator, inputs).values()) == {"SUCCESS"}


@needs_programs
def test_the_operator_in_place_writes_what_the_other_returns() -> None:
    inputs = noted(add=True)
    new = [x for part in OP(*inputs) for x in part]
    torch.ops.functional_adamax.step_.default(*inputs)
    assert all(torch.equal(x, y) for x, y in zip([*inputs[2], *inputs[3]], new, strict=True))


@needs_programs
def test_the_operator_runs_while_another_thread_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every thread is told that a compiler follows it."""
    inputs = noted(add=True)
    wanted = OP(*inputs)
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    found = OP(*inputs)
    for x, y in zip(chain(*found), chain(*wanted), strict=True):
        torch.testing.assert_close(x, y)


@needs_kernel
@pytest.mark.parametrize("add", [False, True], ids=["update", "step"])
def test_the_operator_without_the_kernel_it_was_compiled_with(
    add: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, grads = trees(4)
    tx = fa.adamax(0.1)
    state = tx.init(params)
    function, _ = compiled(partial(stepped, tx, add))
    wanted = function(grads, state, params)
    monkeypatch.setattr(kernel, "_native", None)
    assert_same(function(grads, state, params), wanted)


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
