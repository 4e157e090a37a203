"""The Triton executor: bits of the rule in Triton's interpreter, a bound of ulp on a device.

The interpreter is asked for before Triton is imported, so one test runs the interpreted ones in a
process of their own. There two functions stand in for what a device has: torch's fused
multiply-add, since the interpreter of some versions rounds twice, and Python's power.
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
from test_executors import bits, by_the_rule, copy, strange

from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.native import kernel as _kernel
from functional_adamax._execution.triton import executor as triton
from functional_adamax._execution.triton import kernel as _triton_kernel
from functional_adamax._execution.triton import table as _triton_table
from functional_adamax.compat import Adamax

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter")
cuda = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")

DTYPES = {
    "float32": (torch.float32,) * 3,
    "float64": (torch.float64,) * 3,
    "bfloat16": (torch.bfloat16, torch.bfloat16, torch.float32),
    "float16": (torch.float16, torch.float32, torch.float32),
}
SIZE = _triton_kernel.BLOCK
SHAPES = [(), (1,), (3,), (0, 4), (257, 3), (SIZE,), (SIZE + 1,), (5, SIZE - 1), (2, 4, 5, 6)]
SPECIAL = [0.0, -0.0, 1e-45, -1e-40, 1e-30, 1e30, torch.inf, -torch.inf, torch.nan, 1.0, -1.0]
RATES = [0.01, 3, torch.tensor(0.01), torch.tensor(0.01, dtype=torch.float64)]


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    result = subprocess.run(
        [*command, "-o", "addopts=", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


def leaf(
    shape: Any,
    dtypes: tuple[torch.dtype, ...] = DTYPES["float32"],
    lr: Any = 0.01,
    weight_decay: float = 0.0,
    t_type: torch.dtype = torch.float64,
    *,
    b1: float = 0.9,
    eps: float = 1e-8,
    device: str = "cpu",
) -> AdamaxLeaf:
    p, g, m, u = torch.randn(4, *shape, dtype=torch.float64)
    if g.numel() >= len(SPECIAL) ** 2:
        pairs = torch.tensor(list(itertools.product(SPECIAL, SPECIAL)), dtype=torch.float64)
        for x, column in ((g, 0), (m, 1), (u, 0), (p, 1)):
            start = len(pairs) if x is u or x is p else 0
            part = x.view(-1)[start : start + len(pairs)]
            part.copy_(pairs[: len(part), column])
    types = (*dtypes, dtypes[2])
    tensors = [x.to(y).to(device) for x, y in zip((p, g, m, u.abs()), types, strict=True)]
    if len(shape) == 4:
        tensors = [x.contiguous(memory_format=torch.channels_last) for x in tensors]
    t = torch.tensor(float(torch.randint(0, 3000, ())), dtype=t_type, device=device)
    lr = lr.to(device) if isinstance(lr, torch.Tensor) else lr
    return AdamaxLeaf(*tensors, t, lr, b1, 0.999, eps, weight_decay)


def results(x: AdamaxLeaf) -> tuple[torch.Tensor, ...]:
    return x.p, x.m, x.u, x.t


def interpreted_rule(x: AdamaxLeaf, maximize: bool, decoupled: bool = False) -> list[torch.Tensor]:
    """The rule, but the interpreter cuts float32 off to bfloat16 where a device rounds."""
    want = by_the_rule(x, maximize, decoupled)
    if x.p.dtype == torch.bfloat16:
        p = by_the_rule(x._replace(p=x.p.float()), maximize, decoupled)[0]
        want[0] = (p.contiguous().view(torch.int32) >> 16 << 16).view(torch.float32).bfloat16()
        want[0] = want[0].view(p.shape)
    return want


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
        if dtype == "bfloat16":  # its denormal numbers are zeros to the interpreter
            for x in (y for z in leaves for y in (z.p, z.g)):
                x.copy_(x.where(~(x.abs() < 1e-37), 0.0))
        assert all(triton.takes(x) for x in leaves)
        wanted = [interpreted_rule(x, maximize, decoupled) for x in leaves]
        assert executors.triton(leaves, maximize, decoupled)
        for x, want in zip(leaves, wanted, strict=True):
            for name, got, expected in zip("pmut", results(x), want, strict=True):
                assert torch.equal(bits(got), bits(expected)), (name, lr, weight_decay, x.p.shape)


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_many_tensors_of_several_kinds() -> None:
    kinds = itertools.cycle([(lr, d, k) for lr in (0.1, 3) for d in (0.0, 0.1) for k in DTYPES])
    leaves = [
        leaf((n % 7,), DTYPES[kind], lr, decay)
        for n, (lr, decay, kind) in zip(range(200), kinds, strict=False)
    ]
    wanted = [interpreted_rule(x, True) for x in leaves]
    assert executors.triton(leaves, True, False)
    for x, want in zip(leaves, wanted, strict=True):
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(results(x), want, strict=True))


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_memory_that_is_not_aligned() -> None:
    """And of which only some blocks are whole."""
    wide = leaf((3 * SIZE + 1,))
    x = AdamaxLeaf(*(y[1:] for y in wide[:4]), *wide[4:])
    want = by_the_rule(x, False)
    before = wide.p[0].clone()
    assert executors.triton([x], False, False)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(results(x), want, strict=True))
    assert torch.equal(wide.p[0], before)


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_what_it_takes() -> None:
    x = leaf((4, 3))
    odd = strange(x)
    for name in ("all in another order", "counter on its side", "gradient in half precision"):
        assert triton.takes(odd.pop(name)), name
    odd |= {
        "tensor beta": x._replace(b1=torch.tensor(0.9)),
        "tensor decay": x._replace(weight_decay=torch.tensor(0.1)),
        "rate per element": x._replace(lr=torch.rand(4, 3)),
        "half rate": x._replace(lr=torch.tensor(0.1, dtype=torch.bfloat16)),
        "state in half precision": x._replace(m=x.m.half(), u=x.u.half()),
        "gradient of a wider dtype": x._replace(g=x.g.double()),
        "floor": x._replace(floor=0.1),
    }
    for name, y in odd.items():
        assert not triton.takes(y), name


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
def test_shared_memory_is_left_alone() -> None:
    x, y = leaf((4, 3)), leaf((4, 3), weight_decay=0.1)
    for odd in (
        [x._replace(g=x.p)],
        [x._replace(u=x.m)],
        [x, y._replace(p=x.p)],
        [x, y._replace(t=x.t)],
        [x._replace(g=y.p), y],
    ):
        before = [copy(z) for z in odd]
        assert not executors.triton(odd, False, False)
        for z, old in zip(odd, before, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(z[:5], old[:5], strict=True))
    z = y._replace(g=x.p)
    assert executors.triton([x], False, False)  # each table is known, not both together
    assert executors.triton([z], False, False)
    assert not executors.triton([x, z], False, False)
    assert executors.triton([x, y._replace(g=x.g)], False, False)


WRONG = ("b1", "b2", "eps", "lr", "scale", "decay")


@interpreted
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("on_device", [False, True], ids=["t at hand", "t on the device"])
def test_a_kernel_that_does_not_match_stays_off(
    wrong: str, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = triton._launch

    def off(common: Any, *rest: Any) -> None:
        launch(common._replace(**{wrong: getattr(common, wrong) * (1 + 1e-5)}), *rest)

    monkeypatch.setattr(triton, "_is_at_hand", lambda t: not on_device)
    monkeypatch.setattr(triton, "_proven", {})
    monkeypatch.setattr(triton, "_launch", off)
    x = leaf((4, 3), weight_decay=0.1)
    before = copy(x)
    matters = wrong != ("scale" if on_device else "lr")
    assert executors.triton([x], False, False) != matters
    if matters:
        assert all(torch.equal(a, b) for a, b in zip(x[:5], before[:5], strict=True))
        monkeypatch.setattr(triton, "_launch", launch)
        assert not executors.triton([x], False, False), "once is enough"


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_a_kernel_that_raises_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(triton, "_proven", {})
    monkeypatch.setattr(triton, "_launch", broken)
    x = leaf((4, 3))
    want = by_the_rule(x, False)
    assert not executors.triton([x], False, False)
    executors.plan([x], False, False)()
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(results(x), want, strict=True))


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_nothing_is_proven_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_proven", {})
    common = triton._common(leaf((4, 3)), {})
    assert not triton._is_proven(common, False, capturing=True)
    assert triton._is_proven(common, False, capturing=False)
    assert triton._is_proven(common, False, capturing=True)


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_it_takes_what_no_form_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    write = triton.write
    monkeypatch.setattr(_kernel, "_native", None)  # which would take all on this device

    def counted(leaves: Any) -> bool:
        taken.append(len(leaves))
        return write(leaves)

    monkeypatch.setattr(triton, "write", counted)
    for foreach in (None, True, False):
        leaves = [leaf((4, 3)), leaf((5,), (torch.complex64,) * 3), leaf((7,))]
        wanted = [by_the_rule(x, False) for x in leaves]
        executors.plan(leaves, False, False, foreach)()
        for x, want in zip(leaves, wanted, strict=True):
            assert all(torch.equal(bits(a), bits(b)) for a, b in zip(results(x), want, strict=True))
    assert taken == [2]


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_a_variable_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton.takes(leaf((4, 3)))
    monkeypatch.setenv("FUNCTIONAL_ADAMAX_TRITON", "0")
    triton.available.cache_clear()
    assert not triton.takes(leaf((4, 3)))


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_the_check_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    assert "of the numbers equal the rule's" in gpu.check(gpu.CHECKED[:-1])


def test_it_knows_whether_it_is_interpreted() -> None:
    assert _triton_kernel.is_interpreted() == INTERPRETED


@pytest.mark.skipif(INTERPRETED, reason="needs Triton's compiler")
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_compiles(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed for that. Division is by IEEE, and denormal numbers stay."""
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    count, step = _triton_kernel.compiled()
    p, g, m = map(_triton_kernel.named, DTYPES[dtype])
    table = {"table": "*i64", "scales": "*fp64", "n": "i32"}
    of_step = dict.fromkeys(("scale", "decay", "w", "b2", "eps"), "fp64") | {"blocks": "*i64"}
    of_count = dict.fromkeys(("lr", "b1", "weight_decay"), "fp64")
    kinds = {"p_type": p, "g_type": g, "m_type": m, "size": SIZE}
    forms = [
        (step, of_step, kinds | {"decays": decays, "counted": decays != 0, "maximize": decays == 1})
        for decays in range(3)
    ]
    for lr_type, decoupled in ((None, False), (m, True)):
        kinds = {"t_type": m, "lr_type": lr_type, "decoupled": decoupled, "leaves": 128}
        forms.append((count, of_count, kinds))
    for kernel, numbers, constants in forms:
        types = table | numbers | dict.fromkeys(constants, "constexpr")
        signature = {name: types[name] for name in kernel.arg_names}
        places = {(kernel.arg_names.index(name),): x for name, x in constants.items()}
        source = compiler.ASTSource(kernel, signature, places)
        target = GPUTarget("cuda", 80, 32)
        made = compiler.compile(source, target=target, options=_triton_kernel.OPTIONS)
        assert made.asm["cubin"]
        if kernel is step:
            assert "approx" not in made.asm["ptx"]
            assert "ftz" not in made.asm["ptx"]


