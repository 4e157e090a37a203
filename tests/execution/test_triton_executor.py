"""The Triton executor: which leaves it takes, and their bits, those of the rule on the CPU.

The file is longer than others: what is tried in the interpreter is tried on a device, too.
"""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import executors
import pytest
import torch
from executors import bits, by_the_rule, strange
from recipes import RECIPES, Recipe
from trees import assert_equal
from tritons import (
    DTYPES,
    INTERPRETED,
    RATES,
    SHAPES,
    SIZE,
    cuda,
    interpreted,
    leaf,
    on_cuda,
    results,
    taken,
)

import functional_adamax as fa
from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.native import kernel as native_kernel
from functional_adamax._execution.program import machine
from functional_adamax._execution.triton import executor as triton
from functional_adamax.compat import Adamax

METHODS = (
    *("adamax", "adamax-maximize", "adamax-schedule", "adamaxw", "nadamax"),
    *("sgd", "sgd-momentum", "sgd-nesterov", "sgd-schedule", "adam", "adam-amsgrad", "adamw"),
    *("rmsprop", "rmsprop-centered", "lion", "adamax-float64-state"),
)


def assert_same(leaves: list[AdamaxLeaf], wanted: list[Any]) -> None:
    for x, want in zip(leaves, wanted, strict=True):
        for got, expected in zip(results(x), want, strict=True):
            assert torch.equal(bits(got.cpu()), bits(expected))


