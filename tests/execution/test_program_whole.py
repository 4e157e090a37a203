"""Whole transforms as programs have the bits of the transforms, or are declined with a reason.

The file is longer than others: all that a program may do wrong of a whole transform is in one
place.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from recipes import RECIPES, Recipe
from torch import Tensor
from torch.utils import _pytree
from trees import assert_equal

import functional_adamax as fa
from functional_adamax._core import donation, plans, sums
from functional_adamax._core.transform import Transform
from functional_adamax._execution.program import machine, proof, whole
from functional_adamax._transforms.stage import LeafUpdate, Stage
from functional_adamax.compat import Optimizer

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")
NAN, INF = float("nan"), float("inf")
DECLINED = {
    "adamax-bounded": "it calls expand, which is no instruction",
    "adaptive_grad_clip": "it asks for the shape of a leaf",
    "centralize": "it asks for the ndim of a leaf",
    "add_noise": "add_noise does not treat each leaf alone",
    "zero_nans": "it has a tensor in torch.bool",
    "reduce_on_plateau": "watching does not treat each leaf alone",
    "sam": "elsewhere does not treat each leaf alone",
    "sam-adaptive": "elsewhere does not treat each leaf alone",
}
"""Of the recipes, in float32, what is no program, and why."""
if machine.is_there() and not proof.is_proven("ROOT", torch.float64):
    DECLINED["adam-float64-state"] = "ROOT has not the bits of torch on this machine"


@pytest.fixture
def by_rule(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call a function without programs of whole transforms."""

    def call(function: Any, *args: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(plans, "executors", [])
            patch.setattr("functional_adamax._core.transform.executors", [])
            return function(*args, **options)

    return call


def params(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"a": (3, 4), "b": (300,), "c": (2, 2, 2), "d": (0, 3)}
    return {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}


def gradients(like: dict[str, Tensor], step: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: torch.randn_like(x) for name, x in like.items()}
    if step == 1:
        found["b"][:4] = torch.tensor([0.0, -0.0, 1e-40, -1e-30])
    if step == 2:
        found = {name: torch.zeros_like(x) for name, x in like.items()}
    if step == 4:
        found["b"][:3] = torch.tensor([INF, -INF, NAN])
    return found


def cloned(tree: Any) -> Any:
    return _pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, tree)


def shown(tree: Any) -> Any:
    """A tree in which NaN is a number, which equals itself."""
    return _pytree.tree_map(
        lambda x: x.nan_to_num(7777.0, INF, -INF) if isinstance(x, Tensor) else x, tree
    )


def assert_same(a: Any, b: Any) -> None:
    assert_equal(shown(a), shown(b))


def assert_is_run(tx: Any, by_rule: Any, dtype: torch.dtype, missing: bool = False) -> None:
    """Whether five steps in each way are a program's, and have the bits of the rule."""
    p = params(dtype)
    state = tx.init(p)
    for k in range(5):
        g = gradients(p, k)
        if missing and k == 3:
            g["c"] = None
        settled = tx.update.transform.settled(state, g, p)
        for add in (False, True):
            assert whole.why_not(settled, g, state, p, add) is None
        wanted = by_rule(fa.step, tx, g, state, p)
        assert_same(tx.update(g, state, p), by_rule(tx.update, g, state, p))
        assert_same(fa.step(tx, g, state, p), wanted)
        old = cloned((p, state))
        new = fa.step(tx, g, old[1], old[0], donate=True)
        assert_same(new, wanted)
        assert all(x is y for x, y in zip(*map(_pytree.tree_leaves, (new, old)), strict=True))
        p, state = wanted


RUN = [x for x in RECIPES if str(x) not in (*DECLINED, "identity")]  # which does nothing


@pytest.mark.parametrize("recipe", RUN, ids=str)
def test_recipes_have_the_bits_of_the_rule(recipe: Recipe, by_rule: Any) -> None:
    assert_is_run(recipe.default(), by_rule, torch.float32, missing=True)