def on_cuda(**kinds: Any) -> list[AdamaxLeaf]:
    return [leaf(shape, device="cuda", **kinds) for shape in SHAPES]


def assert_near(leaves: list[AdamaxLeaf], wanted: list[Any]) -> None:
    """m and u to 1 ulp of the larger of their terms, p to 2; half parameters to 1 of their own."""
    for x, want in zip(leaves, wanted, strict=True):
        assert torch.equal(x.t, want[3])
        old = [y.abs().double().nan_to_num(0, 0, 0) for y in (x.g, x.p, *want[:3])]
        size = torch.stack([*old, torch.ones_like(old[0])]).amax(0)
        for got, expected, ulp in zip(results(x), want[:3], (2, 1, 1), strict=False):
            error = (got.double() - expected.double()).abs()
            fine = error <= ulp * torch.finfo(got.dtype).eps * size
            fine |= (got == expected) | (got.isnan() & expected.isnan())
            assert fine.all(), error[~fine]


@cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_near_the_rule_on_a_device(dtype: str, maximize: bool, decoupled: bool) -> None:
    for lr, weight_decay in itertools.product(RATES, (0.0, 0.1)):
        leaves = on_cuda(dtypes=DTYPES[dtype], lr=lr, weight_decay=weight_decay)
        if not isinstance(lr, torch.Tensor):
            leaves[::2] = [x._replace(t=x.t.cpu()) for x in leaves[::2]]
        assert all(triton.takes(x) for x in leaves)
        wanted = [by_the_rule(x, maximize, decoupled) for x in leaves]
        assert executors.triton(leaves, maximize, decoupled)
        assert_near(leaves, wanted)


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
            assert all(triton.takes(x) for x in leaves)
            assert executors.triton(leaves, True, True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cuda
def test_a_graph_replays_the_step() -> None:
    """With other gradients than it was warmed up with, as in a graph of the whole training step."""
    lr = torch.tensor(0.1, device="cuda")
    leaves = [x._replace(lr=lr) for x in on_cuda(weight_decay=0.1)]
    eager = [copy(x)._replace(lr=0.0) for x in leaves]
    assert executors.triton([copy(x)._replace(lr=lr) for x in leaves], False, False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grads = [x.g * 0.5 for x in leaves]
        assert executors.triton(
            [x._replace(g=g) for x, g in zip(leaves, grads, strict=True)], False, False
        )
    for x, y in zip(leaves, eager, strict=True):  # a capture runs nothing
        assert torch.equal(bits(x.p), bits(y.p))
    _triton_table._tables.clear()
    for i in range(10):
        lr.fill_(0.1 / (i + 1))
        graph.replay()
        rate = lr.clone()
        assert executors.triton([x._replace(lr=rate, g=x.g * 0.5) for x in eager], False, False)
    for x, y in zip(leaves, eager, strict=True):
        for got, expected in zip(results(x), results(y), strict=True):
            assert torch.equal(bits(got), bits(expected))


@cuda
def test_a_graph_without_a_step_before_is_refused() -> None:
    x = leaf((4, 3), device="cuda")
    assert executors.triton([x], False, False)
    at_hand = x._replace(t=x.t.cpu())
    _triton_table._spares.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.p.add_(0)
        assert not executors.triton([x], False, False)
        assert not executors.triton([at_hand], False, False)


@cuda
def test_the_tables_kept_are_few() -> None:
    for _ in range(2 * _triton_table._LIMIT):
        assert executors.triton([leaf((3,), device="cuda")], False, False)
    assert len(_triton_table._tables) <= _triton_table._LIMIT
