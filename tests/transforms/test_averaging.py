"""Averages of parameters against their sums and torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import grad, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

import functional_adamax as fa

STEPS = 12


def train(
    link: fa.GradientTransformation, steps: int = STEPS, dtype: torch.dtype = torch.float64
) -> tuple[list[Any], list[Any]]:
    """Return the points p_0, p_1, ... and the averages after each."""
    tx = fa.chain(fa.adamax(0.1), link)
    params = {"w": torch.randn(4, 3, dtype=dtype), "b": torch.randn((), dtype=dtype)}
    state = tx.init(params)
    points, averages = [params], [fa.averaged(state)]
    for _ in range(steps):
        grads = {k: torch.randn_like(v) for k, v in params.items()}
        params, state = fa.step(tx, grads, state, params)
        points.append(params)
        averages.append(fa.averaged(state))
    return points, averages


def weighted(points: list[Any], weights: list[float]) -> Any:
    return {
        k: sum((w * p[k] for w, p in zip(weights, points, strict=False)), torch.zeros_like(v))
        for k, v in points[0].items()
    }


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_an_ema_is_the_sum_with_falling_weights() -> None:
    d = 0.8
    points, averages = train(fa.params_ema(d))
    for t in range(STEPS + 1):
        weights = [d**t] + [(1 - d) * d ** (t - s) for s in range(1, t + 1)]
        close(averages[t], weighted(points, weights))


def test_a_debiased_ema_forgets_where_it_began() -> None:
    d = 0.8
    points, averages = train(fa.params_ema(d, debias=True))
    close(averages[0], points[0])
    for t in range(1, STEPS + 1):
        weights = [0.0] + [(1 - d) * d ** (t - s) / (1 - d**t) for s in range(1, t + 1)]
        close(averages[t], weighted(points, weights))


@pytest.mark.parametrize(("every", "start"), [(1, 0), (3, 0), (1, 4), (3, 2)])
def test_the_mean_is_the_mean_of_the_points_it_takes(every: int, start: int) -> None:
    points, averages = train(fa.params_average(every, start))
    for t in range(STEPS + 1):
        taken = points[start + every : t + 1 : every]
        n = len(taken)
        close(averages[t], weighted(taken, [1 / n] * n) if taken else points[t])


@pytest.mark.parametrize("debias", [False, True])
def test_an_ema_of_every_third_point(debias: bool) -> None:
    points, averages = train(fa.params_ema(0.8, debias, every=3))
    average = points[0]
    for n, t in enumerate(range(3, STEPS + 1, 3), start=1):
        weight = 0.2 / (1 - 0.8**n) if debias else 0.2
        average = weighted([average, points[t]], [1 - weight, weight])
        for later in range(t, min(t + 3, STEPS + 1)):
            close(averages[later], average)
    close(averages[2], points[2] if debias else points[0])


def torch_averages(points: list[Any], rule: Callable[..., Any]) -> list[Any]:
    module = torch.nn.ParameterDict({k: v.clone() for k, v in points[0].items()})
    averaged, result = AveragedModel(module, multi_avg_fn=rule), []
    for point in points:
        module.load_state_dict(point)
        averaged.update_parameters(module)
        result.append({k: v.detach().clone() for k, v in averaged.module.items()})
    return result


def test_they_are_the_averages_of_torch() -> None:
    points, averages = train(fa.params_ema(0.8))
    for got, want in zip(averages, torch_averages(points, get_ema_multi_avg_fn(0.8)), strict=True):
        close(got, want)
    points, averages = train(fa.params_average())
    for got, want in zip(
        averages[1:], torch_averages(points[1:], get_swa_multi_avg_fn()), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)  # its 1 / n is in float32


def test_updates_pass_and_what_cannot_be_averaged_does_too() -> None:
    params = {"w": torch.randn(2, dtype=torch.complex64), "n": torch.tensor(3), "none": None}
    params["still"] = torch.randn(2)
    tx = fa.params_average()
    state = tx.init(params)
    updates = {"w": torch.randn(2, dtype=torch.complex64), "n": None, "none": None, "still": None}
    new, state = tx.update(updates, state, params)
    assert new is updates
    assert state.average["n"] == state.average["none"] == fa.EmptyState()
    torch.testing.assert_close(state.average["w"], params["w"] + updates["w"])
    assert torch.equal(state.average["still"], params["still"])
    assert fa.averaged(state)["n"] is None
    whole = fa.averaged(state, params)
    assert whole["n"] is params["n"]
    assert whole["none"] is None
    assert torch.equal(whole["w"], state.average["w"])


def test_complex_leaves_go_by_components() -> None:
    p = torch.randn(3, dtype=torch.complex128)
    parts = torch.view_as_real(p)
    decay = torch.rand(3, dtype=torch.float64)
    for make in (
        lambda d: fa.params_ema(d),
        lambda d: fa.params_ema(d, debias=True),
        lambda d: fa.ema(d),
        lambda d: fa.trace(d, nesterov=True),
    ):
        one, two = make(decay), make(decay.unsqueeze(-1))
        a, b = one.init(p), two.init(parts)
        for _ in range(3):
            g = torch.randn_like(p)
            x, a = one.update(g, a, p)
            y, b = two.update(torch.view_as_real(g), b, parts)
        close(torch.view_as_real(x), y)
        close(torch.view_as_real(a[-1]), b[-1])


def test_halves_can_be_averaged_in_single_precision() -> None:
    points, averages = train(
        fa.params_ema(0.999, accumulator_dtype=torch.float32), 50, torch.bfloat16
    )
    d = 0.999
    weights = [d**50] + [(1 - d) * d ** (50 - s) for s in range(1, 51)]
    want = weighted([{k: v.double() for k, v in p.items()} for p in points], weights)
    assert averages[-1]["w"].dtype == torch.float32
    torch.testing.assert_close(averages[-1]["w"].double(), want["w"], rtol=1e-5, atol=1e-6)
    state = fa.params_ema(0.999, accumulator_dtype=torch.float32).init(points[0])
    assert fa.averaged(state, points[0])["w"].dtype == torch.bfloat16


def test_a_parameter_that_is_nan_before_it_is_taken_leaves_no_trace() -> None:
    tx, params = fa.params_average(every=2), torch.ones(2)
    state = tx.init(params)
    for value in (torch.nan, 3.0, torch.nan, 5.0):
        _, state = tx.update(torch.zeros(2), state, torch.full((2,), value))
    assert torch.equal(fa.averaged(state), torch.full((2,), 4.0))


def test_averages_of_an_ensemble_and_their_derivative() -> None:
    def last(lr: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        tx = fa.chain(fa.scale_by_learning_rate(lr), fa.params_ema(decay, debias=True))
        p = torch.ones((), dtype=torch.float64)
        state = tx.init(p)
        for _ in range(3):
            p, state = fa.step(tx, p, state, p)
        return fa.averaged(state)

    lr, decay = torch.tensor([0.1, 0.2]).double(), torch.tensor([0.5, 0.9]).double()
    got = vmap(grad(last, argnums=(0, 1)))(lr, decay)
    for i in range(2):
        h, (a, b) = 1e-6, (lr[i], decay[i])
        close_to = (
            (last(a + h, b) - last(a - h, b)) / (2 * h),
            (last(a, b + h) - last(a, b - h)) / (2 * h),
        )
        torch.testing.assert_close((got[0][i], got[1][i]), close_to, rtol=1e-7, atol=1e-9)


def test_reading_out_finds_the_one_average() -> None:
    params = torch.ones(2)
    inner = fa.chain(fa.identity(), fa.params_ema(0.9))
    assert torch.equal(fa.averaged(fa.chain(fa.adamax(), inner).init(params)), params)
    with pytest.raises(ValueError, match="one params_ema or params_average, got 0"):
        fa.averaged(fa.adamax().init(params))
    with pytest.raises(ValueError, match="got 2 of them: pass the state of that link"):
        fa.averaged(fa.chain(inner, fa.params_average()).init(params))


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: fa.params_ema(1.5), ValueError, r"decay must be in \[0, 1\)"),
    (lambda: fa.params_ema(0.9, every=0), ValueError, r"every must be an int in \[1, inf\), got 0"),
    (lambda: fa.params_average(every=1.5), ValueError, "every must be an int"),
    (lambda: fa.params_average(start=-1), ValueError, r"start must be an int in \[0, inf\)"),
    (lambda: fa.params_average(accumulator_dtype="float32"), TypeError, "got 'float32'"),
    (lambda: _update(fa.params_ema(0.9), None), ValueError, r"params must be given to params_ema"),
    (lambda: _update(fa.params_ema(0.9), torch.ones(3)), ValueError, r"params must fit.*\(3,\)"),
    (
        lambda: _update(fa.params_ema({"a": 0.9}), torch.ones(2)),
        ValueError,
        "decay must have the structure of params",
    ),
    (
        lambda: fa.averaged(fa.params_average().init(torch.ones(2)), {"a": torch.ones(2)}),
        TypeError,
        "params must be a tensor or None, got dict",
    ),
]


def _update(tx: fa.GradientTransformation, params: Any = None, state: Any = None) -> Any:
    return tx.update(torch.ones(2), tx.init(torch.ones(2)) if state is None else state, params)


@pytest.mark.parametrize(("make", "kind", "match"), WRONG)
def test_errors_say_what_is_wanted(make: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        make()
