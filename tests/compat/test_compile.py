"""``torch.compile`` of the classic step.

The file is longer than others: each test runs an optimizer twice, compiled and not.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from trees import assert_close

import functional_adamax as fa
from functional_adamax._execution.native import kernel
from functional_adamax._execution.program import machine
from functional_adamax.compat import Adamax, Optimizer, wrap

AdamaxW, AdamW = wrap(fa.adamaxw), wrap(fa.adamw)


def run(compiled: bool, **options: Any) -> tuple[list[Any], dict[str, Any]]:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(7))]
    optimizer = Adamax(params, lr=torch.tensor(0.05), **options)

    def step() -> None:
        optimizer.step()

    torch._dynamo.reset()
    counters.clear()
    function = torch.compile(step, fullgraph=True) if compiled else step
    for i in range(8):
        optimizer.param_groups[0]["lr"].fill_(0.05 / (i + 1))
        for p in params:
            p.grad = torch.randn_like(p)
        function()
    return params, optimizer.state[params[0]]


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "maximize": True}], ids=str)
def test_a_compiled_step_is_the_eager_one(options: dict[str, Any]) -> None:
    eager, compiled = run(False, **options), run(True, **options)
    assert 1 <= counters["stats"]["unique_graphs"] <= 2  # state is made in the first step
    assert_close(
        [p.detach() for p in compiled[0]], [p.detach() for p in eager[0]], torch.full((1,), 4.0)
    )
    for name, value in eager[1].items():
        assert_close(compiled[1][name], value, torch.full((1,), 4.0))


@pytest.mark.parametrize("grouped", [False, True], ids=["one group", "groups"])
def test_state_is_made_outside_of_the_one_graph(grouped: bool) -> None:
    def run(compiled: bool) -> tuple[CompileCounter, list[Any]]:
        params = [torch.nn.Parameter(torch.ones(n)) for n in (3, 2, 4)]
        groups = [{"params": params[:1]}, {"params": params[1:], "betas": (0.5, 0.9)}]
        optimizer = Adamax(groups if grouped else params, lr=torch.tensor(0.1))
        counter = CompileCounter()
        torch._dynamo.reset()
        step = torch.compile(optimizer.step, backend=counter) if compiled else optimizer.step
        for i in range(4):
            for p in params:
                p.grad = torch.full_like(p, i + 1.0)
            step()
        state = [x for p in params for x in optimizer.state[p].values()]
        return counter, [*(p.detach() for p in params), *state]

    (counter, found), (_, wanted) = run(True), run(False)
    assert counter.frame_count == 1
    assert {getattr(x, "_dynamo_static_input_type", None) for x in found[3:]} == {"guarded"}
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_rate_that_a_scheduler_changes_settles_after_two_graphs() -> None:
    p = torch.nn.Parameter(torch.randn(5))
    optimizer = Adamax([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    p.grad = torch.randn(5)
    optimizer.step()
    torch._dynamo.reset()
    counters.clear()
    function = torch.compile(lambda: optimizer.step())
    for _ in range(6):
        p.grad = torch.randn(5)
        function()
        scheduler.step()
    assert counters["stats"]["unique_graphs"] <= 2


class Graphs(list[torch.fx.GraphModule]):
    """A backend that keeps the graphs it is given and runs them as they are."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.append(graph)
        return graph.forward

    def operators(self) -> list[int]:
        wanted = torch.ops.functional_adamax.step_.default
        return [sum(node.target == wanted for node in graph.graph.nodes) for graph in self]


def test_a_schedule_of_ours_settles_and_can_be_ruled_out() -> None:
    def run(compiled: bool) -> tuple[list[float], torch.Tensor]:
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = AdamaxW([p], lr=fa.linear_schedule(0.1, 0.0, 20))
        group, shown = optimizer.param_groups[0], []
        torch._dynamo.reset()
        counters.clear()
        step = torch.compile(optimizer.step, fullgraph=True) if compiled else optimizer.step
        for i in range(12):
            p.grad = torch.full((3,), i + 1.0)
            if i == 4:
                before, group["lr"] = group["lr"], 0.5
            if i == 6:
                group["lr"] = before
            step()
            shown.append(float(group["lr"]))
        return shown, p.detach()

    (rates, p), (wanted_rates, wanted) = run(True), run(False)
    assert counters["stats"]["unique_graphs"] == 0  # of the eager run
    assert rates == pytest.approx(wanted_rates, rel=1e-12)
    assert wanted_rates[4:7] == pytest.approx([0.5, 0.5, 0.07])
    assert_close(p, wanted, torch.full((1,), 4.0))
    run(True)
    assert counters["stats"]["unique_graphs"] <= 5  # state, a tensor shown, the number set