@pytest.mark.parametrize("recipe", [x for x in RECIPES if str(x) in DECLINED], ids=str)
def test_what_is_declined_says_why(recipe: Recipe) -> None:
    tx, p = recipe.default(), params()
    state = tx.init(p)
    g = gradients(p, 0)
    settled = tx.update.transform.settled(state, g, p)
    assert whole.why_not(settled, g, state, p) == DECLINED[str(recipe)]


LINKS: list[Any] = [
    lambda: fa.clip(0.7),
    lambda: fa.clip_by_global_norm(2.5),
    lambda: fa.clip_by_block_rms(0.6),
    lambda: fa.scale_by_adamax((0.8, 0.95)),
    lambda: fa.scale_by_lion(),
    lambda: fa.scale_by_nadamax(),
    lambda: fa.scale_by_amsmax(),
    lambda: fa.scale_by_sign(),
    lambda: fa.trace(0.9, nesterov=True),
    lambda: fa.ema(0.9),
    lambda: fa.add_decayed_weights(0.03),
    lambda: fa.scale(-0.3),
    lambda: fa.scale_by_learning_rate(fa.cosine_decay_schedule(0.2, 4)),
    lambda: fa.scale_by_learning_rate(lambda count: 0.1 * 0.9**count),
    lambda: fa.params_ema(0.9),
    lambda: fa.params_average(2, 1),
    lambda: fa.masked(fa.trace(0.8), {"a": True, "b": False, "c": True, "d": False}),
    lambda: fa.masked(fa.clip_by_global_norm(0.7), fa.by_path(lambda name: name in "bc")),
    lambda: fa.partition(
        {"x": fa.scale_by_adamax(), "y": fa.set_to_zero(), "z": fa.ema(0.5)},
        lambda tree: {name: "yxzx"["abcd".index(name)] for name in tree},
    ),
    lambda: fa.freeze({"a": False, "b": True, "c": False, "d": False}),
    lambda: fa.inject_hyperparams(fa.scale)(factor=0.3),
    lambda: fa.inject_hyperparams(fa.adamax)(lr=lambda count: 0.1 / (1 + int(count))),
    lambda: fa.conditionally(fa.scale(3.0), lambda count: int(count) % 2 == 1),
]

WRAPPERS: list[Any] = [
    lambda tx: tx,
    lambda tx: fa.lookahead(tx, 2, 0.4),
    lambda tx: fa.multi_steps(tx, 2),
    lambda tx: fa.multi_steps(tx, lambda step: 1 + int(step), skip=fa.skip_not_finite),
    lambda tx: fa.apply_if_finite(tx, 1),
    lambda tx: fa.cautious(tx),
    lambda tx: fa.schedule_free(tx, 0.1),
    lambda tx: fa.masked(tx, {"a": True, "b": True, "c": False, "d": True}),
]


@pytest.mark.parametrize("seed", range(200))
def test_random_chains_have_the_bits_of_the_rule(seed: int, by_rule: Any) -> None:
    source = random.Random(seed)
    links = [source.choice(LINKS)() for _ in range(source.randint(1, 5))]
    tx = source.choice(WRAPPERS)(fa.chain(*links))
    dtype = torch.float64 if seed % 5 == 1 else torch.float32
    threads = torch.get_num_threads()
    torch.set_num_threads(1 + seed % 2)
    try:
        assert_is_run(tx, by_rule, dtype, missing=seed % 3 == 0)
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False, repr=False)
class Fading(Transform):
    """A scale that falls from step to step, kept once for the tree."""

    is_local: ClassVar[bool] = True

    def init(self, params: Any) -> Tensor:
        return torch.tensor(0.7, dtype=torch.float64)

    def update(self, updates: Any, state: Tensor, params: Any = None, **extra: Any) -> Any:
        factor = state * state * state
        return {name: u * factor for name, u in updates.items()}, state * 0.9


