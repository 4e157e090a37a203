"""Every executor has the bits of the rule, in every dtype it takes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import Any

import executors
import pytest
import torch
from trees import DTYPES

import functional_adamax as fa
from functional_adamax._core import numerics
from functional_adamax._execution import foreach as _foreach
from functional_adamax._execution import inplace
from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.native import kernel
from functional_adamax._execution.triton import executor as triton
from functional_adamax.compat import Adamax

HALF = (torch.bfloat16, torch.float16)
SHAPES = [(), (1,), (3,), (0, 4), (257, 3), (1023,), (64, 129)]
SPECIAL = [0.0, -0.0, 1e-45, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"), 1.0, -1.0]


def leaf(shape: Any, dtype: torch.dtype, lr: Any, weight_decay: float, special: bool) -> AdamaxLeaf:
    p, g, m = (torch.randn(shape, dtype=dtype) for _ in range(3))
    u = torch.complex(*torch.rand(2, *shape)) if dtype.is_complex else torch.rand(shape)
    if special and g.numel() >= len(SPECIAL):
        g.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL).to(dtype)
        m.view(-1)[2 : len(SPECIAL)] = torch.tensor(SPECIAL[2:]).to(dtype)
    t = torch.tensor(float(torch.randint(0, 3000, ())), dtype=torch.float64)
    return AdamaxLeaf(p, g, m, u.to(dtype), t, lr, 0.9, 0.999, 1e-8, weight_decay)


def by_the_rule(leaf: AdamaxLeaf, maximize: bool, decoupled: bool = False) -> list[torch.Tensor]:
    update, t, m, u = executors.rule_step(leaf, maximize, decoupled)
    return [numerics.add(leaf.p, update), m, u, t]


def bits(x: torch.Tensor) -> torch.Tensor:
    x = torch.view_as_real(x) if x.is_complex() else x
    x = x.contiguous()
    return torch.where(x.isnan(), torch.full_like(x, float("nan")), x).view(
        {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    )


WRITERS = {
    "native": (kernel, ("_run", "overwritten", "advance")),
    "torch": (inplace, ("_write",)),
    "foreach": (_foreach, ("_run",)),
    "triton": (triton, ("write",)),
}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The executors that write, in the order in which they do."""
    names: list[str] = []

    def noted(name: str, write: Any) -> Any:
        def run(given: Any, *more: Any) -> Any:
            answer = write(given, *more)
            if given if name in ("torch", "foreach") else answer:  # the others say if they did
                names.append(name)
            return answer

        return run

    for name, (module, functions) in WRITERS.items():
        for function in functions:
            monkeypatch.setattr(module, function, noted(name, getattr(module, function)))
    return names


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


def takes(
    value: torch.dtype, moment: torch.dtype, weight_decay: float, lr: Any, maximize: bool
) -> bool:
    """Whether the kernel is to take such leaves."""
    if isinstance(lr, torch.Tensor) and not lr.is_floating_point():
        return False
    if value.is_complex or (value in HALF and moment == value):
        return not weight_decay and not (value.is_complex and maximize)
    return True


def copy(leaf: AdamaxLeaf) -> AdamaxLeaf:
    return AdamaxLeaf(*(x.clone() if isinstance(x, torch.Tensor) else x for x in leaf))


needs_kernel = pytest.mark.skipif(
    kernel._native is None, reason="the native kernel is not built, or switched off"
)
RATES = (0.01, 3, torch.tensor(0.01), torch.tensor(0.01, dtype=torch.float64), torch.tensor(1))
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
    for lr, weight_decay, maximize in itertools.product(RATES, decays, (False, True)):
        leaves = [leaf(shape, dtype, lr, weight_decay, special) for shape in SHAPES]
        wanted = [by_the_rule(x, maximize) for x in leaves]
        assert all(inplace.takes(x) for x in leaves)
        if executor == "kernel":
            taken = executors.ready(leaves, maximize, False)
            if not takes(dtype, dtype, weight_decay, lr, maximize):
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


def test_foreach_groups_what_differs(ran: list[str]) -> None:
    leaves = [
        leaf((5,), dtype, 0.1, weight_decay, False)._replace(b1=b1)
        for dtype in (torch.float32, torch.float64)
        for weight_decay in (0.0, 0.1)
        for b1 in (0.5, 0.9)
    ]
    leaves[0] = leaves[0]._replace(t=torch.tensor(3.0))  # a float32 counter among float64 ones
    wanted = [by_the_rule(x, False) for x in leaves]
    executors.plan(leaves, False, False, foreach=True)()
    assert ran == ["foreach"]
    for x, want in zip(leaves, wanted, strict=True):
        for got, expected in zip((x.p, x.m, x.u, x.t), want, strict=True):
            assert torch.equal(got, expected)


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