def on_cpu(x: AdamaxLeaf) -> AdamaxLeaf:
    return AdamaxLeaf(*(y.cpu() if isinstance(y, torch.Tensor) else y for y in x))


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    files = Path(__file__).parent.glob("test_triton_*.py")
    result = subprocess.run(
        [*command, "-o", "addopts=", *files],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@interpreted
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("on_device", [False, True], ids=["t at hand", "t on the device"])
def test_the_bits_of_the_rule(dtype: str, on_device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_is_at_hand", lambda t: not on_device)
    cases = itertools.product((0.0, 0.1), (False, True), (False, True))
    for (lr, t_type), (weight_decay, maximize, decoupled) in itertools.product(
        zip(RATES, [torch.float32, torch.float64] * 2, strict=True), cases
    ):
        b1, eps = (0.3, 0.0) if maximize else (0.9, 1e-8)
        leaves = [leaf(s, DTYPES[dtype], lr, weight_decay, t_type, b1=b1, eps=eps) for s in SHAPES]
        wanted = [by_the_rule(x, maximize, decoupled) for x in leaves]
        assert executors.triton(leaves, maximize, decoupled)
        for x, want in zip(leaves, wanted, strict=True):
            for name, got, expected in zip("pmut", results(x), want, strict=True):
                assert torch.equal(bits(got), bits(expected)), (name, lr, weight_decay, x.p.shape)


@interpreted
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("on_device", [False, True], ids=["t at hand", "t on the device"])
@pytest.mark.parametrize("recipe", [x for x in RECIPES if x.name in METHODS], ids=str)
def test_every_method_has_the_bits_of_its_rule(
    recipe: Recipe, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_kernel, "_native", None)  # which would take all on this device
    monkeypatch.setattr(machine, "_machine", None)
    monkeypatch.setattr(triton, "_is_at_hand", lambda t: not on_device)
    done: list[bool] = []
    write = triton.write
    monkeypatch.setattr(triton, "write", lambda x: done.append(write(x)) or done[-1])
    tx = recipe.default()
    params = [torch.randn(shape) for shape in ((), (3,), (5, SIZE - 1))]
    ours, theirs = ([x.clone() for x in params] for _ in range(2))
    state, their_state = tx.init(ours), tx.init(theirs)
    for _ in range(3):
        grads = [torch.randn_like(x) for x in params]
        theirs, their_state = fa.step(tx, grads, their_state, theirs)
        ours, state = fa.step(tx, grads, state, ours, donate=True)
    assert done == [True] * 3
    assert_equal((ours, state), (theirs, their_state))


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_many_tensors_of_several_kinds() -> None:
    kinds = itertools.cycle([(lr, d, k) for lr in (0.1, 3) for d in (0.0, 0.1) for k in DTYPES])
    leaves = [
        leaf((n % 7,), DTYPES[kind], lr, decay)
        for n, (lr, decay, kind) in zip(range(200), kinds, strict=False)
    ]
    wanted = [by_the_rule(x, True) for x in leaves]
    assert executors.triton(leaves, True, False)
    assert_same(leaves, wanted)


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_memory_that_is_not_aligned() -> None:
    """And of which only some blocks are whole."""
    wide = leaf((3 * SIZE + 1,))
    x = AdamaxLeaf(*(y[1:] for y in wide[:4]), *wide[4:])
    want = by_the_rule(x, False)
    before = wide.p[0].clone()
    assert executors.triton([x], False, False)
    assert_same([x], [want])
    assert torch.equal(wide.p[0], before)


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_what_it_takes() -> None:
    x = leaf((4, 3))
    odd = strange(x)
    for name in ("all in another order", "counter on its side", "gradient in half precision"):
        assert taken([odd.pop(name)]), name
    odd |= {
        "rate per element": x._replace(lr=torch.rand(4, 3)),
        "half rate": x._replace(lr=torch.tensor(0.1, dtype=torch.bfloat16)),
        "floor": x._replace(floor=0.1),
    }
    for name, y in odd.items():
        assert not taken([y]), name
    rates = {
        "tensor beta": x._replace(b1=torch.tensor(0.9)),
        "tensor decay": x._replace(weight_decay=torch.tensor(0.1)),
        "state in half precision": x._replace(m=x.m.half(), u=x.u.half()),
    }
    for name, y in rates.items():
        want = by_the_rule(y, False)
        assert executors.triton([y], False, False), name
        assert_same([y], [want])


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_a_write_is_seen_by_autograd() -> None:
    x = leaf((4, 3))
    versions = [y._version for y in (x.p, x.m, x.u)]
    assert executors.triton([x], False, False)
    assert [y._version for y in (x.p, x.m, x.u)] == [v + 1 for v in versions]
    assert x.t._version > 0


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_it_takes_what_no_form_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    write = triton.write
    monkeypatch.setattr(native_kernel, "_native", None)  # which would take all on this device

    def counted(leaves: Any) -> bool:
        counts.append(len(leaves))
        return write(leaves)

    monkeypatch.setattr(triton, "write", counted)
    for foreach in (None, True, False):
        leaves = [leaf((4, 3)), leaf((5,), (torch.complex64,) * 3), leaf((7,))]
        wanted = [by_the_rule(x, False) for x in leaves]
        executors.plan(leaves, False, False, foreach)()
        assert_same(leaves, wanted)
    assert counts == [2]


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_a_variable_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken([leaf((4, 3))])
    monkeypatch.setenv("FUNCTIONAL_ADAMAX_TRITON", "0")
    triton.available.cache_clear()
    assert not taken([leaf((4, 3))])


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_the_check_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_kernel, "_native", None)  # which would take all on this device
    monkeypatch.setattr(machine, "_machine", None)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    assert gpu.check(gpu.CHECKED[:-1]).endswith("10 methods 0 differ from the CPU's")


@cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_the_bits_of_the_rule_on_a_device(dtype: str, maximize: bool, decoupled: bool) -> None:
    for lr, weight_decay in itertools.product(RATES, (0.0, 0.1)):
        leaves = on_cuda(dtypes=DTYPES[dtype], lr=lr, weight_decay=weight_decay)
        if not isinstance(lr, torch.Tensor):
            leaves[::2] = [x._replace(t=x.t.cpu()) for x in leaves[::2]]
        wanted = [by_the_rule(on_cpu(x), maximize, decoupled) for x in leaves]
        assert executors.triton(leaves, maximize, decoupled)
        assert_same(leaves, wanted)


@cuda
@pytest.mark.parametrize("capturable", [False, True])
def test_the_class_uses_it_where_no_form_is_asked_for(
    capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[bool] = []
    write = triton.write
    monkeypatch.setattr(triton, "write", lambda *x: done.append(write(*x)) or done[-1])
    for foreach in (None, True, False):
        p = torch.nn.Parameter(torch.ones(3, device="cuda"))
        q = torch.nn.Parameter(torch.ones(3, device="cuda"))
        p.grad = q.grad = torch.tensor([1.0, -2.0, 0.0], device="cuda")
        options = {"lr": 0.1, "foreach": foreach, "capturable": capturable}
        ours, theirs = Adamax([p], **options), torch.optim.Adamax([q], **options)
        for _ in range(3):
            ours.step()
            theirs.step()
        torch.testing.assert_close(p, q)
    assert done == [True] * 3


@cuda
def test_nothing_waits_for_the_device() -> None:
    rates = (0.1, torch.tensor(0.1))
    groups = [on_cuda(lr=lr, weight_decay=decay) for lr in rates for decay in (0.0, 0.1)]
    groups += [[x._replace(t=x.t.cpu()) for x in on_cuda()]]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for leaves in groups * 2:
            assert executors.triton(leaves, True, True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
