"""Rules are recorded rightly, or declined with a reason.

Each rule of the table is a method, stepped twice on two trees; with the machine the results have
the bits of the rule alone, whoever took the leaves.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from recorded_rules import (
    DECLINED,
    RULES,
    TAKEN,
    begin,
    bits,
    choices_by_the_step,
    grad_mode,
    method,
    plain,
    reason,
    steps,
    trees,
)
from torch import Tensor

import functional_adamax as fa
from functional_adamax._execution.program import machine
from functional_adamax._execution.program.graph import Declined
from functional_adamax._execution.program.record import Input, record

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_it_is_the_rule(rule: Any, donate: bool, without: Any) -> None:
    tx = method(rule)
    for tree in trees():
        torch.manual_seed(9)
        begin()
        want = without(steps, tx, tree, donate)
        begin()
        assert bits(steps(tx, tree, donate)) == bits(want)


@pytest.mark.parametrize("rule", TAKEN, ids=lambda rule: rule.__name__)
def test_it_is_taken(rule: Any) -> None:
    assert reason(method(rule), torch.randn(6)) is None


@pytest.mark.parametrize("rule", DECLINED, ids=lambda rule: rule.__name__)
def test_it_declines_with_a_reason(rule: Any) -> None:
    words = DECLINED[rule]
    found = reason(method(rule), torch.randn(6))
    assert words is None or (found is not None and words in found), found


def test_a_closure_that_is_mutated_declines() -> None:
    scale = [2.0]

    def scaled(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
        return m * scale[0]

    assert "scale, whose value may change" in str(reason(method(scaled), torch.ones(3)))


def test_a_rule_that_sets_what_it_shares_declines() -> None:
    count = 0

    def counting(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
        nonlocal count
        count += 1
        return m * count

    assert "sets count" in str(reason(method(counting), torch.ones(3)))


def surroundings() -> dict[str, Callable[[], Any]]:
    return {
        "no grad": torch.no_grad,
        "grad": torch.enable_grad,
        "inference": torch.inference_mode,
        "autocast": partial(torch.autocast, "cpu", dtype=torch.bfloat16),
        "device": partial(torch.device, "cpu"),
    }


@pytest.mark.parametrize("name", surroundings())
@pytest.mark.parametrize("rule", [grad_mode, choices_by_the_step, plain], ids=lambda r: r.__name__)
def test_the_surroundings_of_the_caller(rule: Any, name: str, without: Any) -> None:
    with surroundings()[name]():
        tx = method(rule)
        for tree in trees():
            assert bits(steps(tx, tree)) == bits(without(steps, tx, tree))


def test_a_first_call_where_something_follows(without: Any) -> None:
    """In ``vmap`` and ``grad``, where no program is made or one of plain operations."""
    tx, p = method(plain), torch.randn(4, 3)
    rows = torch.func.vmap(lambda x: fa.step(tx, x, tx.init(x), x)[0])(p)
    want = without(lambda: torch.stack([fa.step(tx, x, tx.init(x), x)[0] for x in p]))
    assert torch.equal(rows, want)
    slope = torch.func.grad(lambda x: fa.step(tx, x, tx.init(x), x)[0].sum())(p[0])
    assert slope.isfinite().all()


FORKED = """
import os, torch, functional_adamax as fa
p = torch.randn(100_000)
tx = fa.nadamax(0.1)
state = tx.init(p)
want = fa.step(tx, p, state, p)[0]
child = os.fork()
if child == 0:
    q = fa.step(tx, p, state, p)[0][:9]
    fa.step(fa.lion(0.1), q, fa.lion(0.1).init(q), q)
    os._exit(not torch.equal(q, want[:9]))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_fork_records_and_runs() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], check=True, timeout=120)


def test_a_rule_of_named_tensors() -> None:
    """What a record is, without a method."""
    inputs = {"x": Input(True, torch.float32), "t": Input(False, torch.float64)}
    graph = record(lambda x: {"y": x["x"] * 2 + x["x"] * 2, "t": x["t"] + 1}, inputs, torch.ones(3))
    ops = [node.op for node in graph.nodes]
    assert ops.count("MULTIPLY") == 2  # for autograd hands a cotangent through both
    assert graph.outputs["y"].op == "ADD"
    assert not graph.outputs["t"].vector
    assert graph.reads == frozenset()
    assert graph.dims == 2


def test_a_rule_that_is_not_the_same_twice_declines() -> None:
    calls = []

    def counting(x: Any) -> Any:
        calls.append(0)
        return {"y": x["x"] * float(len(calls))}

    with pytest.raises(Declined, match="not do the same every time"):
        record(counting, {"x": Input(True, torch.float32)}, torch.ones(3))


def test_an_error_of_a_rule_declines() -> None:
    def failing(x: Any) -> Any:
        raise LookupError("no such thing")

    with pytest.raises(Declined, match="raises LookupError"):
        record(failing, {"x": Input(True, torch.float32)}, torch.ones(3))