@pytest.mark.parametrize("foreach", [False, True])
def test_torchs_operations_have_no_decoupled_decay(foreach: bool) -> None:
    x = leaf((4, 3), torch.float32, 0.1, 0.1, False)
    assert inplace.takes(x)
    assert not inplace.takes(x._replace(decoupled=True))
    want = by_the_rule(copy(x), True, decoupled=True)
    executors.plan([x], True, decoupled=True, foreach=foreach)()
    for got, expected in zip((x.p, x.m, x.u, x.t), want, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["t", "lr"])
def test_torchs_operations_wait_for_no_device(name: str) -> None:
    x = leaf((4, 3), torch.float32, torch.tensor(0.1), 0.1, False)
    assert inplace.takes(x)
    elsewhere = x._replace(**{name: getattr(x, name).to("meta")})
    assert not inplace.takes(elsewhere)


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


@needs_kernel
@pytest.mark.parametrize("kind", kernel._KINDS, ids=str)
@pytest.mark.parametrize("special", [False, True], ids=["ordinary", "special"])
@pytest.mark.parametrize("add", [False, True], ids=["update", "parameter"])
def test_the_kernel_has_the_bits_of_the_rule(kind: Any, special: bool, add: bool) -> None:
    value, moment = kind
    for lr, decay, b1, maximize, decoupled in itertools.product(
        RATES, (0.0, 0.1, 2), (0.0, 0.3, 0.5, 0.9), (False, True), (False, True)
    ):
        leaves = [leaf(shape, value, lr, decay, special)._replace(b1=b1) for shape in SHAPES]
        leaves = [x._replace(m=x.m.to(moment), u=x.u.to(moment)) for x in leaves]
        before = [copy(x) for x in leaves]
        taken = executors.ready(leaves, maximize, decoupled)
        coupled = 0.0 if decoupled and not value.is_complex else decay
        if b1 == 0 or not takes(value, moment, coupled, lr, maximize):  # with 0, zeros of any sign
            assert taken is None
            continue
        assert taken
        results = executors.compute(leaves, maximize, decoupled, add)
        for x, old, result in zip(leaves, before, results, strict=True):
            update, *state = executors.rule_step(x, maximize, decoupled)
            wanted = [numerics.add(x.p, update) if add else update, *state]
            assert all(torch.equal(bits(a), bits(b)) for a, b in zip(result, wanted, strict=True))
            assert all(torch.equal(bits(a), bits(b)) for a, b in zip(x[:5], old[:5], strict=True))


