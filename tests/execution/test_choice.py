"""Who steps which leaves: what the kernel takes at once, what is shared out, what is refused."""

from __future__ import annotations

from typing import Any

import executors
import pytest
import torch
from executors import leaf, needs_kernel

import functional_adamax as fa
import functional_adamax.compat
from functional_adamax._execution import choice
from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.native import kernel


@pytest.fixture(autouse=True)
def _proven() -> None:
    """A kernel is proven when it is first used, and then takes steps at once."""
    for mode in range(3):
        kernel.is_active(torch.float32, torch.float32, mode)
    kernel.is_active(torch.bfloat16, torch.float32, 0)


@pytest.mark.skipif(kernel._native is None, reason="built without a compiler")
@pytest.mark.parametrize(
    "case", ["plain", "no gradient", "integer", "tensor rate", "schedule", "shared"]
)
def test_which_donated_steps_the_kernel_takes_at_once(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    real = kernel.overwrite
    monkeypatch.setattr(kernel, "overwrite", lambda *a: answers.append(real(*a)) or answers[-1])
    lr = torch.tensor(0.1) if case == "tensor rate" else 0.1
    tx = fa.adamax(lr=fa.constant_schedule(0.1) if case == "schedule" else lr)
    p = [torch.ones(3), torch.ones(2)]
    g = [torch.ones(3), None if case == "no gradient" else torch.ones(2)]
    if case == "shared":
        g[0] = p[0]
    if case == "integer":
        p[1], g[1] = torch.tensor([1, 1]), None
    state = tx.init(p)
    if case == "shared":
        with pytest.raises(ValueError, match=r"params\[0\] and grads\[0\] do"):
            fa.step(tx, g, state, p, donate=True)
    else:
        new, after = fa.step(tx, g, state, p, donate=True)
        assert new is p
        assert p[0].tolist() == pytest.approx([0.9] * 3)
        assert p[1].tolist() == pytest.approx([0.9 if g[1] is not None else 1.0] * 2)
    assert answers == [case != "shared"]


@pytest.mark.skipif(kernel._native is None, reason="built without a compiler")
@pytest.mark.parametrize(
    ("case", "taken"),
    {
        "plain": True,
        "update": True,
        "no params": True,
        "no gradient": True,
        "no gradient, wrong parameter": False,
        "no gradient, halves": True,
        "no state": True,
        "tensor rate": True,
        "rate per leaf": False,
        "recorded rate": True,  # within the node of autograd
        "recorded parameter": True,
        "recorded parameter, not read": True,
        "recorded, but not in no_grad": True,
        "floor": False,
        "other layout": False,
        "missing parameter": False,
    }.items(),
)
def test_which_pure_steps_the_kernel_takes_at_once(
    case: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have the bits of the rule, and what has no gradient stays the same tensor."""
    answers = []
    real = kernel.stepped
    lr: Any = {
        "tensor rate": torch.tensor([0.1]),
        "rate per leaf": [0.1, 0.2],
        "recorded rate": torch.tensor(0.1, requires_grad=True),
    }.get(case, 0.1)
    reads_none = case in ("no params", "recorded parameter, not read")
    tx = fa.adamax(lr, weight_decay=0.0 if reads_none else 0.1)
    if case == "floor":
        tx = fa.adamax(lr, derivative_floor=0.1)
    p: list[Any] = [torch.randn(4, 3), torch.randn(2)]
    g: list[Any] = [torch.randn(4, 3), torch.randn(2)]
    if case == "no gradient, halves":
        tx = fa.adamax(lr, state_dtype=torch.float32)
        p, g = ([x.bfloat16() for x in tree] for tree in (p, g))
    if case == "no state":
        p[1], g[1] = torch.tensor([1, 2]), None
    state = tx.init(p)
    if case.startswith("no gradient"):
        g[1] = None
    if case == "no gradient, wrong parameter":
        p[1] = torch.randn(3)
    if case == "missing parameter":
        p[1] = None
    if case == "other layout":
        g[0] = g[0].t().contiguous().t()
    if case.startswith("recorded") and case != "recorded rate":
        p[0].requires_grad_()

    def run() -> Any:
        with torch.set_grad_enabled("no_grad" not in case):
            if case in ("update", "recorded parameter, not read"):
                return tx.update(g, state, p)
            if case == "no params":
                return tx.update(g, state)
            return fa.step(tx, g, state, p)

    monkeypatch.setattr(kernel, "stepped", lambda *a: None)
    if case in ("no gradient, wrong parameter", "missing parameter"):
        monkeypatch.setattr(kernel, "stepped", lambda *a: answers.append(real(*a)) or answers[-1])
        with pytest.raises(ValueError, match=r"params\[1\] must fit its state"):
            run()
    else:
        wanted = run()  # which also proves the kernel for such leaves
        monkeypatch.setattr(kernel, "stepped", lambda *a: answers.append(real(*a)) or answers[-1])
        found = run()
        if g[1] is None:
            assert found[0][1] is p[1]
            assert all(found[1][k][1] is state[k][1] for k in range(3))
        a, b = (torch.utils._pytree.tree_leaves(x) for x in (found, wanted))
        assert all(x is y or torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert any(x is not None for x in answers) == taken


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("bad", [[torch.zeros(2)], torch.zeros(3)], ids=["structure", "shape"])
def test_what_has_no_gradient_is_checked_too(bad: Any, donate: bool) -> None:
    tx = fa.adamax()
    p = [torch.ones(3), torch.ones(2)]
    state = tx.init(p)
    state.exp_inf[1] = bad
    before = p[0].clone()
    with pytest.raises((TypeError, ValueError), match=r"state\.exp_inf\[1\] must"):
        fa.step(tx, [torch.ones(3), None], state, p, donate=donate)
    assert torch.equal(p[0], before)


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


class Executor:
    """Takes some of the leaves, or all of the work, and says what it was asked for."""

    def __init__(self, name: str, takes: tuple[int, ...] = ()) -> None:
        self.name, self.takes, self.asked = name, takes, []

    def compute(self, work: Any, add: bool) -> Any:
        self.asked.append(len(work.t))
        return [[self.name]] if self.takes else None

    def part(self, work: Any, where: list[int], add: bool) -> Any:
        self.asked.append(list(where))
        return {i: [self.name, *work.leaf(i)[2:3], "m", "u"] for i in where if i in self.takes}


def asked(monkeypatch: pytest.MonkeyPatch, whole: Executor, *parts: Executor, lr: Any = 0.1) -> Any:
    """What is computed of four leaves, the third of which has no gradient."""
    p = [torch.ones(i) for i in range(1, 5)]
    g = [x if x.numel() != 3 else None for x in p]
    tx = fa.adamax(lr)
    work = tx.update.transform.work(g, tx.init(p), p)
    monkeypatch.setattr(choice, "_order", lambda work: (whole, parts))
    return choice.compute(work, False)


def test_each_leaf_goes_to_the_first_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, rest = Executor("a", (1,)), Executor("b", (0, 1)), Executor("c", (0, 1, 3))
    last = Executor("d")
    updates, *_ = asked(monkeypatch, Executor("none"), first, second, rest, last)
    assert updates == ["b", "a", None, "c"]
    assert [x.asked for x in (first, second, rest)] == [[[0, 1, 3]], [[0, 3]], [[3]]]
    assert last.asked == [], "nothing is left"


def test_a_leaf_with_a_rate_for_each_element_is_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    lr = [torch.ones(1), torch.ones(2), torch.ones(3), torch.ones(())]
    part = Executor("a", (0, 1, 3))
    updates, *_ = asked(monkeypatch, Executor("none"), part, lr=lr)
    assert part.asked == [[0, 3]]
    assert updates == ["a", pytest.approx([-1.0, -1.0]), None, "a"]


def test_what_takes_all_of_the_work_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, part = Executor("whole", (0,)), Executor("part")
    assert asked(monkeypatch, whole, part) == [["whole"]]
    assert whole.asked == [4]
    assert part.asked == []
