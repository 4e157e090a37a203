"""Programs over halves, and over several dtypes, have the bits of the rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import optree
import pytest
import torch
from recorded_rules import method, plain, reason
from torch import Tensor

import functional_adamax as fa
from functional_adamax._core import plans
from functional_adamax._execution.native import kernel
from functional_adamax._execution.program import machine, proof, whole
from functional_adamax._execution.program.lower import Instruction, Program
from functional_adamax._transforms.stage import LeafUpdate, Stage

pytestmark = [
    pytest.mark.skipif(not machine.is_there(), reason="built without a compiler"),
    pytest.mark.filterwarnings("ignore:eps=1e-08 rounds to zero"),
]

HALVES = [torch.bfloat16, torch.float16]
DTYPES = [
    *((dtype, state) for dtype in HALVES for state in (None, torch.float32)),
    *((dtype, torch.float64) for dtype in (torch.bfloat16, torch.float32)),
]
SIZES = (1, 7, 8, 65, 1023, 66_001)
SPECIAL = (
    *(0.0, -0.0, 1e-45, -1e-40, 1e-30, 3e38, 1.0, -1.0, 1e-8, torch.inf, -torch.inf, torch.nan),
    *(65504.0, 65519.0, 65520.0, 6e-8, 3e-8, 2.9e-8, 6.1e-5),
)


def values(n: int, dtype: torch.dtype, special: bool = True) -> Tensor:
    x = torch.randn(n) * 10 ** torch.randn(n)
    some = torch.randint(0, 6 * len(SPECIAL), (n,))
    if special:
        x = torch.where(some < len(SPECIAL), torch.tensor(SPECIAL)[some % len(SPECIAL)], x)
    return x.to(dtype)


def bits(tree: Any) -> list[Any]:
    flat = [x for x in optree.tree_leaves(tree) if isinstance(x, Tensor)]
    return [(x.dtype, words(x)) for x in flat]


def words(x: Tensor) -> bytes:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize]
    return x.nan_to_num(0.71, torch.inf, -torch.inf).view(kind).numpy().tobytes()


def clone(tree: Any) -> Any:
    return optree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, tree)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def by_rule(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call a function without the machine; the kernel of Adamax is off in all of the test."""
    monkeypatch.setattr(kernel, "_native", None)

    def call(function: Any, *args: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(machine, "_machine", None)
            patch.setattr(plans, "executors", [])
            return function(*args, **options)

    return call


def chained(lr: float, state_dtype: torch.dtype | None) -> fa.GradientTransformation:
    return fa.chain(
        fa.clip_by_global_norm(1.0),
        fa.scale_by_adamax(state_dtype=state_dtype),
        fa.add_decayed_weights(0.1),
        fa.scale_by_learning_rate(lr),
    )


METHODS: dict[str, Callable[..., fa.GradientTransformation]] = {
    "adamax": fa.adamax,
    "adamax, decayed": lambda lr, state_dtype: fa.adamax(
        lr, weight_decay=0.1, state_dtype=state_dtype
    ),
    "adamw": fa.adamw,
    "rmsprop": lambda lr, state_dtype: fa.rmsprop(
        lr, momentum=0.5, centered=True, state_dtype=state_dtype
    ),
    "nesterov": lambda lr, state_dtype: fa.sgd(lr, 0.9, nesterov=True),
    "lion": lambda lr, state_dtype: fa.lion(lr),
    "chain": chained,
}


def is_taken(name: str, dtype: torch.dtype, state: torch.dtype | None) -> bool:
    if state == torch.float64 and name in ("adamw", "rmsprop"):
        return proof.is_proven("ROOT", state)
    return name != "adamax, decayed" or state is not None or dtype == torch.float32


@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_steps_have_the_bits_of_the_rule(
    name: str, dtype: torch.dtype, state_dtype: Any, threads: int, by_rule: Any
) -> None:
    tx = METHODS[name](0.1, state_dtype=state_dtype)
    torch.manual_seed(0)
    p: dict[str, Any] = {str(n): values(n, dtype, False) for n in SIZES}
    state = tx.init(p)
    executor = fa.explain(tx, p).leaves[0].executor
    assert (executor == "program") == is_taken(name, dtype, state_dtype)
    new, old = clone((p, state)), clone((p, state))
    for step in range(10):
        grads = {str(n): values(n, dtype, step % 3 == 1) for n in SIZES}
        wanted = by_rule(tx.update, grads, state, p)
        p, state = by_rule(fa.step, tx, grads, state, p)
        assert bits(tx.update(grads, new[1], new[0])) == bits(wanted)
        new = fa.step(tx, grads, new[1], new[0])
        old = fa.step(tx, grads, old[1], old[0], donate=True)
        assert bits(new) == bits((p, state))
        assert bits(old) == bits((p, state))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["adamw", "chain"])
