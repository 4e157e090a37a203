"""The native kernel and memory: misaligned, exhausted, exchanged by another thread, interrupted.

Whatever happens, it has written nothing, or all, with version counters that say so. The file is
longer than others: each failure meets each way into the kernel.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count as natural
from typing import Any

import executors
import pytest
import torch
from torch import Tensor, nn

import functional_adamax as fa
from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.native import kernel
from functional_adamax._execution.native.kernel import Group
from functional_adamax.compat import Adamax

pytestmark = pytest.mark.skipif(kernel._native is None, reason="built without a compiler")

RATES = (0.1, 0.9, 0.999, 1e-8, 0.0)
COUNT = 3  # leaves
Case = tuple[Callable[[], Any], list[Tensor]]


@pytest.fixture(autouse=True)
def proven() -> None:
    assert kernel.is_active(torch.float32, torch.float32, 0)


def columns(elements: int = 5) -> list[list[Tensor]]:
    """p, g, m, u and t of some leaves."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(4, COUNT, elements, generator=generator)
    tensors = [[x.clone() for x in column] for column in values]
    return [*tensors, [torch.tensor(3.0) for _ in range(COUNT)]]


def leaves_of(x: list[list[Tensor]]) -> list[AdamaxLeaf]:
    return [AdamaxLeaf(*row, *RATES, None) for row in zip(*x, strict=True)]


def advance(elements: int = 5) -> Case:
    p, g, m, u, t = x = columns(elements)
    params = [nn.Parameter(y) for y in p]
    state = {}
    for i, y in enumerate(params):
        y.grad = g[i]
        state[y] = {"step": t[i], "exp_avg": m[i], "exp_inf": u[i]}
    group = Group(params, *RATES, maximize=False, decoupled=False)
    inputs = [*params, *(y for column in x[1:] for y in column)]
    return partial(kernel.advance, [group], state, []), inputs


def overwrite(elements: int = 5) -> Case:
    p, *rest = x = columns(elements)
    group = Group(p, *RATES, maximize=False, decoupled=False)
    return partial(kernel.overwritten, group, tuple(rest)), [y for column in x for y in column]


def write(elements: int = 5) -> Case:
    x = columns(elements)
    inputs = [y for column in x for y in column]
    return partial(executors.write, leaves_of(x), False, False), inputs


def step(elements: int = 5) -> Case:
    x = columns(elements)
    inputs = [y for column in x for y in column]
    return partial(kernel.step, leaves_of(x), add=True), inputs


def stepped(elements: int = 5) -> Case:
    x = columns(elements)
    group = Group(x[0], *RATES, maximize=False, decoupled=False)
    inputs = [y for column in x for y in column]
    return partial(kernel.stepped, group, tuple(x), True), inputs


IN_PLACE = [advance, overwrite, write]
PURE = [step, stepped]
LONG = 2**19  # elements of a leaf, from which on a step of three releases the GIL


def noted(tensors: list[Tensor]) -> list[tuple[Tensor, int]]:
    return [(x.detach().clone(), x._version) for x in tensors]


def assert_untouched(tensors: list[Tensor], before: list[tuple[Tensor, int]]) -> None:
    for x, (values, version) in zip(tensors, before, strict=True):
        assert torch.equal(x.detach(), values)
        assert x._version == version


@pytest.fixture
def failures() -> Iterator[Callable[[int], int]]:
    yield kernel._native.fail_allocation
    kernel._native.fail_allocation(0)


@pytest.mark.parametrize("elements", [5, LONG], ids=["short", "long"])
@pytest.mark.parametrize("make", IN_PLACE + PURE)
def test_out_of_memory_at_any_allocation_leaves_all_as_it_was(
    make: Any, elements: int, failures: Callable[[int], int]
) -> None:
    call, inputs = make(elements)
    before = noted(inputs)
    for k in natural(1):
        failures(k)
        try:
            answer = call()
        except MemoryError:
            assert failures(0) == 0
            assert_untouched(inputs, before)
            continue
        assert failures(0) > 0, "the allocation that was to fail failed in silence"
        break
    assert answer
    assert k > (COUNT if make in PURE else 3), "as many allocations failed"
    if make in PURE:
        assert_untouched(inputs, before)
    else:
        wanted, others = make(elements)
        wanted()
        assert all(torch.equal(a, b) for a, b in zip(inputs, others, strict=True))