def any_bits(n: int, dtype: torch.dtype) -> torch.Tensor:
    """Elements of random bits: of all magnitudes, and in halves all that there are."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    most = torch.iinfo(integer)
    return torch.randint(most.min, most.max, (n,), dtype=integer).view(dtype)


@needs_kernel
@pytest.mark.parametrize("kind", [k for k in kernel._KINDS if not k[0].is_complex], ids=str)
@pytest.mark.parametrize("decoupled", [False, True])
def test_any_bits_in_tensors_larger_than_a_block(kind: Any, decoupled: bool) -> None:
    value, moment = kind
    n = 3 * 2**16 + 1000
    p, g = (any_bits(n, value) for _ in range(2))
    m, u = (any_bits(n, moment) for _ in range(2))
    rates = (0.01, 0.9, 0.999, 1e-8, 0.1 if decoupled else 0.0)
    x = AdamaxLeaf(p, g, m, u.abs(), torch.tensor(3.0, dtype=torch.float64), *rates)
    want = by_the_rule(x, False, decoupled)
    assert executors.write(executors.ready([x], False, decoupled) or [], False, decoupled)
    for got, expected in zip((x.p, x.m, x.u, x.t), want, strict=True):
        assert torch.equal(bits(got), bits(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zeros_for_large_moments(dtype: torch.dtype) -> None:
    p = torch.randn(1024, 1025, dtype=dtype).t()
    full = torch.full_like(p, 7.0)  # memory that may be used again, and is not zero
    del full
    zeros = kernel.zeros_like(p, torch.float32)
    assert (zeros.dtype, zeros.shape, zeros.stride()) == (torch.float32, p.shape, p.stride())
    assert not zeros.any()


@needs_kernel
@pytest.mark.parametrize("kind", kernel._KINDS, ids=str)
@pytest.mark.parametrize("rate_dtype", [torch.float32, torch.float64], ids=str)
def test_hyperparameters_that_are_tensors(kind: Any, rate_dtype: torch.dtype) -> None:
    value, moment = kind
    names = ("lr", "b1", "b2", "eps", "weight_decay")
    for chosen in itertools.product((False, True), repeat=5):
        for decoupled, b1 in itertools.product((False, True), (0.9, 0.3, 0.0)):
            x = leaf((257, 3), value, 0.01, 0.1, True)
            x = x._replace(m=x.m.to(moment), u=x.u.to(moment), b1=b1)
            for name, yes in zip(names, chosen, strict=True):
                if yes:
                    number = torch.tensor(getattr(x, name), dtype=rate_dtype)
                    x = x._replace(**{name: number})
            taken = executors.ready([x], False, decoupled)
            refused = value.is_complex or (value in HALF and moment == value and not decoupled)
            if refused or b1 == 0:
                assert taken is None
                continue
            assert taken
            update, *state = executors.rule_step(x, False, decoupled)
            (row,) = kernel.step(taken, add=True)
            for got, want in zip(row[:4], [numerics.add(x.p, update), *state], strict=True):
                assert torch.equal(bits(got), bits(want)), (chosen, decoupled, b1)


def strange(x: AdamaxLeaf) -> dict[str, AdamaxLeaf]:
    """Leaves whose tensors are not plain memory in one order."""
    wide = {name: torch.stack([getattr(x, name)] * 2, -1) for name in ("p", "g", "m", "u")}
    turned = {name: getattr(x, name).t().contiguous().t() for name in ("p", "g", "m", "u")}
    return {
        "gradient in another order": x._replace(g=turned["g"]),
        "all in another order": x._replace(**turned),
        "moments in another order": x._replace(m=turned["m"], u=turned["u"]),
        "every other element": x._replace(**{k: v[..., 0] for k, v in wide.items()}),
        "one gradient for all": x._replace(g=x.g[:1, :1].expand(4, 3)),
        "negative view": x._replace(p=torch._neg_view(x.p)),
        "gradient in half precision": x._replace(g=x.g.bfloat16()),
        "counter on its side": x._replace(t=torch.stack([x.t, x.t])[1]),
        "half counter": x._replace(t=x.t.bfloat16()),
        "subclass": x._replace(p=Sub(x.p)),
    }


class Sub(torch.Tensor):
    @staticmethod
    def __new__(cls, x: torch.Tensor) -> Sub:
        return torch.Tensor._make_subclass(cls, x)


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


@needs_kernel
@pytest.mark.parametrize("decoupled", [False, True], ids=["coupled", "decoupled"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_large_leaf_is_shared_among_threads(threads: int, decoupled: bool) -> None:
    x = leaf((700, 901), torch.float32, 0.1, 0.1, False)
    leaves = [x, leaf((3,), torch.float64, 0.1, 0.1, False), leaf((), torch.float32, 0.1, 0, False)]
    wanted = [by_the_rule(copy(x), True, decoupled) for x in leaves]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pure = executors.compute(leaves, True, decoupled, add=True)
        executors.plan(leaves, True, decoupled)()
    finally:
        torch.set_num_threads(before)
    for x, row, want in zip(leaves, pure, wanted, strict=True):
        for got, expected in zip((x.p, x.m, x.u, x.t), want, strict=True):
            assert torch.equal(got, expected)
        for got, expected in zip((row[0], row[2], row[3], row[1]), want, strict=True):
            assert torch.equal(got, expected)


@needs_kernel
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_fork_after_threads_does_not_wait_for_them() -> None:
    code = """
import os, signal, torch
import functional_adamax as fa
torch.set_num_threads(4)
tx, p, g = fa.adamax(), *torch.ones(2, 1 << 20)
state = tx.init(p)
for _ in range(2):
    fa.step(tx, g, state, p, donate=True)
if (child := os.fork()) == 0:
    signal.alarm(20)
    _, (t, *_) = fa.step(tx, g, state, p, donate=True)
    os._exit(int(t != 3))
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@needs_kernel
def test_a_write_is_seen_by_autograd() -> None:
    x = leaf((4, 3), torch.float32, 0.1, 0.0, False)
    versions = [y._version for y in (x.p, x.m, x.u, x.t)]
    w = torch.randn(3, requires_grad=True)
    product = x.p @ w
    assert executors.write([x], False, False)
    assert [y._version for y in (x.p, x.m, x.u, x.t)] == [v + 1 for v in versions]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@needs_kernel
@pytest.mark.parametrize("aliased", [("g", "p"), ("m", "g"), ("u", "m")])
def test_shared_memory_goes_by_torchs_operations(aliased: tuple[str, str]) -> None:
    x = leaf((4, 3), torch.float32, 0.1, 0.0, False)
    x = x._replace(**{aliased[0]: getattr(x, aliased[1])})
    assert not executors.write([x], False, False)
    twin = copy(x)
    twin = twin._replace(**{aliased[0]: getattr(twin, aliased[1])})
    executors.plan([x], False, False)()
    executors.inplace([twin], False)
    for got, wanted in zip((x.p, x.m, x.u, x.t), (twin.p, twin.m, twin.u, twin.t), strict=True):
        assert torch.equal(got, wanted)


