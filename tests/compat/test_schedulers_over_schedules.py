"""Schedules of ours in the groups, and schedulers of torch attached: who sets the rate."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as torch_schedulers
from wrapped import parameters

import functional_adamax as fa
from functional_adamax import compat

WARM = fa.warmup_cosine_decay_schedule(0.0, 0.1, warmup_steps=4, decay_steps=20)
FALLING = fa.cosine_decay_schedule(0.1, 20)
STEPS = 12
WORDS = "was set to .* over its schedule, .*: the scheduler rules from now on"


def built(schedule: Any = WARM, **given: Any) -> Any:
    return compat.Optimizer(parameters(3), fa.adamaxw, lr=schedule, **given)


def used(optimizer: Any, scheduler: Any = None, steps: int = STEPS, *given: Any) -> list[float]:
    """The rates that the steps use."""
    rates = []
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, 0.3)
        optimizer.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
        if scheduler is not None:
            scheduler.step(*given)
    return rates


def one(_: int) -> float:
    return 1.0


def sequence(optimizer: Any) -> Any:
    parts = [torch_schedulers.LambdaLR(optimizer, one) for _ in range(2)]
    return torch_schedulers.SequentialLR(optimizer, parts, milestones=[5])


LEAVING = {
    "LambdaLR": lambda o: torch_schedulers.LambdaLR(o, one),
    "ConstantLR": lambda o: torch_schedulers.ConstantLR(o, factor=1.0),
    "MultiplicativeLR": lambda o: torch_schedulers.MultiplicativeLR(o, one),
    "LinearLR": lambda o: torch_schedulers.LinearLR(o, start_factor=1.0),
    "StepLR later": lambda o: torch_schedulers.StepLR(o, step_size=100),
    "SequentialLR": sequence,
    "ChainedScheduler": lambda o: torch_schedulers.ChainedScheduler(
        [torch_schedulers.LambdaLR(o, one), torch_schedulers.ConstantLR(o, factor=1.0)]
    ),
}


@pytest.mark.parametrize("schedule", [WARM, FALLING], ids=["from 0", "from above"])
@pytest.mark.parametrize("make", LEAVING.values(), ids=list(LEAVING))
def test_a_schedule_rules_under_a_scheduler_that_leaves_the_rate(make: Any, schedule: Any) -> None:
    alone, attended = built(schedule), built(schedule)
    assert used(attended, make(attended)) == used(alone)
    found, wanted = (x.param_groups[0]["params"][0] for x in (attended, alone))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("factor", [0.5, 0.0], ids=["half", "none"])
def test_a_warm_up_from_zero_rules_under_any_factor(factor: float) -> None:
    """A multiple of an initial rate of 0 is 0: it says nothing."""
    alone, attended = built(), built()
    scheduler = torch_schedulers.LambdaLR(attended, lambda i: factor**i)
    assert used(attended, scheduler) == used(alone)


OVERRIDING = {
    "LambdaLR": lambda o: torch_schedulers.LambdaLR(o, lambda i: 1 - i / 20),
    "warm-up": lambda o: torch_schedulers.LambdaLR(o, lambda i: min(1.0, i / 4)),
    "CosineAnnealingLR": lambda o: torch_schedulers.CosineAnnealingLR(o, 20),
    "restarts": lambda o: torch_schedulers.CosineAnnealingWarmRestarts(o, 4),
    "LinearLR": lambda o: torch_schedulers.LinearLR(o, 0.5, total_iters=30),
    "OneCycleLR": lambda o: torch_schedulers.OneCycleLR(
        o, 0.5, total_steps=20, cycle_momentum=False
    ),
    "CyclicLR": lambda o: torch_schedulers.CyclicLR(o, 0.01, 0.2, 3, cycle_momentum=False),
    "ExponentialLR": lambda o: torch_schedulers.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: torch_schedulers.SequentialLR(
        o,
        [torch_schedulers.LinearLR(o, 0.1, total_iters=4), torch_schedulers.ExponentialLR(o, 0.9)],
        milestones=[4],
    ),
}


@pytest.mark.parametrize("make", OVERRIDING.values(), ids=list(OVERRIDING))
def test_a_scheduler_that_sets_other_rates_rules_and_says_so_once(make: Any) -> None:
    """Also where its rate comes back to that of the start, as at a restart."""
    number, attended = built(0.1), built(FALLING)
    wanted = used(number, make(number))
    with pytest.warns(UserWarning, match=WORDS) as caught:
        rates = used(attended, make(attended))
    assert rates == wanted
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith("lr of parameter group 0 was set to ")
    assert repr(FALLING) in text
    assert 'lr_scheduler_type="constant"' in text
    assert "LambdaLR(optimizer, lambda _: 1.0)" in text
    assert warning.filename == __file__


def test_each_group_says_it_for_itself() -> None:
    groups = [
        {"params": parameters(2)},
        {"params": parameters(2), "lr": 0.3},
        {"params": parameters(2)},
    ]
    optimizer = compat.Optimizer(groups, fa.adamaxw, lr=FALLING)
    with pytest.warns(UserWarning, match=WORDS) as caught:
        used(optimizer, torch_schedulers.ExponentialLR(optimizer, 0.9))
    assert [str(x.message)[:24] for x in caught] == [f"lr of parameter group {i} " for i in (0, 2)]


def test_the_cure_of_the_warning() -> None:
    alone, attended = built(FALLING), built(1.0)
    scheduler = torch_schedulers.LambdaLR(attended, FALLING)
    assert used(attended, scheduler) == used(alone)


@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_closed_forms() -> None:
    attended = built(FALLING)
    scheduler = torch_schedulers.StepLR(attended, step_size=8)

    def trained() -> list[float]:
        rates = []
        for epoch in range(1, STEPS + 1):
            rates += used(attended, steps=1)
            scheduler.step(epoch)
        return rates

    with pytest.warns(UserWarning, match=WORDS):
        rates = trained()
    assert rates[:8] == [FALLING(i) for i in range(8)]
    assert rates[8:] == pytest.approx([0.01] * 4)


@pytest.mark.parametrize("schedule", [WARM, FALLING], ids=["from 0", "from above"])
def test_a_scheduler_attached_late(schedule: Any) -> None:
    alone, attended = built(schedule), built(schedule)
    used(attended, steps=6)
    rates = used(attended, torch_schedulers.LambdaLR(attended, one))
    assert rates == used(alone, steps=6 + STEPS)[6:]


@pytest.mark.parametrize("schedule", [WARM, FALLING], ids=["from 0", "from above"])
@pytest.mark.parametrize("last", [-1, 5], ids=["attached first", "attached to what was loaded"])
def test_a_resumed_run_under_a_scheduler(schedule: Any, last: int) -> None:
    alone, first, attended = built(schedule), built(schedule), built(schedule)
    wanted = used(alone, steps=6 + STEPS)[6:]
    scheduler = torch_schedulers.LambdaLR(first, one)
    used(first, scheduler, 6)
    if last == -1:
        again = torch_schedulers.LambdaLR(attended, one)
        again.load_state_dict(scheduler.state_dict())
    attended.load_state_dict(copy.deepcopy(first.state_dict()))
    if last != -1:
        again = torch_schedulers.LambdaLR(attended, one, last_epoch=last)
    assert used(attended, again) == wanted


def test_a_resumed_run_under_a_scheduler_that_rules_does_not_say_it_again() -> None:
    first, attended = built(FALLING), built(FALLING)
    scheduler = torch_schedulers.CosineAnnealingWarmRestarts(first, 4)
    with pytest.warns(UserWarning, match=WORDS):
        used(first, scheduler, 3)
    again = torch_schedulers.CosineAnnealingWarmRestarts(attended, 4)
    attended.load_state_dict(first.state_dict())
    again.load_state_dict(scheduler.state_dict())
    assert used(attended, again) == used(first, scheduler)


def test_a_checkpoint_without_the_key_of_the_scheduler() -> None:
    """As of an earlier version, or flattened by a tool that keeps the keys of a new optimizer."""
    first, attended, alone = built(FALLING), built(FALLING), built(FALLING)
    used(first, torch_schedulers.LambdaLR(first, one), 6)
    state = first.state_dict()
    del state["param_groups"][0]["scheduled_initial_lr"]
    again = torch_schedulers.LambdaLR(attended, one)
    attended.load_state_dict(state)
    assert used(attended, again) == used(alone, steps=6 + STEPS)[6:]


def test_a_new_schedule_rules_again() -> None:
    attended = built(FALLING)
    with pytest.warns(UserWarning, match=WORDS):
        used(attended, torch_schedulers.ExponentialLR(attended, 0.9), 3)
    attended.param_groups[0]["lr"] = WARM
    assert used(attended, steps=2) == [WARM(3), WARM(4)]


def test_a_plateau_sets_the_rate_when_it_is_due() -> None:
    attended = built(FALLING)
    scheduler = torch_schedulers.ReduceLROnPlateau(attended, patience=2)
    rates = used(attended, scheduler, 6, 1.0)
    assert rates[:4] == [FALLING(i) for i in range(4)]
    assert rates[4:] == pytest.approx([0.1 * FALLING(3)] * 2)


def test_a_compiled_step_under_a_scheduler() -> None:
    torch._dynamo.reset()
    alone, attended = built(FALLING), built(FALLING)
    scheduler = torch_schedulers.LambdaLR(attended, one)
    (w,) = attended.param_groups[0]["params"]
    step = torch.compile(lambda: attended.step(), backend="eager")
    rates = []
    for _ in range(4):
        w.grad = torch.full_like(w, 0.3)
        step()
        rates.append(float(attended.param_groups[0]["lr"]))
        scheduler.step()
    rates += used(attended, scheduler, 2)
    assert rates == pytest.approx(used(alone, steps=6))


def test_without_a_scheduler_nothing_is_said() -> None:
    optimizer = built(FALLING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        used(optimizer, steps=2)
        optimizer.param_groups[0]["lr"] = 0.5
        assert used(optimizer, steps=2) == [0.5, 0.5]
    assert set(optimizer.param_groups[0]) >= {"lr", "scheduled_lr"}
    assert "scheduled_initial_lr" not in optimizer.param_groups[0]