@pytest.mark.parametrize("elements", [5, LONG], ids=["short", "long"])
@pytest.mark.parametrize("make", IN_PLACE)
def test_versions_are_counted_once_and_before_the_write(
    make: Any, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, inputs = make(elements)
    before = noted(inputs)
    seen = []

    def interrupted(tensors: list[Tensor]) -> None:
        seen.append(len(tensors))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(kernel, "_increment", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call()
    assert seen == [4 * COUNT]
    assert_untouched(inputs, before)
    assert call()
    grads = inputs[COUNT : 2 * COUNT]
    for x, (values, version) in zip(inputs, before, strict=True):
        written = not any(x is g for g in grads)
        assert x._version == version + written
        assert torch.equal(x.detach(), values) != written


@pytest.mark.parametrize("make", IN_PLACE)
def test_versions_are_counted_by_the_public_function_too(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch has no function in C for it."""
    monkeypatch.setattr(kernel, "_increment", torch.autograd.graph.increment_version)
    call, inputs = make()
    before = [x._version for x in inputs]
    assert call()
    grads = range(COUNT, 2 * COUNT)
    assert [x._version for x in inputs] == [v + (i not in grads) for i, v in enumerate(before)]


@pytest.mark.parametrize("make", IN_PLACE)
def test_a_plan_that_does_not_fit_counts_no_version(make: Any) -> None:
    call, inputs = make()
    inputs[-COUNT - 1].set_(inputs[-COUNT - 2])  # the moments of two leaves are one memory
    before = noted(inputs)
    assert not call()
    assert_untouched(inputs, before)


@pytest.mark.parametrize("make", IN_PLACE)
@pytest.mark.parametrize("which", range(4), ids=["p", "g", "m", "u"])
@pytest.mark.parametrize("elements", [5, LONG], ids=["short", "long"])
def test_memory_exchanged_while_versions_are_counted_is_not_written(
    make: Any, which: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another thread may do it; a long step that holds aliases writes to what it planned."""
    call, inputs = make(elements)
    x = inputs[which * COUNT]
    others = [y for y in inputs if y is not x]
    before, new = noted(others), torch.full_like(x, 7.0)

    def exchanged(tensors: list[Tensor]) -> None:
        x.data = new.clone()

    monkeypatch.setattr(kernel, "_increment", exchanged)
    answer = call()
    assert torch.equal(x.detach(), new)
    if elements == LONG:
        assert answer
    else:
        assert not answer
        assert_untouched(others, before)


RACE = """
import sys, threading, torch
from functional_adamax.compat import Adamax
size, count = map(int, sys.argv[1:])
def race(what):
    params = [torch.nn.Parameter(torch.randn(size)) for _ in range(3)]
    optimizer = Adamax(params, lr=0.01)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    done, taken = threading.Event(), []
    def steps():
        for _ in range(count):
            try:
                optimizer.step()
            except (KeyError, RuntimeError):
                pass
            taken.append(bool(optimizer._written))
    def swap():
        i = 0
        while not done.is_set():
            i += 1
            p = params[i % 3]
            if what == "data":
                p.data = torch.randn(size)
            elif what == "grad":
                p.grad = torch.randn(size)
            elif what == "statedict":
                optimizer.state.pop(p, None)
            else:
                optimizer.param_groups[0]["params"].append(p)
                optimizer.param_groups[0]["params"].pop()
    threads = [threading.Thread(target=steps) for _ in range(2)]
    swapper = threading.Thread(target=swap)
    for t in (*threads, swapper):
        t.start()
    for t in threads:
        t.join()
    done.set()
    swapper.join()
    assert any(taken), what
for what in ("data", "grad", "statedict", "list"):
    race(what)
print("alive")
"""


@pytest.mark.parametrize(("size", "count"), [(100003, 100), (600011, 20)], ids=["short", "long"])
def test_another_thread_may_exchange_what_is_stepped(size: int, count: int) -> None:
    """Parameters' memory, gradients, the state, the list of parameters."""
    command = [sys.executable, "-c", RACE, str(size), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\n"


def misaligned(x: Tensor) -> Tensor:
    """The values of ``x``, from an odd address on."""
    y = torch.frombuffer(bytearray(1 + x.nbytes), dtype=x.dtype, offset=1).view(x.shape)
    assert y.data_ptr() % 2 == 1
    return y.copy_(x.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["p", "grad", "exp_avg", "exp_inf"])
def test_misaligned_memory_is_left_to_torch(name: str, dtype: torch.dtype) -> None:
    def run(cls: Any, odd: bool) -> tuple[list[Tensor], Any]:
        p = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]).to(dtype))
        optimizer = cls([p], lr=0.1)
        for i in range(5):
            p.grad = torch.tensor([1.0, 0.5, -2.0]).to(dtype) * (i + 1)
            x = {"p": p, "grad": p.grad, **optimizer.state[p]}.get(name)
            if odd and i == 3:
                assert optimizer._written
            if odd and i >= 3:
                assert x is not None
                x.data = misaligned(x)
            optimizer.step()
        return [p.detach(), *optimizer.state[p].values()], optimizer

    found, ours = run(Adamax, odd=True)
    wanted, _ = run(torch.optim.Adamax, odd=False)
    assert not ours._written, "the kernel left the step to torch"
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("place", range(5), ids=["p", "g", "m", "u", "t"])
def test_no_way_into_the_kernel_takes_misaligned_memory(place: int) -> None:
    x = columns()
    x[place][1] = misaligned(x[place][1])
    p, *rest = x
    group = Group(p, *RATES, maximize=False, decoupled=False)
    assert kernel.stepped(group, tuple(x), True) is None
    assert executors.ready(leaves_of(x), False, False) is None
    assert not executors.write(leaves_of(x), False, False)
    assert not kernel.overwritten(group, tuple(rest))
    found = fa.step(fa.adamax(0.1), rest[0], fa.AdamaxState(rest[3], rest[1], rest[2]), p)
    x[place][1] = x[place][1].clone()
    p, *rest = x
    wanted = fa.step(fa.adamax(0.1), rest[0], fa.AdamaxState(rest[3], rest[1], rest[2]), p)
    for a, b in zip(found[0], wanted[0], strict=True):
        assert torch.equal(a, b)


def test_a_misaligned_rate_is_left_to_the_rule() -> None:
    rate = misaligned(torch.tensor(0.1))
    leaves = [leaf._replace(lr=rate) for leaf in leaves_of(columns())]
    assert executors.ready(leaves, False, False) is None
