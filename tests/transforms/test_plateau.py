"""``reduce_on_plateau`` against a plain loop and torch's scheduler, and its special cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.func import vmap
from torch.optim.lr_scheduler import ReduceLROnPlateau

import functional_adamax as fa


def reference(
    values: list[float],
    factor: float = 0.1,
    patience: int = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: float = 0.0,
) -> list[float]:
    """The scales after each value, in plain Python."""
    scale, best, bad, wait, window, scales = 1.0, math.inf, 0, 0, [], []
    for value in values:
        window.append(value)
        if len(window) == accumulation_size:
            mean, window = sum(window) / len(window), []
            margin = rtol * abs(best) + atol if math.isfinite(best) else 0.0
            if mean < best - margin:
                best, bad = mean, 0
            else:
                bad += 1
            if wait > 0:
                wait, bad = wait - 1, 0
            elif bad == patience:
                scale, bad, wait = max(scale * factor, min_scale), 0, cooldown
        scales.append(scale)
    return scales


def scales(tx: fa.GradientTransformation, values: Any) -> list[float]:
    g, result = torch.ones(2, dtype=torch.float64), []
    state = tx.init(g)
    for value in values:
        updates, state = tx.update(g, state, value=value)
        assert torch.equal(updates, g * state.scale)
        result.append(updates[0].item())
    return result


OPTIONS: list[dict[str, Any]] = [
    {"patience": 1},
    {"factor": 0.5, "patience": 3, "cooldown": 2},
    {"factor": 0.3, "patience": 2, "accumulation_size": 3, "min_scale": 0.05},
    {"factor": 0.5, "patience": 2, "rtol": 0.0, "atol": 0.05, "cooldown": 1},
    {"factor": 0.5, "patience": 2, "rtol": 0.0},
    {"factor": 0.5, "patience": 2, "rtol": 1.0},
]
options = pytest.mark.parametrize("options", OPTIONS, ids=str)


@options
@pytest.mark.parametrize("shift", [0.0, -1.0, -0.2])
def test_it_is_the_loop(options: dict[str, Any], shift: float) -> None:
    noise = 0.1 * torch.rand(80, dtype=torch.float64)
    values = (1 / (1 + torch.arange(80)) + noise + shift).tolist()
    got = scales(fa.reduce_on_plateau(**options), values)
    assert got == pytest.approx(reference(values, **options), rel=1e-12)
    assert got[-1] < 1


@pytest.mark.parametrize("mode", ["rel", "abs"])
@pytest.mark.parametrize("cooldown", [0, 3])
def test_it_is_the_scheduler_of_torch(mode: str, cooldown: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = ReduceLROnPlateau(
        optimizer, factor=0.5, patience=2, threshold=0.02, threshold_mode=mode, cooldown=cooldown
    )
    rates = {"rel": (0.02, 0.0), "abs": (0.0, 0.02)}[mode]
    tx = fa.reduce_on_plateau(0.5, 3, *rates, cooldown=cooldown)
    values = (1 / (1 + torch.arange(60)) + 0.1 * torch.rand(60, dtype=torch.float64)).tolist()
    want = []
    for value in values:
        optimizer.step()
        scheduler.step(value)
        want.append(optimizer.param_groups[0]["lr"])
    assert scales(tx, values) == pytest.approx(want, rel=1e-12)
    assert want[-1] < 0.5


def test_below_zero_a_value_must_fall_to_improve() -> None:
    tx = fa.reduce_on_plateau(0.5, patience=2, rtol=0.1)
    assert scales(tx, [-1.0, -0.95, -0.95]) == [1.0, 1.0, 0.5]
    assert scales(tx, [-1.0, -1.05, -1.2, -1.4]) == [1.0, 1.0, 1.0, 1.0]
    assert scales(tx, [0.0, 0.0, 0.0]) == [1.0, 1.0, 0.5]


def test_values_that_are_not_finite_are_no_improvement() -> None:
    tx = fa.reduce_on_plateau(0.5, patience=2)
    for bad in (math.nan, math.inf):
        assert scales(tx, [1.0, bad, 0.9, bad, bad]) == [1.0, 1.0, 1.0, 1.0, 0.5]
    assert scales(tx, [math.nan, math.nan, 1.0]) == [1.0, 0.5, 0.5]


def test_values_come_as_numbers_or_tensors_of_any_dtype_and_keep_no_graph() -> None:
    tx = fa.reduce_on_plateau(0.5, patience=1, accumulation_size=2)
    x = torch.tensor(2.0, requires_grad=True)
    values = (1, 1.0, torch.tensor(1), torch.ones(1, dtype=torch.bfloat16), x * x, x)
    state = tx.init(torch.zeros(2))
    for value in values:
        _, state = tx.update(torch.ones(2), state, value=value)
        assert [s.dtype for s in state] == [s.dtype for s in tx.init(torch.zeros(2))]
        assert not any(s.requires_grad for s in state)
    assert state.scale == 0.25


def test_it_scales_what_an_optimizer_makes_in_a_chain_and_a_step() -> None:
    tx = fa.chain(fa.adamax(0.1), fa.reduce_on_plateau(0.5, patience=1))
    params = {"w": torch.ones(3), "none": None}
    state = tx.init(params)
    plain = fa.adamax(0.1).init(params)
    for scale in (1.0, 0.5, 0.25):
        grads = {"w": torch.randn(3), "none": None}
        want, plain = fa.adamax(0.1).update(grads, plain, params)
        new, state = fa.step(tx, grads, state, params, value=1.0)
        torch.testing.assert_close(new["w"], params["w"] + scale * want["w"])
        assert new["none"] is None
        params = new


def test_each_member_of_an_ensemble_has_its_own_scale() -> None:
    values = torch.tensor([[1.0, 0.5, 0.2], [1.0, 1.0, 1.0], [2.0, 1.0, 3.0]])
    patience = torch.tensor([1, 1, 2])

    def member(patience: Any, values: Any) -> Any:
        tx, g = fa.reduce_on_plateau(0.5, patience), torch.ones(2)
        state = tx.init(g)
        for value in values:
            updates, state = tx.update(g, state, value=value)
        return updates

    got = vmap(member)(patience, values)
    assert got[:, 0].tolist() == [1.0, 0.25, 1.0]
    assert vmap(member, in_dims=(0, None))(patience, values[1])[:, 0].tolist() == [0.25, 0.25, 0.5]


def test_one_graph_with_changing_values() -> None:
    tx, g = fa.reduce_on_plateau(0.5, patience=2), torch.ones(2)

    def once(state: Any, value: torch.Tensor) -> Any:
        return tx.update(g, state, value=value)

    torch._dynamo.reset()
    compiled = torch.compile(once, fullgraph=True, backend="aot_eager")
    state = other = tx.init(g)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for value in (1.0, 1.0, 0.5, 0.7, 0.7, 0.7, 0.6):
            updates, state = compiled(state, torch.tensor(value))
            want, other = once(other, torch.tensor(value))
            assert torch.equal(updates, want)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"factor": 0.0}, r"factor must be in \(0, 1\], got 0"),
    ({"factor": 1.5}, r"factor must be in"),
    ({"patience": 0}, r"patience must be in \[1, inf\), got 0"),
    ({"rtol": -0.1}, r"rtol must be in \[0, 1\]"),
    ({"atol": -1.0}, r"atol must be in \[0, inf\)"),
    ({"cooldown": -1}, "cooldown must be"),
    ({"accumulation_size": 0}, r"accumulation_size must be in \[1, inf\)"),
    ({"min_scale": 2.0}, r"min_scale must be in \[0, 1\]"),
    ({"factor": torch.ones(3)}, r"factor must be a number or a tensor of shape"),
]


@pytest.mark.parametrize(("options", "match"), WRONG)
def test_wrong_hyperparameters(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fa.reduce_on_plateau(**options)


def test_wrong_values_and_states() -> None:
    tx, g = fa.reduce_on_plateau(), torch.ones(2)
    state = tx.init(g)
    with pytest.raises(ValueError, match=r"value must be given.*got None: call.*value=loss"):
        tx.update(g, state)
    with pytest.raises(ValueError, match=r"value must be one real number.*of shape \(2,\)"):
        tx.update(g, state, value=g)
    with pytest.raises(ValueError, match="complex64"):
        tx.update(g, state, value=torch.ones((), dtype=torch.complex64))
    with pytest.raises(TypeError, match="must be the ReduceOnPlateauState.*got EmptyState"):
        tx.update(g, fa.EmptyState(), value=1.0)
    with pytest.raises(TypeError, match=r"updates\['a'\] must be a tensor or None, got str"):
        tx.update({"a": "b"}, state, value=1.0)
