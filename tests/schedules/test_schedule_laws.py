"""The laws that every schedule keeps.

The file is longer than others: it has a table of all schedules.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.func import grad, jvp, vmap

import functional_adamax as fa


def pieces(make: Any, a: Any, fa_: Any, b: Any, fb: Any, init: Any) -> Any:
    return make(init, ((a, fa_), (b, fb)))


def sgdr(peak: Any, length: Any, end: Any) -> Any:
    cycle = {"init_value": end, "peak_value": peak, "warmup_steps": 2, "end_value": end}
    return fa.sgdr_schedule([{**cycle, "decay_steps": length * n} for n in (1, 2)])


def joined(low: Any, high: Any, boundary: Any) -> Any:
    parts = [fa.constant_schedule(low), fa.linear_schedule(high, low, 10)]
    return fa.join_schedules(parts, [boundary])


ALL: list[tuple[str, Callable[..., Any], dict[str, float]]] = [
    ("constant", fa.constant_schedule, {"value": 0.3}),
    ("linear", fa.linear_schedule, {"init_value": 1.0, "end_value": 0.1, "transition_steps": 20.5}),
    (
        "polynomial",
        fa.polynomial_schedule,
        {
            "init_value": 1.0,
            "end_value": 0.1,
            "power": 1.7,
            "transition_steps": 20.5,
            "transition_begin": 3.25,
        },
    ),
    (
        "exponential",
        partial(fa.exponential_decay, end_value=0.05),
        {"init_value": 1.0, "transition_steps": 9.5, "decay_rate": 0.5, "transition_begin": 3.25},
    ),
    (
        "exponential-staircase",
        partial(fa.exponential_decay, staircase=True),
        {"init_value": 1.0, "transition_steps": 9.5, "decay_rate": 0.5, "transition_begin": 3.25},
    ),
    (
        "cosine",
        fa.cosine_decay_schedule,
        {"init_value": 1.0, "decay_steps": 30.5, "alpha": 0.1, "exponent": 1.3},
    ),
    (
        "piecewise-constant",
        partial(pieces, fa.piecewise_constant_schedule),
        {"init": 1.0, "a": 8.5, "fa_": 0.5, "b": 20.5, "fb": 0.25},
    ),
    *(
        (
            f"piecewise-{kind}",
            partial(pieces, partial(fa.piecewise_interpolate_schedule, kind)),
            {"init": 1.0, "a": 8.5, "fa_": 0.5, "b": 20.5, "fb": 0.25},
        )
        for kind in ("linear", "cosine")
    ),
    (
        "linear-onecycle",
        fa.linear_onecycle_schedule,
        {
            "transition_steps": 40.5,
            "peak_value": 1.0,
            "pct_start": 0.3,
            "pct_final": 0.8,
            "div_factor": 20.0,
            "final_div_factor": 50.0,
        },
    ),
    (
        "cosine-onecycle",
        fa.cosine_onecycle_schedule,
        {
            "transition_steps": 40.5,
            "peak_value": 1.0,
            "pct_start": 0.3,
            "div_factor": 20.0,
            "final_div_factor": 50.0,
        },
    ),
    (
        "warmup-constant",
        fa.warmup_constant_schedule,
        {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 9.5},
    ),
    (
        "warmup-cosine",
        fa.warmup_cosine_decay_schedule,
        {
            "init_value": 0.1,
            "peak_value": 1.0,
            "warmup_steps": 9.5,
            "decay_steps": 40.5,
            "end_value": 0.05,
            "exponent": 1.3,
        },
    ),
    (
        "warmup-exponential",
        fa.warmup_exponential_decay_schedule,
        {
            "init_value": 0.1,
            "peak_value": 1.0,
            "warmup_steps": 9.5,
            "transition_steps": 7.5,
            "decay_rate": 0.5,
        },
    ),
    *(
        (
            f"wsd-{kind}",
            partial(fa.warmup_stable_decay_schedule, cooldown=kind),
            {
                "init_value": 0.1,
                "peak_value": 1.0,
                "warmup_steps": 5.5,
                "stable_steps": 20.5,
                "decay_steps": 10.25,
                "end_value": 0.05,
            },
        )
        for kind in ("linear", "1-sqrt", "cosine")
    ),
    ("sgdr", sgdr, {"peak": 1.0, "length": 12.5, "end": 0.1}),
    ("join", joined, {"low": 0.1, "high": 1.0, "boundary": 12.5}),
]


COUNTS = [0, 1, 3, 4, 9, 10, 17, 25, 33, 40, 41, 60]


every = pytest.mark.parametrize(("make", "hyper"), [x[1:] for x in ALL], ids=[x[0] for x in ALL])


def tensors(hyper: dict[str, float]) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in hyper.items()}


@every
def test_a_tensor_for_a_tensor_and_a_number_for_a_number(make: Any, hyper: Any) -> None:
    schedule, of_tensors = make(**hyper), make(**tensors(hyper))
    for count in COUNTS:
        value = schedule(count)
        assert type(value) is float
        for dtype in (torch.int64, torch.int32, torch.float32):
            got = schedule(torch.tensor(count, dtype=dtype))
            assert (got.dtype, got.shape, got.item()) == (torch.float64, (), value)
        assert schedule(torch.tensor([count])).shape == ()
        for got in (of_tensors(count), of_tensors(torch.tensor(count))):
            assert (got.dtype, got.shape) == (torch.float64, ())
            torch.testing.assert_close(got.item(), value, rtol=1e-15, atol=1e-15)
    half = make(**{k: torch.tensor([v], dtype=torch.float32) for k, v in hyper.items()})
    assert half(torch.tensor(7)).shape == ()
    torch.testing.assert_close(half(7).item(), schedule(7), rtol=1e-5, atol=0)


@every
def test_values_that_are_computed_at_once_have_the_bits_of_each(make: Any, hyper: Any) -> None:
    whole = {k: float(round(v)) if v > 1 else v for k, v in hyper.items()}
    for schedule in (make(**hyper), make(**whole)):
        for count in (*range(2001), 10**6, 2**31, 2**53, 2**53 + 1, 2**63 - 1, -1, 0, -7, -6):
            wanted = schedule.evaluate(torch.tensor(count)).item()
            assert schedule(torch.tensor(count)).item().hex() == wanted.hex(), count


@every
def test_vmap_is_a_loop(make: Any, hyper: Any) -> None:
    counts = torch.tensor(COUNTS)
    want = torch.stack([make(**hyper)(c) for c in counts])
    assert torch.equal(vmap(make(**hyper))(counts), want)
    several = {k: v * torch.tensor([1.0, 0.9, 0.8]).double() for k, v in tensors(hyper).items()}
    got = vmap(lambda h: vmap(lambda c: make(**h)(c))(counts))(several)
    for i in range(3):
        one = make(**{k: v[i] for k, v in several.items()})
        torch.testing.assert_close(
            got[i], torch.stack([one(c) for c in counts]), rtol=1e-12, atol=1e-14
        )
    for name in hyper:
        one = vmap(lambda v, name=name: make(**{**hyper, name: v})(torch.tensor(9)))(several[name])
        assert one.shape == (3,)


@every
def test_compiled_is_eager_in_one_graph(make: Any, hyper: Any) -> None:
    torch._dynamo.reset()
    counters.clear()

    @partial(torch.compile, fullgraph=True, backend="aot_eager")
    def compiled(hyper: Any, count: torch.Tensor) -> Any:
        return make(**hyper)(count)

    for count in COUNTS:
        got = compiled(tensors(hyper), torch.tensor(count))
        want = make(**tensors(hyper))(torch.tensor(count))
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    assert counters["stats"]["unique_graphs"] == 1
    fixed = torch.compile(make(**hyper), fullgraph=True, backend="aot_eager")
    assert fixed(torch.tensor(7)) == make(**hyper)(torch.tensor(7))


@every
def test_differentiable_in_every_hyperparameter(make: Any, hyper: Any) -> None:
    names = sorted(hyper)
    for count in COUNTS:

        def value(*values: Any, count: int = count) -> Any:
            return make(**dict(zip(names, values, strict=True)))(torch.tensor(count))

        inputs = [v.requires_grad_() for _, v in sorted(tensors(hyper).items())]
        assert torch.autograd.gradcheck(value, inputs, check_forward_ad=True, atol=1e-6)
        assert torch.autograd.gradgradcheck(value, inputs, atol=1e-6)


@every
def test_derivatives_are_finite_at_the_boundaries_too(make: Any, hyper: Any) -> None:
    """Whole boundaries, and a count on each: branches that are masked out give no NaN."""
    whole = {k: float(round(v)) if v > 1 else v for k, v in hyper.items()}
    for count in range(45):
        point = tensors(whole)
        first = grad(lambda h, c=count: make(**h)(torch.tensor(c)))(point)
        assert all(x.isfinite() for x in first.values()), (count, first)
        _, slope = jvp(lambda h, c=count: make(**h)(torch.tensor(c)), (point,), (point,))
        assert slope.isfinite()


@every
def test_it_is_data(make: Any, hyper: Any) -> None:
    schedule = make(**hyper)
    twins = (make(**hyper), pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule))
    assert all(twin == schedule and hash(twin) == hash(schedule) for twin in twins)
    assert eval(repr(schedule), vars(fa)) == schedule
    other = make(**{k: v * 1.01 for k, v in hyper.items()})
    assert other != schedule != make(**tensors(hyper))
    computed = make(**{k: v.requires_grad_() * 1 for k, v in tensors(hyper).items()})
    assert make(**tensors(hyper)) == pickle.loads(pickle.dumps(computed)) == computed
    assert fa.adamax(schedule) == fa.adamax(make(**hyper)) != fa.adamax(other)


@every
def test_it_drives_an_optimizer_as_its_numbers_do(make: Any, hyper: Any) -> None:
    tx, params = fa.adamax(make(**hyper)), torch.randn(3)
    state, other, plain = tx.init(params), params, fa.adamax(0.0).init(params)
    for count in range(15):
        g = torch.randn(3)
        params, state = fa.step(tx, g, state, params)
        other, plain = fa.step(fa.adamax(make(**hyper)(count)), g, plain, other)
        assert torch.equal(params, other)
