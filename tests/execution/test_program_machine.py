"""The machine: steps of every method have the bits of the rule.

The file is longer than others: every method meets every layout, dtype and kind of memory.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import optree
import pytest
import torch
from torch import Tensor, nn

import functional_adamax as fa
from functional_adamax._execution.native import kernel
from functional_adamax._execution.program import machine, proof
from functional_adamax.compat import Optimizer

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")

DTYPES = [torch.float32, torch.float64]


def test_an_instruction_that_fails_its_proof_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    tx, p = fa.lion(0.1), torch.randn(3)
    state = tx.init(p)
    want = fa.step(tx, p, state, p)
    from functional_adamax._execution.program import executor, programs

    monkeypatch.setattr(programs, "families", {})
    monkeypatch.setattr(proof, "is_proven", lambda op, dtype: op != "LERP")
    work = tx.update.transform.work(p, state, p)
    work.check()
    assert executor.why_not(work, 0) == "LERP has not the bits of torch on this machine"
    assert bits(fa.step(tx, p, state, p)) == bits(want)


SHAPES = [(), (1,), (3,), (0, 4), (5, 7), (64,), (65,), (1023,), (257, 3), (3, 40_000)]
SPECIAL = (0.0, -0.0, 1e-45, -1e-40, 1e-30, 3e38, 1.0, -1.0, 1e-8, torch.inf, -torch.inf, torch.nan)
METHODS: dict[str, Callable[..., fa.GradientTransformation]] = {
    "adamax": fa.adamax,
    "adamaxw": fa.adamaxw,
    "nadamax": fa.nadamax,
    "adam": fa.adam,
    "amsgrad": lambda lr, **options: fa.adam(lr, amsgrad=True, **options),
    "adamw": fa.adamw,
    "sgd": fa.sgd,
    "sgd with momentum": lambda lr, **options: fa.sgd(lr, 0.9, **options),
    "nesterov": lambda lr, **options: fa.sgd(lr, 0.9, nesterov=True, **options),
    "rmsprop": fa.rmsprop,
    "rmsprop, all": lambda lr, **options: fa.rmsprop(lr, momentum=0.5, centered=True, **options),
    "lion": fa.lion,
}
OPTIONS = [
    {},
    {"weight_decay": 0.0},
    {"weight_decay": 0.1, "maximize": True},
    {"lr": torch.tensor(0.1), "weight_decay": torch.tensor([0.1], dtype=torch.float64)},
]


def clone(tree: Any) -> Any:
    return optree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, tree)


def bits(tree: Any) -> list[Any]:
    flat = [x for x in optree.tree_leaves(tree) if isinstance(x, Tensor)]
    return [(x.dtype, x.shape, x.stride(), words(x)) for x in flat]


def words(x: Tensor) -> bytes:
    x = x.detach().nan_to_num(0.71, torch.inf, -torch.inf).contiguous()
    return x.numpy().tobytes()


def values(shape: Any, dtype: torch.dtype, special: bool) -> Tensor:
    x = torch.randn(shape, dtype=dtype) * 10 ** torch.randn(shape, dtype=dtype)
    if special:
        some = torch.randint(0, 6 * len(SPECIAL), shape)
        x = torch.where(
            some < len(SPECIAL), torch.tensor(SPECIAL)[some % len(SPECIAL)].to(dtype), x
        )
    return x


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the machine, so that it steps Adamax, too."""
    monkeypatch.setattr(kernel, "_native", None)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the machine did, by the names of its functions."""
    names: list[str] = []

    def noted(name: str, real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            found = real(*arguments)
            proof = name == "stepped" and len(arguments[2][0]) == 1  # no counter
            proof |= threading.current_thread() is not threading.main_thread()
            if found and not proof:
                names.append(name)
            return found

        return call

    for name in ("stepped", "overwrite", "write"):
        monkeypatch.setattr(machine, name, noted(name, getattr(machine, name)))
    return names


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def is_exact(name: str, dtype: torch.dtype) -> bool:
    """Whether torch's root, if there is one, is that of the machine."""
    roots = name.startswith(("adam", "ams", "rms")) and not name.startswith("adamax")
    return not roots or proof.is_proven("ROOT", dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_bits_of_its_rule(
    name: str, options: Any, dtype: torch.dtype, threads: int, alone: Any, taken: Any, without: Any
) -> None:
    tx = METHODS[name](**{"lr": 0.1, **options})
    p = {str(shape): values(shape, dtype, False) for shape in SHAPES}
    state = tx.init(p)
    new, new_state = clone(p), clone(state)
    old, old_state = clone(p), clone(state)
    for step in range(3):
        grads = {str(shape): values(shape, dtype, step == 1) for shape in SHAPES}
        if step == 2:
            grads[str(SHAPES[3])] = grads[str(SHAPES[5])] = None
        wanted = without(tx.update, grads, state, p)
        p, state = without(fa.step, tx, grads, state, p)
        assert bits(tx.update(grads, new_state, new)) == bits(wanted)
        new, new_state = fa.step(tx, grads, new_state, new)
        old, old_state = fa.step(tx, grads, old_state, old, donate=True)
        assert bits((new, new_state)) == bits((p, state))
        assert bits((old, old_state)) == bits((p, state))
    assert taken == (["stepped", "stepped", "overwrite"] * 3 if is_exact(name, dtype) else [])


def test_layouts(taken: list[str], without: Any) -> None:
    tx = fa.adamw(0.1)
    dense = torch.randn(4, 6).t()
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    p = {"transposed": dense, "last": last, "one": torch.randn(1, 5, 1)}
    grads = optree.tree_map(torch.randn_like, p)
    for donate in (False, True):
        want = without(fa.step, tx, grads, tx.init(p), clone(p), donate=donate)
        assert bits(fa.step(tx, grads, tx.init(p), clone(p), donate=donate)) == bits(want)
    assert taken == ["stepped", "overwrite"]


@pytest.mark.parametrize(
    "gradient",
    [
        lambda p: torch.randn(p.shape).t().contiguous().t(),
        lambda p: torch.randn(4, 12)[:, ::2],
        lambda p: torch.randn(1, 6).expand(4, 6),
        lambda p: torch.randn(25)[1:].view(4, 6),
        lambda p: torch._neg_view(torch.randn(4, 6)),
        lambda p: torch.randn(4, 6, dtype=torch.float64),
    ],
    ids=["transposed", "strided", "expanded", "shifted", "negative", "wide"],
)
def test_gradients_of_another_layout(gradient: Any, without: Any) -> None:
    tx, p = fa.adamw(0.1), {"a": torch.randn(4, 6), "b": torch.randn(3)}
    grads = {"a": gradient(p["a"]), "b": torch.randn(3)}
    for donate in (False, True):
        want = without(fa.step, tx, grads, tx.init(p), clone(p), donate=donate)
        assert bits(fa.step(tx, grads, tx.init(p), clone(p), donate=donate)) == bits(want)


def test_shared_memory_is_refused_and_not_written() -> None:
    tx, whole = fa.adam(0.1), torch.randn(6)
    p = {"a": whole[:4], "b": whole[2:]}
    state, before = tx.init(clone(p)), whole.clone()
    with pytest.raises(ValueError, match="must not share memory"):
        fa.step(tx, clone(p), state, p, donate=True)
    assert torch.equal(whole, before)


def test_a_gradient_may_not_lie_where_the_step_writes() -> None:
    tx, p = fa.adam(0.1), {"a": torch.randn(4)}
    with pytest.raises(ValueError, match="must not share memory"):
        fa.step(tx, p, tx.init(p), p, donate=True)


def test_writes_are_counted_and_inputs_are_not_written() -> None:
    tx, p, g = fa.adam(0.1), torch.randn(4), torch.randn(4)
    state = tx.init(p)
    inputs = [p, g, state.step, state.exp_avg, state.exp_avg_sq]
    versions = [x._version for x in inputs]
    before = bits(inputs)
    fa.step(tx, g, state, p)
    assert bits(inputs) == before
    assert [x._version for x in inputs] == versions
    fa.step(tx, g, state, p, donate=True)
    assert [x._version - y for x, y in zip(inputs, versions, strict=True)] == [1, 0, 1, 1, 1]


def test_what_autograd_follows_is_taken_within_one_node(taken: list[str]) -> None:
    tx, p = fa.adam(0.1), torch.randn(4)
    g = torch.randn(4, requires_grad=True)
    new, _ = fa.step(tx, g, tx.init(p), p)
    assert "_Step" in str(new.grad_fn)
    lr = torch.tensor(0.1, requires_grad=True)
    assert fa.step(fa.adam(lr), p, tx.init(p), p)[0].requires_grad
    assert taken == ["stepped"] * 2


def test_tensors_of_inference_mode(taken: list[str]) -> None:
    tx = fa.adam(0.1)
    with torch.inference_mode():
        p = torch.randn(4)
        state = tx.init(p)
        p, state = fa.step(tx, p, state, p)
        new, _ = fa.step(tx, p.clone(), state, p, donate=True)
        assert new.isfinite().all()
    assert taken[0] == "stepped"


def test_leaves_of_several_kinds_in_one_tree(taken: list[str], without: Any) -> None:
    tx = fa.nadamax(0.1)
    kinds = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)
    p = {str(kind): torch.randn(9, dtype=kind) for kind in kinds}
    grads = optree.tree_map(torch.randn_like, p)
    for donate in (False, True):
        want = without(fa.step, tx, grads, tx.init(p), clone(p), donate=donate)
        got = fa.step(tx, grads, tx.init(p), clone(p), donate=donate)
        for kind in map(str, kinds):
            assert torch.equal(got[0][kind], want[0][kind])
            assert torch.equal(got[1].exp_inf[kind], want[1].exp_inf[kind])
    assert taken == ["stepped"] * 3 + ["write"] * 3


