"""Where a state lies in ``optimizer.state``: its names, and how its structure is learned."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from saving import saved, stepped
from wrapped import parameters

import functional_adamax as fa
from functional_adamax._core import pytree
from functional_adamax._execution.program import machine
from functional_adamax.compat import Optimizer
from functional_adamax.compat._layout import Layout, outline_of


def picky(lr: float = 0.1) -> fa.GradientTransformation:
    """A transform whose ``init`` reads values, as no device without data can."""

    def init(params: Any) -> Any:
        return [None if p is None else p.new_full((), float(p.sum())) for p in params]

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        del params
        return [None if g is None else -lr * g for g in grads], state

    return fa.GradientTransformation(init, update)


def test_a_transform_that_reads_values_at_first() -> None:
    first = stepped(Optimizer(parameters(2, 3), picky), 2)
    assert [float(entry["state"]) for entry in first.state.values()] == [2.0, 3.0]
    again = Optimizer(parameters(2, 3), picky)
    again.load_state_dict(saved(first))
    assert [float(entry["state"]) for entry in stepped(again).state.values()] == [2.0, 3.0]
    state = saved(first)
    state["state"][0] = {"other": torch.ones(())}
    with pytest.raises(ValueError, match=r"missing \['state'\], unknown \['other'\]"):
        again.load_state_dict(state)


def noisy(lr: float = 0.1) -> fa.GradientTransformation:
    """A transform whose first state is random, drawn from torch's own generator."""

    def init(params: Any) -> Any:
        return [None if p is None else torch.randn(p.shape) for p in params]

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        del params
        return [None if g is None else -lr * g for g in grads], state

    return fa.GradientTransformation(init, update)


def test_learning_the_structure_draws_no_random_numbers() -> None:
    optimizer = Optimizer(parameters(2, 3), noisy)
    torch.manual_seed(3)
    optimizer.step()
    torch.manual_seed(3)
    for entry in optimizer.state.values():
        assert torch.equal(entry["state"], torch.randn(entry["state"].shape))
    before = torch.get_rng_state()
    optimizer.load_state_dict(saved(optimizer))
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)


def averaging(lr: float = 0.1) -> fa.GradientTransformation:
    def init(params: Any) -> Any:
        return [None if p is None else torch.zeros_like(p) for p in params]

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        del params
        new = [m if g is None else 0.9 * m + g for m, g in zip(state, grads, strict=True)]
        return [None if g is None else -lr * m for g, m in zip(grads, new, strict=True)], new

    return fa.GradientTransformation(init, update)


def test_a_state_without_fields_has_a_name() -> None:
    first = stepped(Optimizer(parameters(2, 3), averaging))
    state = saved(first)
    assert [list(entry) for entry in state["state"].values()] == [["state"], ["state"]]
    old = copy.deepcopy(state)
    old["state"] = {key: {"": entry["state"]} for key, entry in old["state"].items()}
    for one in (state, old):
        again = Optimizer(parameters(2, 3), averaging)
        again.load_state_dict(one)
        assert repr(again.state_dict()) == repr(state)


