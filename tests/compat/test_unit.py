"""An optimizer's groups are stepped by programs, which find the state where it lies."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax._execution.program import machine
from functional_adamax.compat import Optimizer, _schedules

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")
SIZES = (3, 70, 1, 8)


def chain(lr: Any = 0.1) -> fa.GradientTransformation:
    clip = fa.clip_by_global_norm(1.0)
    return fa.chain(clip, fa.scale_by_adamax(), fa.scale_by_learning_rate(lr))


FACTORIES: dict[str, Callable[..., Any]] = {
    "chain": lambda ps: Optimizer(ps, chain()),
    "factory": lambda ps: Optimizer(ps, chain, lr=0.1),
    "schedule": lambda ps: Optimizer(ps, chain, lr=fa.linear_schedule(0.1, 0.0, 9)),
    "method": lambda ps: Optimizer(ps, fa.adamw, lr=0.1),
    "guard": lambda ps: Optimizer(ps, fa.apply_if_finite(chain(), 2)),
    "injected": lambda ps: Optimizer(ps, fa.inject_hyperparams(chain)(lr=0.1)),
    "average": lambda ps: Optimizer(ps, fa.chain(fa.sgd(0.1), fa.params_ema(0.9))),
    "groups": lambda ps: Optimizer([{"params": ps[:1]}, {"params": ps[1:]}], chain()),
    "coupled": lambda ps: Optimizer(
        [{"params": ps[:1]}, {"params": ps[1:]}], chain(), couple="all"
    ),
    "named": lambda ps: Optimizer(list(zip("dbca", ps, strict=True)), chain()),
}


class Pair:
    """The same optimizer twice; one of them steps without programs."""

    def __init__(self, make: Callable[..., Any], patch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        self.params = [torch.nn.Parameter(torch.randn(n)) for n in SIZES]
        self.others = [torch.nn.Parameter(p.detach().clone()) for p in self.params]
        self.ours, self.theirs = make(self.params), make(self.others)
        self._patch = patch

    def step(self, missing: int | None = None) -> None:
        for i, (p, q) in enumerate(zip(self.params, self.others, strict=True)):
            p.grad = None if i == missing else torch.randn_like(p)
            q.grad = None if p.grad is None else p.grad.clone()
        self.ours.step()
        with self._patch.context() as patch:
            patch.setattr(machine, "_machine", None)
            self.theirs.step()

    def assert_same(self) -> None:
        for p, q in zip(self.params, self.others, strict=True):
            assert torch.equal(p, q)
            entry, other = self.ours.state[p], self.theirs.state[q]
            assert entry.keys() == other.keys()
            assert all(torch.equal(entry[name], other[name]) for name in entry)
        for group, other in zip(self.ours.param_groups, self.theirs.param_groups, strict=True):
            assert group.get("lr") == other.get("lr")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the machine wrote, by the names of its functions."""
    names: list[str] = []
    for name in ("overwrite", "write"):
        real = getattr(machine, name)

        def call(*given: Any, name: str = name, real: Any = real) -> bool:
            done: bool = real(*given)
            names.extend([name] if done else [])
            return done

        monkeypatch.setattr(machine, name, call)
    return names


@pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)
def test_steps_have_the_bits_of_those_without_programs(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, taken: list[str]
) -> None:
    pair = Pair(make, monkeypatch)
    pair.step()
    taken.clear()
    for missing in (None, None, 1, None):
        pair.step(missing)
        pair.assert_same()
    assert len(taken) == 4  # of all groups together


@pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)
def test_after_a_load_entries_are_found_again(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(make, monkeypatch)
    for _ in range(2):
        pair.step()
    for optimizer in (pair.ours, pair.theirs):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for missing in (None, 2, None):
        pair.step(missing)
        pair.assert_same()


def test_a_step_in_one_call_looks_at_everything_before_it_writes(
    monkeypatch: pytest.MonkeyPatch, taken: list[str]
) -> None:
    pair = Pair(FACTORIES["chain"], monkeypatch)
    for _ in range(2):
        pair.step()
    assert taken[-1:] == ["overwrite"]
    before = [p.detach().clone() for p in pair.params]
    for p in pair.params:
        p.grad = torch.randn_like(p)
    entry = pair.ours.state[pair.params[-1]]
    moment = next(name for name, x in entry.items() if x.dim())
    entry[moment] = torch.zeros(2)
    with pytest.raises(ValueError, match="shape"):
        pair.ours.step()
    assert all(torch.equal(p, x) for p, x in zip(pair.params, before, strict=True))


def test_parameters_that_share_memory_are_not_stepped_by_it(taken: list[str]) -> None:
    p = torch.nn.Parameter(torch.ones(4))
    q = torch.nn.Parameter(p.detach())
    optimizer = Optimizer([p, q], fa.chain(fa.trace(0.9), fa.scale(-1.0)))
    for _ in range(3):
        p.grad, q.grad = torch.ones(4), torch.ones(4)
        optimizer.step()
    assert taken == []


def test_a_parameter_that_joins_has_state_made_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(FACTORIES["chain"], monkeypatch)
    pair.ours.zero_grad()
    for i in range(len(SIZES)):
        for p, q in zip(pair.params[: i + 1], pair.others, strict=False):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        pair.ours.step()
        with monkeypatch.context() as patch:
            patch.setattr(machine, "_machine", None)
            pair.theirs.step()
    pair.assert_same()


RATE = 1.0


def own(lr: float) -> fa.GradientTransformation:
    return fa.chain(fa.scale_by_adamax(), fa.scale(-lr * RATE))


def test_a_factory_is_called_while_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = _schedules.transform, []
    monkeypatch.setattr(_schedules, "transform", lambda *x: made.append(1) or real(*x))
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = Optimizer([p], own, lr=0.5)
    p.grad = torch.ones(3)
    optimizer.step()
    made.clear()
    optimizer.step()
    assert not made
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    assert len(made) == 1
    monkeypatch.setattr(sys.modules[__name__], "RATE", 0.0)
    before = p.detach().clone()
    optimizer.step()
    assert len(made) == 2
    assert torch.equal(p, before)