def test_one_leaf_that_is_not_taken_leaves_the_others(taken: list[str], without: Any) -> None:
    tx = fa.nadamax(0.1)
    p = {name: torch.randn(4, 6) for name in "abc"}
    grads = optree.tree_map(torch.randn_like, p) | {"b": torch.randn(6, 4).t()}
    for donate in (False, True):
        want = without(fa.step, tx, grads, tx.init(p), clone(p), donate=donate)
        assert bits(fa.step(tx, grads, tx.init(p), clone(p), donate=donate)) == bits(want)
    assert taken == ["stepped"] * 2 + ["write"] * 2


@pytest.mark.parametrize("make", [fa.adamw, fa.lion, fa.nadamax])
def test_an_optimizer_of_a_method(make: Any, taken: list[str], without: Any) -> None:
    def train() -> list[Any]:
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(n)) for n in (3, 40, 500)]
        optimizer = Optimizer(
            [{"params": params[:2]}, {"params": params[2:], "lr": 0.3}], make, lr=0.1
        )
        for step in range(4):
            for p in params:
                p.grad = torch.randn_like(p)
            params[1].grad = None if step == 2 else params[1].grad
            optimizer.step()
        return bits([params, [optimizer.state[p] for p in params]])

    want = without(train)
    assert train() == want
    assert taken == ["write"] * 2 + ["overwrite"] * 3  # of each group, then of both