def test_a_value_changed_in_place_rules_over_a_schedule() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamaxW([p], lr=0.1, weight_decay=fa.linear_schedule(0.1, 0.0, 10))
    group, shown = optimizer.param_groups[0], []
    torch._dynamo.reset()
    step = torch.compile(optimizer.step, backend="eager", fullgraph=True)
    p.grad = torch.ones(3)
    for factor in (1.0, 1.0, 0.5, 1.0, 2.0, 1.0):
        step()
        group["weight_decay"] *= factor
        shown.append(float(group["weight_decay"]))
    assert shown == pytest.approx([0.1, 0.09, 0.04, 0.04, 0.08, 0.05])


def test_a_pair_with_a_schedule_in_it_compiles() -> None:
    def run(compiled: bool) -> tuple[list[float], torch.Tensor]:
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = wrap(fa.adam)([p], betas=lambda count: (0.9 - 0.1 * count, 0.999))
        torch._dynamo.reset()
        step = optimizer.step
        if compiled:
            step = torch.compile(step, backend="eager", fullgraph=True)
        for i in range(4):
            p.grad = torch.full((3,), i + 1.0)
            step()
        return [*map(float, optimizer.param_groups[0]["betas"])], p.detach()

    (betas, p), (wanted_betas, wanted) = run(True), run(False)
    assert betas == pytest.approx(wanted_betas)
    assert betas == pytest.approx([0.6, 0.999])
    assert_close(p, wanted, torch.full((1,), 4.0))