PEAKS = """
import re, sys
from pathlib import Path
import torch
import functional_adamax as fa
from functional_adamax.compat import Adamax, Optimizer

def make(params):
    return Adamax(params) if sys.argv[1] == "Adamax" else Optimizer(params, fa.adamaxw)

def build(size):
    params = [torch.nn.Parameter(torch.zeros(size)) for _ in range(8)]
    for p in params:
        p.grad = torch.ones_like(p)
    n = 8 // int(sys.argv[2])
    return [{"params": params[i : i + n]} for i in range(0, 8, n)]

def run(groups):
    peaks = []
    def note():
        status = Path("/proc/self/status").read_text()  # ru_maxrss begins with the parent's
        peaks.append(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024)
    first, second = make(groups), make(groups)
    note()
    first.step()
    note()
    second.load_state_dict(first.state_dict())
    note()
    second.step()
    second.functional_state()
    note()
    return [b - a for a, b in zip(peaks, peaks[1:])]

run(build(8))  # which imports what torch imports late
print(*run(build(2**22)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.skipif(not machine.is_there(), reason="operations of torch need more")
@pytest.mark.parametrize("groups", ["1", "4"])
@pytest.mark.parametrize("name", ["Adamax", "Optimizer"])
def test_a_first_step_needs_the_memory_of_the_state_and_no_more(name: str, groups: str) -> None:
    command = [sys.executable, "-c", PEAKS, name, groups]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, load, after = map(float, done.stdout.split())
    size = 8 * 2**22 * 4 / 2**20
    state = 2 * size
    assert 0.95 * state < first < state + 0.05 * size
    assert 0.95 * state < load < state + 0.05 * size
    assert after < 0.05 * size


def layout_of(tx: fa.GradientTransformation, params: Any) -> tuple[Layout, Any]:
    state = tx.init(params)
    return Layout.of(state, pytree.flatten(params)[1], None), state


@pytest.mark.parametrize(
    ("tx", "names"),
    [
        (fa.adamax(), ["step", "step", "exp_avg", "exp_avg", "exp_inf", "exp_inf"]),
        (fa.adamax(abs), ["count", *["step"] * 2, *["exp_avg"] * 2, *["exp_inf"] * 2]),
        (fa.chain(fa.trace(0.9), fa.trace(0.5)), [*["0.trace"] * 2, *["1.trace"] * 2]),
        (fa.scale(2.0), ["state"]),
    ],
    ids=["method", "scheduled", "twice", "stateless"],
)
def test_leaves_go_by_their_names_and_by_paths_where_a_name_comes_twice(
    tx: Any, names: list[str]
) -> None:
    layout, state = layout_of(tx, {"a": torch.ones(1), "b": torch.ones(2)})
    assert [slot.name for slot in layout.slots] == names
    named = enumerate(names)
    belongs = [slot.parameter for slot in layout.slots]
    assert belongs == [None if x in ("count", "state") else names[:i].count(x) for i, x in named]
    assert bool(layout.counts) == ("count" in names)


def test_a_state_goes_into_entries_and_comes_out() -> None:
    p, q = parameters(1, 2)
    layout, fresh = layout_of(fa.adamax(abs), [p.detach(), q.detach()])
    leaves = pytree.flatten(fresh)[0]
    state: dict[Any, Any] = {p: {}, q: {}}
    layout.complete(leaves, state, [p, q], [p, q])
    assert list(state[p]) == list(state[q]) == ["count", "step", "exp_avg", "exp_inf"]
    assert state[p]["count"] is state[q]["count"], "what belongs to all stands in each entry"
    found = pytree.flatten(layout.gather(state, [p, q]))[0]
    assert all(x is y for x, y in zip(found, leaves, strict=True))
    new = [x + 1 for x in leaves]
    layout.keep(new, state, [p, q], replace=False, in_place=False)
    assert state[p]["exp_avg"] is leaves[3], "written into the tensor that is there"
    assert state[p]["exp_avg"].item() == 1.0
    layout.keep(new, state, [p, q], replace=True, in_place=False)
    assert state[p]["exp_avg"] is new[3]
    layout.keep(leaves, state, [p, q], replace=True, in_place=True)
    assert state[p]["exp_avg"] is new[3], "what was written in place stays"
    assert state[p]["count"] is leaves[0]


def test_an_entry_that_lacks_something_is_completed() -> None:
    p, q = parameters(1, 2)
    layout, fresh = layout_of(fa.adamax(abs), [p.detach(), q.detach()])
    leaves = pytree.flatten(fresh)[0]
    count = torch.tensor(7)
    state: dict[Any, Any] = {p: layout.entries(leaves, [p, q])[p] | {"count": count}, q: {}}
    assert layout.incomplete(leaves, state, [p, q]) == [None, q]
    layout.complete(leaves, state, [p, q], [None, q])
    assert state[q]["count"] is count, "taken from an entry that has it"
    assert layout.incomplete(leaves, state, [p, q]) == [None, None]


def test_a_parameter_without_state_has_an_entry() -> None:
    (p,) = parameters(1)
    layout, fresh = layout_of(fa.scale(2.0), [p.detach()])
    state: dict[Any, Any] = {p: {}}
    layout.complete(pytree.flatten(fresh)[0], state, [p], [p])
    assert list(state[p]) == ["stepped"]
    assert layout.gather(state, [p]) == fa.EmptyState()


def test_a_state_of_another_structure_is_refused() -> None:
    layout, state = layout_of(fa.adamax(), [torch.ones(1)])
    layout.check(state)
    with pytest.raises(ValueError, match="of the one it is given, got tuple of 4 leaves for 3"):
        layout.check((state, None))


def test_what_of_the_hyperparameters_decides_on_the_structure() -> None:
    def outline(**values: Any) -> Any:
        return outline_of(values)

    assert outline(lr=0.1, momentum=0.9) == outline(lr=0.2, momentum=np.float64(0.5))
    assert outline(momentum=0.9) != outline(momentum=0.0)
    assert outline(lr=0.1) != outline(lr=abs) == outline(lr=len)
    assert outline(lr=0.1) != outline(lr=torch.tensor(0.1))