def test_the_number_of_calls_does_not_depend_on_the_number_of_leaves() -> None:
    def calls(leaves: int, donate: bool) -> int:
        tx, p = fa.adamw(0.1), [torch.randn(3) for _ in range(leaves)]
        state, grads, count = tx.init(p), clone(p), itertools.count()

        def note(frame: Any, event: str, argument: Any) -> None:
            if event == "call":
                next(count)

        p, state = fa.step(tx, grads, state, p, donate=donate)
        sys.setprofile(note)
        try:
            fa.step(tx, grads, state, p, donate=donate)
        finally:
            sys.setprofile(None)
        return next(count)

    for donate in (False, True):
        assert calls(4, donate) == calls(40, donate)


def test_memory_that_is_moved_between_plan_and_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the step is done anew, in torch's operations."""
    tx, p, g = fa.adam(0.1), torch.randn(5), torch.randn(5)
    state = tx.init(p)
    want = fa.step(tx, g, clone(state), clone(p))
    plan = tx.update.transform.plan(g, state, p, donate=True)
    plan.check()
    state.exp_avg.data = state.exp_avg.clone()
    assert bits(plan()) == bits(want)


@pytest.mark.parametrize("which", [0, 1, 2, 3], ids=["p", "g", "m", "t"])
def test_memory_that_is_exchanged_before_a_long_pure_step(
    which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another thread may do it; the step holds aliases of what it planned, and is taken."""
    tx, p, g = fa.lion(0.1), torch.randn(2**20), torch.randn(2**20)
    state = tx.init(p)
    want = bits(fa.step(tx, g, state, p))
    x = (p, g, state.exp_avg, state.step)[which]
    real = machine.stepped

    def exchanged(*arguments: Any) -> bool:
        x.data = torch.zeros(3)
        return real(*arguments)

    monkeypatch.setattr(machine, "stepped", exchanged)
    assert bits(fa.step(tx, g, state, p)) == want
    assert x.shape == (3,)


def test_an_entry_that_goes_while_its_parameter_is_asked() -> None:
    class Asked:
        @property
        def grad(self) -> None:
            del state[self]
            others.append({"exp_avg": 2})  # where the entry was, if it is gone

    others: list[Any] = []
    state = {Asked(): {"exp_avg": 1}}
    found = machine.gathered(list(state), state, ("exp_avg",), (False,))
    assert found is not None
    assert found[2] == [1]
