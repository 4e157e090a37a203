"""Schedules, momentum and the plateau give the values of optax, where optax is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import functional_adamax as fa

optax = pytest.importorskip("optax", reason="optax is not installed")
jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)

CYCLE = {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 5, "end_value": 0.02}
SAME = [  # name, arguments, counts of interest
    ("constant_schedule", (0.3,), []),
    ("linear_schedule", (1.0, 0.1, 20), [20]),
    ("linear_schedule", (0.1, 1.0, 20, 5), [5, 25]),
    ("polynomial_schedule", (1.0, 0.1, 2, 20), [20]),
    ("polynomial_schedule", (0.5, 2.0, 0.5, 20, 7), [7, 27]),
    ("exponential_decay", (1.0, 10, 0.5), [10]),
    ("exponential_decay", (1.0, 10, 0.5, 3, True), [3, 13, 23]),
    ("exponential_decay", (1.0, 10, 0.5, 3, False, 0.2), [3, 13, 26]),
    ("exponential_decay", (1.0, 10, 1.5, 0, True, 4.0), [10, 20]),
    ("cosine_decay_schedule", (0.7, 20), [20]),
    ("cosine_decay_schedule", (0.7, 20, 0.1, 1.7), [20]),
    ("piecewise_constant_schedule", (1.0,), []),
    ("piecewise_constant_schedule", (1.0, {20: 0.5, 10: 0.1, 30: 3.0}), [10, 20, 30]),
    ("piecewise_interpolate_schedule", ("linear", 1.0, {10: 0.1, 30: 3.0}), [10, 30]),
    ("piecewise_interpolate_schedule", ("cosine", 2.0, {30: 0.0, 10: 0.1}), [10, 30]),
    ("piecewise_interpolate_schedule", ("linear", 1.0, {0: 0.5, 10: 3.0}), [10]),
    ("linear_onecycle_schedule", (40, 1.0, 0.25, 0.75), [10, 30, 40]),
    ("linear_onecycle_schedule", (40, 2.0, 0.5, 0.75, 10.0, 100.0), [20, 30, 40]),
    ("cosine_onecycle_schedule", (40, 1.0, 0.25), [10, 40]),
    ("cosine_onecycle_schedule", (40, 2.0, 0.5, 10.0, 100.0), [20, 40]),
    ("warmup_constant_schedule", (0.1, 1.0, 10), [10]),
    ("warmup_cosine_decay_schedule", (0.1, 1.0, 10, 40), [10, 40]),
    ("warmup_cosine_decay_schedule", (0.1, 1.0, 0, 40, 0.2, 2.0), [40]),
    ("warmup_exponential_decay_schedule", (0.1, 1.0, 10, 5, 0.5), [10, 15]),
    ("warmup_exponential_decay_schedule", (0.1, 1.0, 10, 5, 0.5, 3, True, 0.1), [10, 13, 18]),
    ("sgdr_schedule", ([{**CYCLE, "decay_steps": n} for n in (10, 20, 30)],), [10, 15, 30, 60]),
]


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(float(got), float(want), rtol=1e-6, atol=1e-15)


def values(schedule: Any, counts: list[int]) -> list[float]:
    at = jax.vmap(lambda count: jax.numpy.asarray(schedule(count)))
    return at(jax.numpy.asarray(counts)).tolist()


@pytest.mark.parametrize(("name", "arguments", "boundaries"), SAME, ids=str)
def test_it_is_the_schedule_of_optax(name: str, arguments: Any, boundaries: list[int]) -> None:
    ours, theirs = getattr(fa, name)(*arguments), getattr(optax, name)(*arguments)
    near = {b + i for b in boundaries for i in (-1, 0, 1)}
    counts = sorted({*range(50), *near, 100, 10_000} - {-1})
    for count, want in zip(counts, values(theirs, counts), strict=True):
        close(ours(torch.tensor(count)), want)
        close(ours(count), want)


def test_joined_schedules_are_those_of_optax() -> None:
    def make(library: Any) -> Any:
        parts = [
            library.linear_schedule(0.0, 1.0, 10),
            library.constant_schedule(1.0),
            library.exponential_decay(1.0, 5, 0.5),
        ]
        return library.join_schedules(parts, [10, 20])

    ours, theirs = make(fa), make(optax)
    counts = [*range(40), 1000]
    for count, want in zip(counts, values(theirs, counts), strict=True):
        close(ours(torch.tensor(count)), want)


def test_where_it_departs_from_optax_on_purpose() -> None:
    assert optax.warmup_constant_schedule(0.0, 1.0, 0)(5) == 0.0
    assert fa.warmup_constant_schedule(0.0, 1.0, 0)(5) == 1.0
    assert optax.warmup_cosine_decay_schedule(0.5, 0.0, 2, 10, 0.3)(10) == 0.0
    assert fa.warmup_cosine_decay_schedule(0.5, 0.0, 2, 10, 0.3)(10) == 0.3
    short = optax.linear_onecycle_schedule(4, 1.0, 0.3, 0.45)  # two boundaries at step 1
    assert float(short(1)) == pytest.approx(0.0016)
    assert fa.linear_onecycle_schedule(4, 1.0, 0.25, 0.45)(1) == 1.0


@pytest.mark.parametrize("name", ["ema", "ema-biased", "trace", "trace-nesterov"])
def test_momentum_is_that_of_optax(name: str) -> None:
    def make(library: Any) -> Any:
        if name.startswith("ema"):
            return library.ema(0.9, debias=name == "ema")
        return library.trace(0.9, nesterov=name != "trace")

    ours, theirs = make(fa), make(optax)
    zeros = torch.zeros(5, dtype=torch.float64)
    state, their_state = ours.init({"w": zeros}), theirs.init({"w": zeros.numpy()})
    for _ in range(30):
        g = torch.randn_like(zeros)
        updates, state = ours.update({"w": g}, state)
        want, their_state = theirs.update({"w": jax.numpy.asarray(g.numpy())}, their_state)
        for got, wanted in zip(updates["w"], want["w"], strict=True):
            close(got, wanted)


PLATEAUS = [
    {},
    {"patience": 1},
    {"factor": 0.5, "patience": 3, "cooldown": 2},
    {"factor": 0.3, "patience": 2, "accumulation_size": 3, "min_scale": 0.05},
    {"factor": 0.5, "patience": 2, "rtol": 0.0, "atol": 0.05},
    {"factor": 0.5, "patience": 2, "rtol": 0.1, "atol": 0.02, "cooldown": 1},
]


@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_the_plateau_is_that_of_optax(options: dict[str, Any]) -> None:
    ours, theirs = fa.reduce_on_plateau(**options), optax.contrib.reduce_on_plateau(**options)
    their_update = jax.jit(lambda state, value: theirs.update(ones, state, value=value))
    zeros, ones = torch.zeros(2, dtype=torch.float64), jax.numpy.ones(2)
    state, their_state = ours.init(zeros), theirs.init(ones)
    values = 1 / (1 + torch.arange(60, dtype=torch.float64)) + 0.1 * torch.rand(60).double()
    scales = []
    for value in values:
        updates, state = ours.update(zeros + 1, state, value=value)
        want, their_state = their_update(their_state, value.item())
        close(updates[0], want[0])
        close(state.scale, their_state.scale)
        close(state.best_value, their_state.best_value)
        for name in ("plateau_count", "cooldown_count", "count"):
            assert int(getattr(state, name)) == int(getattr(their_state, name)), name
        close(state.average_value, their_state.avg_value)
        scales.append(float(state.scale))
    assert scales[-1] < 1