def test_numbers_of_the_tree_in_another_dtype_are_left_to_the_rule(by_rule: Any) -> None:
    tx, p = Fading().pair(), {"a": torch.randn(99)}
    for dtype in (torch.float64, torch.float32):
        for k in range(20):
            state = torch.tensor(0.7 + k / 100, dtype=dtype)
            assert_equal(tx.update(p, state, p), by_rule(tx.update, p, state, p))


@pytest.mark.parametrize("size", [1.0, 1e200, 1e-200, 0.0, INF, NAN])
def test_norms_in_float64_neither_overflow_nor_vanish(size: float, by_rule: Any) -> None:
    tx, p = fa.chain(fa.clip_by_global_norm(0.5), fa.scale(-1.0)), params(torch.float64)
    g, state = {name: size * torch.randn_like(x) for name, x in p.items()}, tx.init(p)
    assert whole.why_not(tx.update.transform, g, state, p) is None
    wanted = by_rule(fa.step, tx, g, state, p)
    assert_same(fa.step(tx, g, state, p), wanted)
    assert_same(fa.step(tx, g, state, cloned(p), donate=True), wanted)


CLIPS: dict[str, Any] = {
    "alone": lambda: fa.clip_by_block_rms(0.7),
    "a tensor": lambda: fa.clip_by_block_rms(torch.tensor(0.7, dtype=torch.float64)),
    "in a chain": lambda: fa.chain(
        fa.clip_by_block_rms(0.9),
        fa.scale_by_adamax(),
        fa.clip_by_block_rms(0.5),
        fa.clip_by_global_norm(2.0),
        fa.scale(-0.1),
    ),
    "masked": lambda: fa.masked(fa.clip_by_block_rms(0.7), lambda p: {k: k in "ace" for k in p}),
    "partition": lambda: fa.partition(
        {"x": fa.chain(fa.clip_by_block_rms(0.5), fa.trace(0.9)), "y": fa.clip_by_block_rms(2.0)},
        lambda p: {k: "xy"[k in "bd"] for k in p},
    ),
    "cautious": lambda: fa.cautious(fa.chain(fa.clip_by_block_rms(0.7), fa.trace(0.9))),
}
SIZES = {"a": (2921,), "b": (3, 70_000), "c": (1,), "d": (), "e": (0, 4), "f": (5, 127)}
"""Of the first, the power that ends a root mean square is not the nearest to the root."""


def spread(like: dict[str, Tensor], step: int) -> dict[str, Any]:
    """Gradients of all magnitudes; in some steps none, zeros and what is not finite."""
    found: dict[str, Any] = {k: torch.randn_like(x) * 10 ** (step - 2.0) for k, x in like.items()}
    wide = like["a"].dtype == torch.float64
    for k, x in found.items():
        if step > 4 and x.numel():
            size = (1e200, 1e-200, 0.0) if wide else (1e30, 1e-38, 0.0)
            found[k] = x.sign() * size[(step + ord(k)) % 3]
    if step in (3, 8):
        for k, value in zip("abf", (NAN, INF, -INF), strict=True):
            found[k].view(-1)[step] = value
    if step == 2:
        found["f"] = None
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CLIPS)
def test_norms_of_each_leaf(name: str, dtype: torch.dtype, threads: int, by_rule: Any) -> None:
    tx, p = CLIPS[name](), {k: torch.randn(shape, dtype=dtype) for k, shape in SIZES.items()}
    state = tx.init(p)
    old = cloned((p, state))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for k in range(10):
        g = spread(p, k)
        settled = tx.update.transform.settled(state, g, p)
        assert whole.why_not(settled, g, state, p) is None
        wanted = by_rule(fa.step, tx, g, state, p)
        assert_same(tx.update(g, state, p), by_rule(tx.update, g, state, p))
        assert_same(fa.step(tx, g, state, p), wanted)
        old = fa.step(tx, g, old[1], old[0], donate=True)
        assert_same(old, wanted)
        p, state = wanted
    torch.set_num_threads(before)