def test_gradients_in_another_dtype(name: str, dtype: torch.dtype, by_rule: Any) -> None:
    tx = METHODS[name](0.1, state_dtype=None)
    for kinds in ((dtype, torch.float32), (torch.float32, dtype)):
        p, g = ({"a": values(1001, kind, False)} for kind in kinds)
        state = tx.init(p)
        assert fa.explain(tx, p, grads=g, state=state).leaves[0].executor == "program"
        assert bits(fa.step(tx, g, state, p)) == bits(by_rule(fa.step, tx, g, state, p))


def run(code: str, types: list[torch.dtype], real: torch.dtype, x: Tensor) -> Tensor:
    """What one instruction makes of memory; what is stored is rounded first."""
    program = Program(real, 2, [True], [0], [], 1, [], [], 0, [], types=types)
    program.vector = [Instruction(code, 1, (0,))]
    if code.startswith("STORE"):
        rounded = code.replace("STORE", "ROUND")
        program.vector = [Instruction(rounded, 2, (0,)), Instruction(code, 1, (2,))]
    found: list[list[Any]] = [[x]]
    assert machine.into_new(machine.Part(machine.assembled(program), ([x],), ()), [], found)
    result: Tensor = found[0][0]
    return result


@pytest.mark.parametrize("real", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_and_what_is_between(dtype: torch.dtype, real: torch.dtype) -> None:
    """In lengths that no eight divides, too: the last of them are converted one by one."""
    name = {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    exact = halves.to(real)
    middle = halves.float().view(torch.int32) | (0x8000 if name == "BF16" else 0x1000)
    near = [middle - 1, middle, middle + 1]
    between = [x.view(torch.float32).to(real) for x in near]
    for length in (2**16, 13):
        wanted = exact[:length]
        assert proof.same_bits(run(f"LOAD_{name}", [dtype, real], real, halves[:length]), wanted)
        for x in (exact, *between):
            x = x[-length:]
            rounded = run(f"ROUND_{name}", [real, real], real, x)
            assert proof.same_bits(rounded, x.to(dtype).to(real))
            stored = run(f"STORE_{name}", [real, dtype], real, x)
            assert proof.same_bits(stored, x.to(dtype))


@dataclass(frozen=True, eq=False, repr=False)
class Arithmetic(Stage):
    """Operations in halves, with numbers on both sides."""

    a: float = 0.1234567

    def rule(self, x: LeafUpdate) -> Tensor:
        u, a = x.u, x.h["a"]
        y = (u + a) * a - (a - u) / a + a * u + a / (u.abs() + a)
        y = torch.where(y < a, u - a, torch.maximum(y, u * u)) + torch.where(u == a, a, -u)
        return y / 3 + u.sign() + torch.full_like(u, a) * u


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_numbers_are_rounded_where_torch_rounds_them(dtype: torch.dtype, by_rule: Any) -> None:
    for a in (0.1234567, 1.0009765, -3.14159):
        tx, u = Arithmetic(a).pair(), {"a": values(5003, dtype), "b": values(3, dtype)}
        u["a"][:2] = torch.tensor([a, -a]).to(dtype)
        state = tx.init(u)
        assert whole.why_not(tx.update.transform, u, state, u, add=False) is None
        assert bits(tx.update(u, state)) == bits(by_rule(tx.update, u, state))


def clamped(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m.clamp(-0.5, 0.5)


def product(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return torch.addcmul(m, g, g)


def average(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return torch.lerp(m, g, 0.1)


def numbers(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * (t.to(m.dtype) + 1)


def test_what_is_not_one_function_of_halves_declines() -> None:
    p = torch.randn(6).half()
    assert reason(method(plain), p) is None
    assert reason(method(clamped), p.bfloat16()) is None
    assert reason(method(clamped), p) == "it calls at_least in torch.float16"
    assert reason(method(average), p) == "it calls lerp in torch.float16"
    assert reason(method(numbers), p) == "it calls add in torch.float16"
    words = "it adds a product in torch.float16, as weight decay does"
    assert reason(method(product), p) == words
    assert reason(method(plain, weight_decay=0.1), p) == words
    assert reason(method(plain), torch.randn(6).to(torch.float8_e5m2).float()) is None


def test_a_result_of_another_dtype_is_not_written_over_what_it_follows() -> None:
    half, single = torch.bfloat16, torch.float32
    program = Program(single, 2, [True], [0], [], 0, [], [], 0, [], types=[half, single])
    program.vector = [Instruction("LOAD_BF16", 1, (0,))]
    part = machine.Part(machine.assembled(program), ([torch.ones(3, dtype=half)],), ())
    assert machine.plan([part], in_place=False) is not None
    assert machine.plan([part], in_place=True) is None
