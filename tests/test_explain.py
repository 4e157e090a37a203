"""What ``explain`` says of a step, and that it is what the step does.

The file is longer than others: each reason not to take a leaf is tried.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recipes import RECIPES, Recipe
from torch import Tensor
from torch.func import grad, vmap
from trees import assert_equal, clone

import functional_adamax as fa
from functional_adamax._core import plans, transform
from functional_adamax._execution import by_rule, choice, inplace
from functional_adamax._execution.program import machine
from functional_adamax._execution.triton import executor as triton

needs_machine = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")


def tree(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"a": torch.randn(3, 4, dtype=dtype), "b": torch.randn(5, dtype=dtype)}


def said(*args: Any, **options: Any) -> dict[str, tuple[str, str | None]]:
    """The executor of each leaf, and why it is no faster one."""
    return {x.path: x[1:] for x in fa.explain(*args, **options).leaves}


def alike(*args: Any, **options: Any) -> tuple[str, str | None]:
    """What holds for all leaves."""
    (kind,) = set(said(*args, **options).values())
    return kind


def chained(lr: Any = 0.1) -> fa.GradientTransformation:
    return fa.chain(
        fa.clip_by_global_norm(1.0), fa.scale_by_adamax(), fa.scale_by_learning_rate(lr)
    )


def nothing(params: Any) -> fa.EmptyState:
    return fa.EmptyState()


def halved(updates: Any, state: Any, params: Any = None) -> Any:
    return {name: u / 2 for name, u in updates.items()}, state


@needs_machine
@pytest.mark.parametrize("donate", [False, True])
def test_fast_steps_have_no_reason(donate: bool) -> None:
    assert alike(fa.adamax(0.1), tree(), donate=donate) == ("kernel", None)
    assert alike(fa.adamax(lambda count: 0.1), tree(), donate=donate) == ("kernel", None)
    assert alike(fa.adam(0.1), tree(), donate=donate) == ("program", None)
    assert alike(fa.sgd(0.1), tree(torch.float64), donate=donate) == ("program", None)
    assert alike(chained(), tree(), donate=donate) == ("program", None)
    assert alike(fa.scale(0.5), tree(), donate=donate) == ("program", None)


RATE = torch.tensor(0.1, requires_grad=True)
SLOW: dict[str, tuple[Any, Any, str, str]] = {
    "halves": (fa.sgd(0.1, weight_decay=0.1), "halves", "the rule", "it adds a product in torch.b"),
    "decay in halves": (
        fa.adamax(weight_decay=0.1),
        "halves",
        "the rule",
        "the kernel does not take bfloat16 with a coupled weight decay",
    ),
    "a rate for each element": (fa.adamax(torch.ones(1, 5)), "plain", "the rule", "lr is no num"),
    "floor": (fa.adamax(derivative_floor=0.1), "plain", "the rule", "it calls expand, which is"),
    "learned": (fa.adamax(RATE), "plain", "one node of autograd", "lr is followed by autograd"),
    "recorded": (fa.adam(), "recorded", "one node of autograd", "autograd records it"),
    "strided": (fa.adam(), "strided", "the rule", "its tensors are not dense in memory, or not"),
    "shape": (fa.centralize(), "plain", "as written", "it asks for the ndim of a leaf"),
    "chain": (
        fa.chain(fa.centralize(), chained()),
        "plain",
        "as written",
        "it asks for the ndim of a leaf",
    ),
    "chain, recorded": (chained(), "recorded", "as written", "autograd records it"),
    "chain, strided": (
        chained(),
        "strided",
        "as written",
        "its leaves are not all dense",
    ),
    "wrapper": (fa.sam(fa.sgd(0.1)), "plain", "as written", "sam does not treat each leaf alone"),
    "pair": (
        fa.GradientTransformation(nothing, halved),
        "plain",
        "as written",
        "it is a pair",
    ),
}


@needs_machine
@pytest.mark.parametrize("case", SLOW)
def test_slow_steps_say_why(case: str) -> None:
    tx, kind, executor, why = SLOW[case]
    dtype = torch.bfloat16 if kind == "halves" else torch.float32
    p = [torch.zeros(2, 5, dtype=dtype)] if case.startswith("a rate") else tree(dtype)
    if kind == "recorded":
        p = {name: x.requires_grad_() for name, x in tree().items()}
    if kind == "strided":
        p = {name: torch.zeros(4, 6)[:, ::2] for name in "ab"}
    got, reason = alike(tx, p)
    assert got == executor
    assert reason is not None
    assert reason.startswith(why)


@needs_machine
def test_each_leaf_is_explained_for_itself() -> None:
    p: dict[str, Any] = {"a": torch.ones(3), "b": torch.ones(3).bfloat16(), "c": None}
    assert said(fa.adamax(weight_decay=0.1), p) == {
        "params['a']": ("kernel", None),
        "params['b']": (
            "the rule",
            "the kernel does not take bfloat16 with a coupled weight decay",
        ),
        "params['c']": ("none", "it has no gradient"),
    }
    found = said(fa.adamax(weight_decay=0.1), p, donate=True)
    assert found["params['a']"] == (
        "torch in place",
        "the kernel writes over all leaves or none, and does not take another one",
    )
    grads = {"a": None, "b": torch.ones(5)}
    assert said(chained(), tree() | {"a": torch.ones(5)}, grads) == {
        "params['a']": ("none", "it has no gradient"),
        "params['b']": ("program", None),
    }


def test_it_prints_as_a_table_or_as_one_line() -> None:
    rows = (
        choice.Taken("params['weight']", "program", None),
        choice.Taken("params['b']", "the rule", "autograd records it"),
    )
    assert repr(fa.Explanation(rows)) == (
        "params['weight']  program\nparams['b']       the rule  autograd records it"
    )
    assert repr(fa.Explanation(rows[:1])) == "every leaf  program"
    assert repr(fa.Explanation((rows[1], rows[1]))) == "every leaf  the rule  autograd records it"
    assert repr(fa.explain(fa.adamax(), {})) == "no leaves"


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_nothing_is_written_whatever_is_explained(recipe: Recipe, donate: bool) -> None:
    tx, p = recipe.default(), tree()
    g, state = tree(), tx.init(p)
    before = clone((g, state, p))
    versions = [x._version for x in p.values()]
    found = fa.explain(tx, p, g, state, donate=donate)
    assert [x.path for x in found.leaves] == ["params['a']", "params['b']"]
    assert_equal((g, state, p), before)
    assert [x._version for x in p.values()] == versions


@needs_machine
@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_step_does_what_is_said(
    recipe: Recipe, donate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without torch's operations there are those that kernel and programs take, and no others."""
    tx, p = recipe.default(), tree()
    g, state = tree(), tx.init(p)
    executor, why = alike(tx, p, g, state, donate=donate)
    assert (why is None) == (executor in ("kernel", "program"))

    def missing(*_: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(by_rule, "part", missing)
    monkeypatch.setattr(by_rule, "written", missing)
    monkeypatch.setattr(inplace, "part", lambda work, where: {})  # which leaves them to those
    monkeypatch.setattr(plans, "by_update", missing)
    monkeypatch.setattr(transform, "by_update", missing)
    if why is None:
        fa.step(tx, g, state, p, donate=donate)
    else:
        with pytest.raises(NotImplementedError):
            fa.step(tx, g, state, p, donate=donate)


def test_why_a_gpu_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNCTIONAL_ADAMAX_TRITON", "0")
    on_gpu: Any = SimpleNamespace(g=[SimpleNamespace(device=torch.device("cuda"))])
    assert triton.why_not(on_gpu, 0) == "switched off by FUNCTIONAL_ADAMAX_TRITON=0"
    on_cpu: Any = SimpleNamespace(g=[torch.zeros(1)])
    assert triton.why_not(on_cpu, 0) is None


def test_a_schedule_is_asked_once() -> None:
    asked: list[int] = []

    def schedule(count: Tensor) -> float:
        asked.append(int(count))
        return 0.1

    for tx in (fa.adamax(schedule), chained(schedule)):
        fa.explain(tx, tree())
    assert asked == [0, 0]


@needs_machine
def test_mistakes_are_those_of_a_step() -> None:
    p = tree()
    with pytest.raises(TypeError, match=r"tx must be a pair \(init, update\) of functions"):
        fa.explain(fa.adamax, p)  # type: ignore[arg-type]
    for tx in (fa.adamax(), chained()):
        with pytest.raises(ValueError, match=r"donated tensors must not share memory"):
            fa.explain(tx, p, p, donate=True)
        with pytest.raises(ValueError, match=r"must have the structure of"):
            fa.explain(tx, p, {"a": p["a"]})


def test_without_the_machine_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_machine", None)
    executor, why = alike(chained(), tree())
    assert executor == "as written"
    assert why is not None
    assert why.startswith("programs do not run here: ")
    assert alike(fa.sgd(0.1), tree()) == ("the rule", "the machine is not built, or switched off")


@needs_machine
def test_inside_of_transforms_of_torch_func() -> None:
    """Under ``vmap`` alone programs step all members."""
    found = []

    def member(p: Tensor) -> Tensor:
        for donate in (False, True):
            found.extend(
                alike(tx, [p], donate=donate) for tx in (fa.adamax(), fa.sgd(0.1), chained())
            )
        return p.sum()

    vmap(member)(torch.ones(3, 2))
    assert set(found) == {("program", None)}
    assert len(found) == 6
    found.clear()
    vmap(grad(member))(torch.ones(3, 2))
    why = "a transform of torch.func, a compiler or a mode follows it"
    assert set(found) == {("one node of autograd", why), ("as written", why)}


@needs_machine
def test_why_programs_do_not_take_members_of_a_vmap() -> None:
    found = []

    def member(p: Tensor) -> Tensor:
        found.extend(alike(tx, [p]) for tx in (fa.sgd(0.1), chained(), fa.chain(fa.centralize())))
        return p

    vmap(member)(torch.ones(3, 2, requires_grad=True))
    why = "autograd records it"
    assert found[:2] == [("one node of autograd", why), ("as written", why)]
    assert found[2] == ("as written", "it asks for the ndim of a leaf")
