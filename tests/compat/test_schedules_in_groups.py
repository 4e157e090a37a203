"""What schedules leave in groups and checkpoints, and how a run goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scheduled_groups import FALLING, HALF, rates, stepped
from torch import nn
from wrapped import parameters

import functional_adamax as fa
from functional_adamax import compat
from functional_adamax.compat import _schedules
from functional_adamax.compat._shown import Said


def resumed(optimizer: Any, fresh: Any) -> Any:
    fresh.load_state_dict(optimizer.state_dict())
    return fresh


def test_a_checkpoint_without_a_schedule_is_taken_up_by_one() -> None:
    (w,), (v,) = parameters(3), parameters(3)
    constant = compat.Optimizer([w], fa.adam, lr=0.3)
    constant.step()
    scheduled = compat.Optimizer([v], fa.adam, lr=HALF)
    scheduled.load_state_dict(constant.state_dict())
    scheduled.step()
    assert scheduled.param_groups[0]["lr"] == 0.5


def test_a_run_goes_on_with_another_schedule() -> None:
    short, long = (fa.linear_schedule(0.1, 0.0, n) for n in (10, 100))
    state = stepped(compat.Optimizer(parameters(3), fa.adam, lr=short), 5).state_dict()
    resumed = compat.Optimizer(parameters(3), fa.adam, lr=long)
    resumed.load_state_dict(state)
    assert rates(stepped(resumed, 2)) == [pytest.approx(long(6))]


@pytest.mark.parametrize("steps", range(1, 10))
def test_a_run_goes_on_where_the_count_stood_still(steps: int) -> None:
    def gathered(lr: Any) -> Any:
        return fa.multi_steps(fa.adamax(lr), 4)

    optimizer = stepped(compat.Optimizer(parameters(3), gathered, lr=FALLING), steps)
    resumed = compat.Optimizer(parameters(3), gathered, lr=FALLING)
    resumed.load_state_dict(optimizer.state_dict())
    assert rates(stepped(resumed, 8)) == rates(stepped(optimizer, 8))


def test_a_checkpoint_has_numbers_only() -> None:
    state = stepped(compat.Optimizer(parameters(3), fa.adam, lr=FALLING)).state_dict()
    (group,) = state["param_groups"]
    assert group["schedules"] == ["lr"]
    assert group["lr"] == group["scheduled_lr"] == 0.1


def test_a_checkpoint_that_is_older_than_a_schedule() -> None:
    state = stepped(compat.Optimizer(parameters(3), fa.adam, lr=FALLING), 3).state_dict()
    for key in ("weight_decay", "scheduled_lr"):
        del state["param_groups"][0][key]
    resumed = compat.Optimizer(parameters(3), fa.adam, lr=FALLING, weight_decay=HALF)
    resumed.load_state_dict(state)
    stepped(resumed)
    assert rates(resumed) == [pytest.approx(0.097)]
    assert resumed.param_groups[0]["weight_decay"] == 0.5 * 0.5**3


def test_groups_that_come_and_go_keep_their_schedules() -> None:
    a, b = parameters(3, 3)
    fast = fa.linear_schedule(0.5, 0.0, 100)
    groups = [{"params": [a], "lr": FALLING}, {"params": [b], "lr": fast}]
    optimizer = stepped(compat.Optimizer(groups, fa.adam), 3)
    del optimizer.param_groups[0]
    assert rates(stepped(optimizer, 3)) == [pytest.approx(0.475)]
    optimizer.add_param_group({"params": [a], "lr": HALF})
    assert rates(stepped(optimizer)) == [pytest.approx(0.47), 0.5 * 0.5**3]  # as a had three


def test_hooks_of_checkpoints_see_numbers() -> None:
    optimizer = compat.Optimizer(parameters(3), fa.adam, lr=FALLING)
    seen: list[Any] = []
    optimizer.register_state_dict_post_hook(lambda _, state: seen.append(state["param_groups"]))
    assert optimizer.state_dict()["param_groups"] is seen[0]
    assert seen[0][0]["schedules"] == ["lr"]
    assert list(optimizer.param_groups[0]["schedules"]) == ["lr"]


def test_flat_distributed_checkpoints() -> None:
    from torch.distributed.checkpoint import state_dict as dcp

    def trained() -> Any:
        torch.manual_seed(0)
        module = nn.Linear(3, 1)
        return module, stepped(compat.Optimizer(module.parameters(), fa.adamaxw, lr=FALLING), 3)

    options = dcp.StateDictOptions(flatten_optimizer_state_dict=True)
    (module, optimizer), (other, resumed) = trained(), trained()
    resumed.param_groups[0]["lr"] = 0.5
    saved = dcp.get_optimizer_state_dict(module, optimizer, options=options)
    dcp.set_optimizer_state_dict(other, resumed, saved, options=options)
    assert rates(stepped(resumed)) == rates(stepped(optimizer)) == [pytest.approx(0.097)]


def test_groups_given_to_another_optimizer_leave_their_schedules() -> None:
    def plain(lr: float = 0.1) -> Any:
        return fa.chain(fa.scale(1.0), fa.scale(-lr))

    first = stepped(compat.Optimizer(parameters(3), plain, lr=HALF), 2)
    second = compat.Optimizer(first.param_groups, plain)
    assert rates(stepped(second, 2)) == [0.25]
    assert "scheduled_lr" not in second.param_groups[0]


def test_names_that_groups_need() -> None:
    def colliding(lr: float, scheduled_lr: float = 1.0) -> Any:
        return fa.sgd(lr * scheduled_lr)

    with pytest.raises(TypeError, match=r"factory takes \['scheduled_lr'\], under which"):
        compat.Optimizer(parameters(3), colliding, lr=0.1)
    groups = [{"params": parameters(3), "schedules": "cosine"}]
    optimizer = stepped(compat.Optimizer(groups, fa.adam))
    assert optimizer.state_dict()["param_groups"][0]["schedules"] == "cosine"


def test_a_constant_rate_that_was_a_schedule_before_is_no_value_set() -> None:
    scheduled = stepped(compat.Optimizer(parameters(3), fa.adam, lr=FALLING), 2)
    constant = compat.Optimizer(parameters(3), fa.adam, lr=0.3)
    constant.load_state_dict(scheduled.state_dict())
    constant.param_groups[0]["lr"] = 0.3
    scheduled.load_state_dict(stepped(constant).state_dict())
    assert rates(stepped(scheduled)) == [pytest.approx(0.098)]  # whose count stood still


@pytest.mark.parametrize("factory", [fa.adamaxw, fa.adam], ids=["adamaxw", "adam"])
def test_schedules_come_and_go_between_checkpoints(factory: Any) -> None:
    """What they left in the state is no state of a parameter: it may be missing, or be too much."""
    given = {"lr": FALLING, "weight_decay": HALF, "betas": lambda count: (0.9, 0.99)}
    scheduled = stepped(compat.Optimizer(parameters(3), factory, **given), 2)
    constant = compat.Optimizer(parameters(3), factory, lr=0.1)
    constant.load_state_dict(scheduled.state_dict())
    again = compat.Optimizer(parameters(3), factory, **given)
    again.load_state_dict(stepped(constant).state_dict())
    stepped(again)
    assert again.param_groups[0]["weight_decay"] == 0.125  # whose count stood still
    fresh = stepped(compat.Optimizer(parameters(3), factory, lr=0.1))
    again.load_state_dict(fresh.state_dict())
    stepped(again)
    assert again.param_groups[0]["weight_decay"] == 0.5


def test_what_another_optimizer_kept_in_a_group_is_forgotten() -> None:
    for kept in (["lr"], {"lr": HALF}):
        group = {"lr": 0.1, "scheduled_lr": 0.1, "scheduled_initial_lr": 0.1, "schedules": kept}
        _schedules.take(group, fa.adam, {"lr": 0.1})
        assert group == {"lr": 0.1}
    foreign = {"lr": 0.1, "schedules": "cosine"}
    _schedules.take(foreign, fa.adam, {"lr": 0.1})
    assert foreign == {"lr": 0.1, "schedules": "cosine"}, "which is not ours"


def test_a_new_group_shows_the_first_value() -> None:
    group: dict[str, Any] = {"lr": HALF}
    _schedules.take(group, fa.adam, {"lr": HALF, "eps": 1e-8})
    assert group == {"lr": 0.5, "scheduled_lr": 0.5, "schedules": {"lr": HALF}}
    assert _schedules.of(group) == {"lr": HALF}
    assert _schedules.of({"schedules": ["lr"]}) == {}


def test_the_value_of_a_group_is_the_schedule_while_nobody_set_another() -> None:
    def ruled(**group: Any) -> Any:
        given = {"lr": 0.5, "scheduled_lr": 0.5, "schedules": {"lr": HALF}} | group
        found = _schedules.value(given, "lr", Said())
        return found(torch.tensor(1)) if callable(found) else found

    scheduled = HALF(1)
    assert ruled() == scheduled
    assert ruled(lr=0.7) == 0.7
    assert ruled(initial_lr=0.5, scheduled_initial_lr=0.5, lr=0.5) == scheduled
    assert ruled(initial_lr=0.5, scheduled_initial_lr=0.5, scheduled_lr=0.4) == scheduled
    assert ruled(initial_lr=0.5, scheduled_initial_lr=None) == 0.5, "a scheduler rules"
    assert ruled(schedules={}) == 0.5


def test_names_that_schedules_need() -> None:
    _schedules.check_names({"lr": 0.1, "scheduled": 1})
    for taken in ("schedules", "scheduled_lr"):
        with pytest.raises(TypeError, match=rf"factory takes \['{taken}'\], under which groups"):
            _schedules.check_names({"lr": 0.1, taken: 1})
