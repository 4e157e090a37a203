"""A step before it is taken: checks and computations first, then the writes, all or none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax._core import plans


def planned(params: Any, donate: bool, seen: list[str], update: Any = None) -> plans.Plan:
    def step(updates: Any, state: Any, params: Any, **extra: Any) -> Any:
        seen.append(f"updated {extra}")
        return (update or torch.neg)(updates), state + 1

    return plans.by_update(step, torch.ones(2), torch.zeros(1), params, donate, {"value": 3})


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("checked", [False, True])
def test_nothing_is_written_before_it_is_called(donate: bool, checked: bool) -> None:
    p, seen = torch.tensor([1.0, 2.0]), list[str]()
    plan = planned(p, donate, seen)
    assert seen == []
    if checked:
        plan.check()
        plan.check()
        assert seen == ["updated {'value': 3}"], "what is checked is not computed again"
        assert plan.new is not None
        assert plan.new[0].tolist() == [0.0, 1.0]
    assert p.tolist() == [1.0, 2.0]
    assert not plan.in_place
    new, state = plan()
    assert len(seen) == 1
    assert new.tolist() == [0.0, 1.0]
    assert state.tolist() == [1.0]
    assert plan.in_place == donate == (new is p)
    assert p.tolist() == ([0.0, 1.0] if donate else [1.0, 2.0])


def test_a_problem_is_told_and_the_step_is_still_taken() -> None:
    p, g = torch.ones(2), torch.ones(2)
    update = fa.scale(-1.0).update
    plan = plans.by_update(update, g, fa.EmptyState(), {"a": p, "b": p}, True, {})
    with pytest.raises(ValueError, match="must be a dict"):
        plan.check()
    plan = plans.by_update(update, {"a": g, "b": g}, fa.EmptyState(), {"a": p, "b": p[:]}, True, {})
    plan.check()
    assert plan.problem is not None
    assert "params['a'] and params['b'] do" in plan.problem
    new, _ = plan()
    assert new["a"].tolist() == new["b"].tolist() == [0.0, 0.0]
    assert p.tolist() == [1.0, 1.0]


def test_an_error_comes_with_the_check_and_leaves_all_as_it_was() -> None:
    p = torch.ones(2)
    plan = planned(p, True, [], update=lambda u: torch.ones(3))
    for call in (plan.check, plan):
        with pytest.raises(ValueError, match="updates must have the shape of its parameter"):
            call()
    assert p.tolist() == [1.0, 1.0]


def test_results_that_autograd_records_are_new() -> None:
    rate, p = torch.tensor(0.5, requires_grad=True), torch.ones(2)
    new, _ = planned(p, True, [], update=lambda u: -rate * u)()
    assert new is not p
    assert torch.autograd.grad(new.sum(), rate)[0] == -2.0
    assert p.tolist() == [1.0, 1.0]


def test_results_of_another_dtype_are_new() -> None:
    def update(u: Any, s: Any, p: Any, **extra: Any) -> Any:
        return -u, s.double()

    p = torch.ones(2)
    plan = plans.by_update(update, torch.ones(2), torch.zeros(1), p, True, {})
    new, state = plan()
    assert not plan.in_place
    assert new is not p
    assert state.dtype == torch.float64