def test_a_power_that_is_not_the_nearest_to_the_root_is_that_of_python(by_rule: Any) -> None:
    tx, sizes = fa.clip_by_block_rms(1e-3), [n for n in range(1, 9000) if n**0.5 != math.sqrt(n)]
    g = [torch.randn(n, dtype=torch.float64) for n in (*range(1, 200), *sizes)]
    assert_equal(tx.update(g, tx.init(g)), by_rule(tx.update, g, tx.init(g)))


@pytest.mark.parametrize("name", CLIPS)
def test_norms_of_each_leaf_in_an_optimizer(
    name: str, without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    overwrite = machine.overwrite
    monkeypatch.setattr(machine, "overwrite", lambda x: calls.append(overwrite(x)) or calls[-1])
    tensors, others = (
        {k: torch.nn.Parameter(torch.ones(n) / (1 + len(n))) for k, n in SIZES.items()}
        for _ in range(2)
    )
    ours, theirs = (
        Optimizer(list(x.items()), fa.chain(CLIPS[name](), fa.scale_by_learning_rate(0.1)))
        for x in (tensors, others)
    )
    for k in range(10):
        for at, g in spread({at: x.detach() for at, x in tensors.items()}, k).items():
            tensors[at].grad, others[at].grad = g, None if g is None else g.clone()
        ours.step()
        without(theirs.step)
        assert_same(*({k: x.detach() for k, x in y.items()} for y in (tensors, others)))
    if name != "a tensor":  # of which torch computes something for the tree
        assert calls == 9 * [True], "which is one call of the machine in all steps but the first"


def test_norms_of_each_leaf_in_any_layout(by_rule: Any) -> None:
    tx, big = fa.clip_by_block_rms(1e-3), torch.randn(300, 301)
    for g in (big, big.t(), big[:, ::2], torch.randn(6, 5, 4, 3).transpose(1, 2), big.half()):
        tree = {"a": g, "b": torch.randn(3), "c": torch.tensor(2.0)}
        state = tx.init(tree)
        assert_equal(tx.update(tree, state), by_rule(tx.update, tree, state))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", [(70_000,), (1,), (65_536, 3), (128, 129, 127)])
def test_sizes_and_threads(threads: int, sizes: tuple[int, ...], by_rule: Any) -> None:
    tx = fa.chain(fa.clip_by_global_norm(1.0), fa.scale_by_adamax(), fa.scale(-0.1))
    p = [torch.randn(n) for n in sizes]
    g, state = [torch.randn(n) for n in sizes], tx.init(p)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    got = fa.step(tx, g, state, p)
    torch.set_num_threads(before)
    assert_equal(got, by_rule(fa.step, tx, g, state, p))


def test_one_program_serves_all_numbers(by_rule: Any) -> None:
    p = params()
    tx = fa.chain(fa.trace(0.5), fa.scale(-0.5))
    state, g = tx.init(p), gradients(p, 0)
    tx.update(g, state, p)
    known = len(whole._entries)
    for k in range(1, 50):
        tx = fa.chain(fa.trace(1 / (1 + k)), fa.scale(-0.01 * k))
        assert_equal(tx.update(g, state, p), by_rule(tx.update, g, state, p))
    assert len(whole._entries) == known


def test_schedules_are_asked_once_and_make_no_programs() -> None:
    asked: list[int] = []

    def schedule(count: Tensor) -> float:
        asked.append(int(count))
        return 0.5 / (1 + int(count))

    tx, p = fa.chain(fa.scale_by_adamax(), fa.scale_by_learning_rate(schedule)), params()
    state = tx.init(p)
    known = []
    for _ in range(20):
        _, state = fa.step(tx, gradients(p, 0), state, p)
        known.append(len(whole._entries))
    assert asked == list(range(20))
    assert len(set(known)) == 1


@pytest.mark.parametrize(
    "schedule",
    [
        fa.constant_schedule(0.1),
        fa.warmup_cosine_decay_schedule(0.0, 0.1, 2, 4),
        fa.piecewise_constant_schedule(0.1, {2: 0.5, 3: 0.1}),
        fa.cosine_onecycle_schedule(4, 0.1),
        fa.warmup_exponential_decay_schedule(0.0, 0.1, 2, 2, 0.5),
    ],
    ids=str,
)
def test_a_schedule_of_the_library_is_one_operation_of_a_step_in_one_call(
    schedule: Any, by_rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, overwrite = [], machine.overwrite
    monkeypatch.setattr(machine, "overwrite", lambda x: calls.append(overwrite(x)) or calls[-1])
    tx, p = fa.chain(fa.clip(1.0), fa.scale_by_learning_rate(schedule)), params()
    state, q = tx.init(p), cloned(p)
    other, keys = tx.init(p), set()
    for seed in range(6):
        g = gradients(p, seed)
        p, state = fa.step(tx, g, state, p, donate=True)
        q, other = by_rule(fa.step, tx, g, other, q)
        assert_same((p, state), (q, other))
        keys.add(len(whole._entries))
    assert calls == [True] * 6
    assert len(keys) == 1
    entry = whole._known.entry[1]
    assert [x.function for x in entry.sequence if x.function == schedule] == [schedule]


def test_it_is_the_step_of_an_optimizer(without: Any) -> None:
    tx = fa.chain(fa.clip_by_global_norm(1.0), fa.scale_by_adamax(), fa.scale_by_learning_rate(0.1))
    tensors = [torch.nn.Parameter(torch.randn(n)) for n in (5, 70)]
    others = [torch.nn.Parameter(x.detach().clone()) for x in tensors]
    ours, theirs = Optimizer(tensors, tx), Optimizer(others, tx)
    for _ in range(3):
        for x, y in zip(tensors, others, strict=True):
            x.grad = torch.randn_like(x)
            y.grad = x.grad.clone()
        ours.step()
        without(theirs.step)
    assert_equal([x.detach() for x in tensors], [x.detach() for x in others])


@dataclass(frozen=True, eq=False, repr=False)
class Own(Stage):
    """A stage of a user's."""

    factor: Any = 0.5
    turn: Any = None

    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u * x.h["factor"] if self.turn is None else self.turn(x.u, x.h["factor"])

    def hyper(self) -> dict[str, Any]:
        return {"factor": self.factor}


def test_a_stage_of_ones_own_is_run(by_rule: Any) -> None:
    assert_is_run(fa.chain(Own(0.3).pair(), fa.scale(-0.1)), by_rule, torch.float32, missing=True)


def declined(tx: Any) -> str | None:
    p = params()
    state, g = tx.init(p), gradients(p, 0)
    return whole.why_not(tx.update.transform.settled(state, g, p), g, state, p)


@dataclass(frozen=True, eq=False, repr=False)
class ByDimension(Own):
    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u * 2 if x.u.ndim > 1 else x.u


@dataclass(frozen=True, eq=False, repr=False)
class ByShape(Own):
    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u / x.u.shape[0]


@dataclass(frozen=True, eq=False, repr=False)
class ByValue(Own):
    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u if x.u.sum() > 0 else -x.u


@dataclass(frozen=True, eq=False, repr=False)
class ByHyper(Own):
    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u if x.h["factor"] < 0.6 else -x.u


@dataclass(frozen=True, eq=False, repr=False)
class Mean(Own):
    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u - x.u.mean()


@dataclass(frozen=True, eq=False, repr=False)
class Random(Own):
    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u + torch.rand_like(x.u)


CALLS: list[int] = []


@dataclass(frozen=True, eq=False, repr=False)
class Counting(Own):
    calls: ClassVar[list[int]] = CALLS

    def rule(self, x: LeafUpdate) -> Tensor:
        self.calls.append(1)
        return x.u * len(self.calls)


@dataclass(frozen=True, eq=False, repr=False)
class Writing(Own):
    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u.mul_(2)


@dataclass(frozen=True, eq=False, repr=False)
class Closed(Own):
    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u * OUTSIDE


@dataclass(frozen=True, eq=False, repr=False)
class NormOfLeaf(Own):
    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u / (1 + fa.global_norm(x.u))


def test_a_norm_of_the_leaf_in_a_stage_of_ones_own(by_rule: Any) -> None:
    for dtype in (torch.float32, torch.float64):
        assert_is_run(NormOfLeaf().pair(), by_rule, dtype, missing=True)


@dataclass(frozen=True, eq=False, repr=False)
class NormOfOther(Own):
    def once(self, updates: list[Tensor]) -> dict[str, Any]:
        return {"norm": 1 + fa.global_norm(updates[0])}

    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u / x.h["norm"]


@dataclass(frozen=True, eq=False, repr=False)
class CountOfOther(Own):
    def once(self, updates: list[Tensor]) -> dict[str, Any]:
        return {"count": sums.count(updates[-1])}

    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u / x.h["count"]


@dataclass(frozen=True, eq=False, repr=False)
class NormOfTree(Transform):
    """A norm of one leaf in a state that belongs to the tree."""

    is_local: ClassVar[bool] = True

    def init(self, params: Any) -> Tensor:
        return torch.zeros(())

    def update(self, updates: Any, state: Tensor, params: Any = None, **extra: Any) -> Any:
        return updates, fa.global_norm(updates[min(updates)])


@dataclass(frozen=True, eq=False, repr=False)
class ExponentOfNorm(Own):
    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u / fa.global_norm(x.u).exp()


@dataclass(frozen=True, eq=False, repr=False)
class NormOfSome(Own):
    def once(self, updates: list[Tensor]) -> dict[str, Any]:
        return {"norm": 1 + fa.global_norm(updates[:-1])}

    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u / x.h["norm"]


OUTSIDE = torch.tensor(2.0)
WRONG = {
    ByDimension: "it asks for the ndim of a leaf",
    ByShape: "it asks for the shape of a leaf",
    ByValue: "it calls sum, which is no instruction",
    ByHyper: "it compares a hyperparameter, or takes another function of it",
    Mean: "it calls mean, which is no instruction",
    Random: "it calls rand_like, which is no instruction",
    Counting: "it reads calls, whose value may change",
    Writing: "it writes to an input",
    Closed: "it reads OUTSIDE, whose value may change",
    NormOfSome: "what becomes of a leaf depends on another",
    NormOfOther: "what becomes of a leaf depends on another",
    CountOfOther: "what becomes of a leaf depends on another",
    NormOfTree: "a tensor that belongs to the tree depends on a leaf",
    ExponentOfNorm: "it calls exp, which is no instruction",
}


@pytest.mark.parametrize("kind", WRONG, ids=lambda x: x.__name__)
def test_what_a_program_would_do_wrong_is_declined(kind: Any, by_rule: Any) -> None:
    assert declined(kind().pair()) == WRONG[kind]


@dataclass(frozen=True, eq=False, repr=False)
class ByGlobal(Own):
    def rule(self, x: LeafUpdate) -> Tensor:
        return x.u * FACTOR


FACTOR = 2.0


def test_a_global_that_changes_is_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    tx, p = ByGlobal().pair(), params()
    state, g = tx.init(p), gradients(p, 0)
    assert declined(tx) is None
    assert torch.equal(tx.update(g, state, p)[0]["b"], g["b"] * 2)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert torch.equal(tx.update(g, state, p)[0]["b"], g["b"] * 3)


def test_other_links_decline() -> None:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return updates, state

    link = fa.GradientTransformation(lambda params: (), update)
    assert declined(fa.chain(link, fa.scale(2.0))) == "a link of it is a pair of functions"
    elementwise = fa.scale({name: torch.ones_like(x) for name, x in params().items()})
    reason = "a hyperparameter of it is a tree with something else than numbers"
    assert declined(elementwise) == reason
    unlike = fa.scale(dict.fromkeys(("x", "y"), 1.0))
    assert declined(unlike) == "a hyperparameter of it is no tree like the parameters"
    learned = fa.scale(torch.tensor(2.0, requires_grad=True))
    assert declined(learned) == (
        "a hyperparameter of it is no number, nor a plain tensor of one on the CPU"
    )


def test_a_factor_may_be_a_tensor_of_any_dtype(by_rule: Any) -> None:
    for dtype in (torch.int64, torch.bfloat16, torch.float64):
        assert_is_run(fa.scale(torch.tensor(3, dtype=dtype)), by_rule, torch.float32, missing=True)


def test_leaves_that_do_not_fit_are_left_to_the_rule(by_rule: Any) -> None:
    tx = fa.chain(fa.trace(0.9), fa.scale(-0.1))
    p = {"a": torch.randn(3, 4), "b": torch.randn(4, 6)[:, ::2], "c": torch.tensor(2.0)}
    for other in ({}, {"d": torch.randn(3, dtype=torch.float64)}, {"d": torch.arange(3)}):
        tree = p | other
        g: Any = {k: torch.randn_like(x) for k, x in tree.items() if x.is_floating_point()}
        g = {k: g.get(k) for k in tree}
        state = tx.init(tree)
        assert_equal(fa.step(tx, g, state, tree), by_rule(fa.step, tx, g, state, tree))


def test_errors_are_those_of_the_rule() -> None:
    tx, p = fa.chain(fa.trace(0.9), fa.scale(-0.1)), params()
    state = tx.init(p)
    fa.step(tx, gradients(p, 0), state, p)
    wrong = gradients(p, 0) | {"b": torch.ones(7)}
    for donate in (False, True):
        with pytest.raises(ValueError, match=r"updates\['b'\] must have the shape"):
            fa.step(tx, wrong, state, p, donate=donate)
    with pytest.raises(ValueError, match="is missing"):
        tx.update({"a": p["a"]}, state, p)


def test_shared_memory_is_refused_as_by_the_rule() -> None:
    tx, x = fa.chain(fa.trace(0.9), fa.scale(-0.1)), torch.randn(8)
    p = {"a": x[:5], "b": x[3:]}
    g, state = {k: torch.ones(5) for k in p}, tx.init({k: torch.ones(5) for k in p})
    with pytest.raises(ValueError, match="share memory"):
        fa.step(tx, g, state, p, donate=True)
    assert fa.step(tx, g, state, p)[0]["a"].shape == (5,)


@pytest.mark.parametrize("around", ["vmap", "grad", "inference", "autocast", "no_grad"])
def test_the_first_call_may_be_anywhere(around: str, by_rule: Any) -> None:
    tx = fa.chain(fa.clip(0.5), fa.trace(0.123), fa.scale(-0.1))
    p, g = torch.randn(3, 5), torch.randn(3, 5)
    state = tx.init(p)
    whole.forget()

    def step(g: Any, p: Any) -> Any:
        return fa.step(tx, g, state, p)[0]

    if around == "vmap":
        one = tx.init(p[0])
        got: Any = torch.func.vmap(lambda g, p: fa.step(tx, g, one, p)[0])(g, p)
    elif around == "grad":
        assert torch.func.grad(lambda p: step(p * 2, p).sum())(p).isfinite().all()
        got = step(g, p)
    else:
        modes: Any = {
            "inference": torch.inference_mode,
            "autocast": partial(torch.autocast, "cpu"),
            "no_grad": torch.no_grad,
        }
        with modes[around]():
            got = step(g, p)
    assert torch.equal(got, by_rule(step, g, p))


def test_programs_are_forgotten() -> None:
    p = {"a": torch.ones(2)}
    for k in range(whole._MOST + 10):
        tx = fa.chain(fa.params_ema(0.9, every=k + 1))
        tx.update(p, tx.init(p), p)
    assert len(whole._entries) <= whole._MOST


@pytest.mark.parametrize("wrong", [1.0, "text", None])
def test_leaves_that_are_no_tensors_are_left_to_the_rule(wrong: Any) -> None:
    tx, p = fa.chain(fa.trace(0.9), fa.scale(-0.1)), params()
    state = tx.init(p)
    for g, q in ((gradients(p, 0) | {"a": wrong}, p), (gradients(p, 0), p | {"a": wrong})):
        if g["a"] is None:
            assert tx.update(g, state, q)[0]["a"] is None
        elif g["a"] is wrong:
            with pytest.raises(TypeError, match=r"updates\['a'\] must be a tensor or None"):
                tx.update(g, state, q)
        else:
            assert tx.update(g, state, q)[0]["a"].shape == (3, 4)


def test_sums_keep_their_order_in_any_layout(by_rule: Any) -> None:
    tx, big = fa.clip_by_global_norm(1e-3), torch.randn(300, 301)
    for g in (big, big.t(), torch.randn(2, 5, 8, 9).to(memory_format=torch.channels_last)):
        tree = {"a": g, "b": torch.randn(3)}
        state = tx.init(tree)
        assert_equal(tx.update(tree, state), by_rule(tx.update, tree, state))
        found = whole.update(tx.update.transform, tree, state, None)
        assert (found is None) == (g is not big), "which would add up in the order of memory"


@pytest.mark.parametrize("kind", [tuple, list])
def test_parameters_that_look_like_the_state_of_a_chain(kind: Any, by_rule: Any) -> None:
    tx, p = fa.chain(fa.clip(0.5), fa.scale(-0.1)), kind([torch.randn(3), torch.randn(2)])
    g, state = kind([torch.randn(3), torch.randn(2)]), tx.init(p)
    assert whole.why_not(tx.update.transform, g, state, p) is None
    assert_equal(fa.step(tx, g, state, p), by_rule(fa.step, tx, g, state, p))


def test_numbers_of_numpy_make_one_program(by_rule: Any) -> None:
    p = params()
    g, state = gradients(p, 0), fa.scale(0.5).init(p)
    fa.scale(0.5).update(g, state)
    known = len(whole._entries)
    for k in range(3):
        tx = fa.scale(np.float64(0.3) + k)
        assert_equal(tx.update(g, state), by_rule(tx.update, g, state))
    assert len(whole._entries) == known


def test_a_bound_that_is_nan_is_left_to_the_rule(by_rule: Any) -> None:
    p = params()
    g, state = gradients(p, 0), fa.clip(0.5).init(p)
    for bound in (0.5, NAN):
        tx = fa.clip(torch.tensor(bound))
        assert_same(tx.update(g, state), by_rule(tx.update, g, state))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_step_that_is_refused_at_the_last_moment_is_taken_by_the_rule(
    in_place: bool, by_rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tx, p = (
        fa.chain(fa.trace(0.9), fa.scale_by_learning_rate(fa.linear_schedule(0.1, 0.0, 9))),
        params(),
    )
    g, state = gradients(p, 0), tx.init(p)
    wanted = by_rule(fa.step, tx, g, state, p)
    monkeypatch.setattr(machine, "write", lambda *_: False)
    monkeypatch.setattr(donation, "may_write", lambda *_: in_place)
    old = cloned((p, state))
    assert_equal(fa.step(tx, g, old[1], old[0], donate=True), wanted)
    assert_equal(old, wanted)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_leaves_that_have_no_state_are_not_taken_for_others_without_a_gradient(
    shape: Any, without: Any
) -> None:
    """An integer has neither; the gradient of another leaf may be missing in one step alone."""

    def run() -> Any:
        torch.manual_seed(0)
        p = {"n": torch.ones(shape, dtype=torch.int64), "a": torch.randn(3), "b": torch.randn(4)}
        tx = fa.chain(fa.ema(0.7), fa.scale(-0.1), fa.params_ema(0.7))
        state, found = tx.init(p), []
        for missing in ((), ("b",), ()):
            g = {"n": None} | {k: None if k in missing else torch.randn_like(p[k]) for k in "ab"}
            p, state = fa.step(tx, g, state, p)
            found.append(state[2].average)
        return [[x[k].tolist() for k in "ab"] for x in found]

    assert run() == without(run)