@pytest.mark.skipif(kernel._native is None, reason="built without a compiler")
@pytest.mark.parametrize("kind", [Adamax, AdamaxW])
@pytest.mark.parametrize("taken", [True, False], ids=["the kernel", "the rule, at run time"])
def test_a_group_is_one_operator(kind: Any, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bits of eager steps, in groups, with gaps, and with a rate that changes."""

    def run(compiled: bool) -> tuple[list[torch.Tensor], Graphs]:
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(3, 2)) for _ in range(40)]
        groups = [{"params": params[:35]}, {"params": params[35:], "weight_decay": 0.1}]
        optimizer = kind(groups, lr=torch.tensor(0.1))
        for p in params:
            p.grad = torch.randn_like(p)
        params[3].grad = None
        optimizer.step()
        graphs = Graphs()
        torch._dynamo.reset()
        step = torch.compile(optimizer.step, backend=graphs) if compiled else optimizer.step
        for i in range(3):
            for p in params:
                if p.grad is not None:
                    p.grad.copy_(torch.randn_like(p))
            optimizer.param_groups[0]["lr"].fill_(0.1 / (i + 1))
            if compiled and not taken:
                with monkeypatch.context() as patch:
                    step() if i == 0 else None  # compiled with the kernel, and run without
                    patch.setattr(kernel, "_native", None)
                    step() if i else None
            else:
                step()
        state = [x for p in params if p.grad is not None for x in optimizer.state[p].values()]
        return [*params, *state], graphs

    found, graphs = run(True)
    wanted, _ = run(False)
    assert graphs.operators() == [2]  # one for each group
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.skipif(kernel._native is None, reason="built without a compiler")
def test_a_compiled_step_is_noticed_by_autograd() -> None:
    p = torch.nn.Parameter(torch.randn(3))
    optimizer = Adamax([p])
    p.grad = torch.ones(3)
    loss = (p**2).sum()
    torch._dynamo.reset()
    torch.compile(optimizer.step)()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def decayed_after_clipping(lr: float = 0.01) -> fa.GradientTransformation:
    return fa.chain(fa.clip_by_global_norm(1.0), fa.adamaxw(lr))


@pytest.mark.parametrize(
    "factory", [fa.adamaxw, decayed_after_clipping, fa.adam], ids=["alone", "chain", "adam"]
)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("first", ["eager", "compiled"])
def test_gradients_that_come_late(factory: Any, backend: str, first: str) -> None:
    def run(compiled: bool) -> list[torch.Tensor]:
        params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
        optimizer = wrap(factory)(params)
        torch._dynamo.reset()
        step = torch.compile(optimizer.step, backend=backend) if compiled else optimizer.step
        for i in range(4):
            params[0].grad = torch.full((3,), i + 1.0)
            params[1].grad = torch.full((3,), 1.0 - i) if i > 1 else None
            (optimizer.step if i == 0 and first == "eager" else step)()
        state = optimizer.state_dict()["state"]
        return [
            *(p.detach() for p in params),
            *(x for entry in state.values() for x in entry.values()),
        ]

    for x, y in zip(run(True), run(False), strict=True):
        assert_close(x, y, torch.full((1,), 4.0))


CHAIN = fa.chain(fa.clip_by_global_norm(1.0), fa.scale_by_adamax(), fa.scale(-0.1))
CASES = {
    "chain": lambda params: Optimizer(params, CHAIN),
    "scheduled": lambda params: Optimizer(params, fa.adamw(fa.cosine_decay_schedule(0.1, 9))),
    "together": lambda params: AdamW(
        [{"params": params[:1]}, {"params": params[1:], "lr": 0.2}], lr=0.1, couple="all"
    ),
    "apart": lambda params: AdamW(
        [{"params": params[:1]}, {"params": params[1:], "lr": torch.tensor(0.2)}], lr=0.1
    ),
}


@pytest.mark.skipif(not machine.is_there(), reason="no programs run here")
@pytest.mark.parametrize("case", CASES)
def test_a_step_of_any_transform_is_an_operator(case: str) -> None:
    """State is made beforehand; a parameter that has no gradient any more is compiled once more."""

    def run(compiled: bool) -> tuple[list[torch.Tensor], Graphs]:
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n, 2)) for n in (3, 2, 4)]
        optimizer, graphs = CASES[case](params), Graphs()
        torch._dynamo.reset()
        step = optimizer.step
        if compiled:
            step = torch.compile(step, backend=graphs, fullgraph=True)
        for i in range(5):
            for p in params:
                p.grad = torch.randn_like(p)
            if i > 2:
                params[1].grad = None
            step()
        return [*params, *(x for p in params for x in optimizer.state[p].values())], graphs

    (found, graphs), (wanted, _) = run(True), run(False)
    assert graphs.operators() == ([2, 2] if case == "apart" else [1, 1])
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.skipif(not machine.is_there(), reason="no programs run here")
def test_a_whole_training_step_is_compiled() -> None:
    """Of which torch breaks the graph at ``backward`` and at ``zero_grad``."""

    def run(compiled: bool) -> tuple[list[torch.Tensor], Graphs]:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        optimizer, graphs = Optimizer(module.parameters(), CHAIN), Graphs()

        def train(x: torch.Tensor) -> None:
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()

        torch._dynamo.reset()
        step = torch.compile(train, backend=graphs) if compiled else train
        for i in range(4):
            step(torch.full((5, 3), i + 1.0))
        return list(module.parameters()), graphs

    (found, graphs), (wanted, _) = run(True), run(False)
    assert sum(graphs.operators()) == 1
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_factory_of_ones_own_is_followed() -> None:
    """Also where it was not called in eager code with the same values."""
    params = [torch.nn.Parameter(torch.randn(4)) for _ in range(2)]
    other = [torch.nn.Parameter(p.detach().clone()) for p in params]
    optimizers = [
        Optimizer(x, lambda lr: fa.chain(fa.clip(1.0), fa.adam(lr)), lr=0.1)
        for x in (params, other)
    ]
    for p, q in zip(params, other, strict=True):
        p.grad = torch.randn(4)
        q.grad = p.grad.clone()
    compiled = torch.compile(optimizers[0].step, fullgraph=True)
    for lr in (0.1, 0.2):
        optimizers[0].param_groups[0]["lr"] = optimizers[1].param_groups[0]["lr"] = lr
        compiled()
        optimizers[1].step()
    assert all(torch.equal(p, q) for p, q in zip(params, other, strict=True))


def test_every_optimizer_is_known_by_a_name_of_its_own() -> None:
    first = Optimizer([torch.nn.Parameter(torch.ones(2))], fa.adam)
    second = copy.deepcopy(first)
    third = pickle.loads(pickle.dumps(first))
    names = [x._known_as for x in (first, second, third)]
    assert len(set(names)) == 3
    first.load_state_dict(first.state_dict())
    assert first._known_as == names[0]