@needs_kernel
def test_memory_shared_between_leaves_goes_by_torchs_operations() -> None:
    x, y = (leaf((4, 3), torch.float32, 0.1, 0.0, False) for _ in range(2))
    for odd in (
        [x, y._replace(p=x.p)],
        [x._replace(g=y.p), y._replace(g=x.p)],
        [x, y._replace(t=x.t)],
        [x, y._replace(m=x.m)],
        [x, y._replace(u=x.p)],
    ):
        before = [copy(z) for z in odd]
        assert not executors.write(odd, False, False)
        for z, old in zip(odd, before, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(z[:5], old[:5], strict=True))
    assert executors.write([x, y._replace(g=x.g)], False, False)


@needs_kernel
def test_pure_steps_are_the_kernels_together_or_leaf_by_leaf(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = []

    def noted(leaves: list[AdamaxLeaf], **options: Any) -> Any:
        counts.append(len(leaves))
        return step(leaves, **options)

    x, y = (leaf((4, 3), torch.float32, 0.1, 0.1, False) for _ in range(2))
    assert executors.ready([x, y], False, False)  # proven, which takes steps too
    step = kernel.step
    monkeypatch.setattr(kernel, "step", noted)
    for leaves in ([x, y._replace(lr=0.2)], [x, y._replace(lr=torch.rand(4, 3))]):
        executors.compute(leaves, False, False, add=True)
    assert counts == [2, 1]


@needs_kernel
def test_the_kernel_takes_ordinary_leaves() -> None:
    """So that the tests above do not compare the rule with itself."""
    for dtype in (torch.float32, torch.float64):
        assert all(kernel.is_active(dtype, dtype, mode) for mode in range(3))
        x = leaf((4, 3), dtype, 0.1, 0.1, False)
        assert executors.ready([x, x._replace(lr=torch.tensor(0.1))], False, False)
        assert executors.ready([x, x._replace(b1=torch.tensor(0.9))], False, False)
        assert not executors.ready([x, x._replace(lr=torch.rand(4, 3))], False, False)
        assert not executors.ready([x, x._replace(lr=torch.tensor(1))], False, False)
        assert not executors.ready([x, x._replace(floor=1e-3)], False, False)
        taken = {name for name, odd in strange(x).items() if executors.ready([odd], False, False)}
        expected = {"gradient in another order", "all in another order", "one gradient for all"}
        assert taken == expected | {"counter on its side"}


@needs_kernel
def test_a_kernel_that_differs_in_one_bit_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_in_m(*args: Any, **kwargs: Any) -> Any:
        rows = step(*args, **kwargs)
        last = rows[0][2].view(-1)[-1:]
        last.copy_(torch.nextafter(last, torch.tensor(torch.inf)))
        return rows

    def wrong_in_a_sign(pulls: Any) -> Any:
        ((by_g, by_m, by_u),) = pull(pulls)
        return [(by_g, by_m, torch.where(by_u == 0, -by_u, by_u))]

    def holds() -> bool:
        kernel.is_active.cache_clear()
        return kernel.is_active(torch.float32, torch.float32, 1)

    step, pull = kernel.step, kernel.pull
    for name, wrong in (("step", wrong_in_m), ("pull", wrong_in_a_sign)):
        assert holds()
        monkeypatch.setattr(kernel, name, wrong)
        assert not holds()
        monkeypatch.undo()
    assert holds()


def test_scale_is_the_same_number_in_both_spellings() -> None:
    """``lr / (1 - b1^t)`` as Python computes it and as a float64 tensor does, at many t."""
    for b1 in (0.0, 0.3, 0.9, 0.95, 0.999, 0.9999999):
        for t in (*range(1, 300), 1000, 12345, 10**6):
            for lr in (0.002, 1e-8, torch.tensor(0.002), torch.tensor(0.002).bfloat16()):
                step = torch.tensor(float(t), dtype=torch.float64)
                assert inplace.scale(lr, b1, step) == numerics.bias_corrected(lr, b1, step).item()


POOL = """
import os, torch, functional_adamax as fa
torch.set_num_threads(8)
tx, x = fa.adamax(0.1), torch.randn(1_000_000)
p = g = torch.randn(100_000)
state = tx.init(p)
threads = lambda: set(os.listdir("/proc/self/task"))
for _ in range(2):
    fa.step(tx, g, state, p), x + x
before = threads()
fa.step(tx, g, state, p), x + x
assert threads() == before
"""


@needs_kernel
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_the_threads_of_torch_live_on() -> None:
    subprocess.run([sys.executable, "-c", POOL], check=True)
