"""Averages and sums of updates, against their sums and torch's momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import functional_adamax as fa


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("debias", [True, False])
def test_ema_of_updates_is_the_sum_and_counts_each_leaf(debias: bool) -> None:
    tx, d = fa.ema(0.8, debias), 0.8
    state = tx.init({"a": torch.zeros(2).double(), "b": torch.zeros(2).double()})
    seen: dict[str, list[np.ndarray]] = {"a": [], "b": []}
    for i in range(10):
        g = {"a": torch.randn(2).double(), "b": torch.randn(2).double() if i % 3 else None}
        updates, new = tx.update(g, state)
        for k, leaf in g.items():
            if leaf is None:
                assert updates[k] is None
                assert new.exp_avg[k] is state.exp_avg[k]
                assert new.step[k] is state.step[k]
                continue
            seen[k].append(leaf.numpy())
            n = len(seen[k])
            want = sum((1 - d) * d ** (n - 1 - s) * x for s, x in enumerate(seen[k]))
            want = want / (1 - d**n) if debias else want
            np.testing.assert_allclose(updates[k].numpy(), want, rtol=1e-12, atol=1e-14)
        state = new


@pytest.mark.parametrize("nesterov", [False, True])
def test_trace_is_the_momentum_of_torch(nesterov: bool) -> None:
    p = torch.randn(4, dtype=torch.float64)
    other = p.clone().requires_grad_()
    sgd = torch.optim.SGD([other], lr=0.1, momentum=0.9, nesterov=nesterov)
    tx = fa.chain(fa.trace(0.9, nesterov), fa.scale_by_learning_rate(0.1))
    state = tx.init(p)
    for i in range(8):
        g = None if i == 3 else torch.randn_like(p)
        other.grad = g
        sgd.step()
        p, state = fa.step(tx, g, state, p)
        close(p, other.detach())


def test_accumulators_of_another_dtype() -> None:
    g = torch.randn(5).bfloat16()
    for tx in (fa.ema(0.9, accumulator_dtype=torch.float64), fa.trace(0.9, True, torch.float64)):
        state = tx.init(g)
        updates, state = tx.update(g, state)
        assert updates.dtype == state[-1].dtype == torch.float64
    assert fa.ema(0.9).update(g, fa.ema(0.9).init(g))[0].dtype == torch.float32
    assert fa.trace(0.9).update(g, fa.trace(0.9).init(g))[0].dtype == torch.bfloat16


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: fa.ema(1.0), ValueError, r"decay must be in \[0, 1\), got 1.0"),
    (lambda: fa.trace(-0.1), ValueError, r"decay must be in \[0, inf\), got -0.1"),
    (lambda: fa.ema(0.9, accumulator_dtype=torch.int64), TypeError, "accumulator_dtype must be"),
    (lambda: _update(fa.ema(0.9), state=()), TypeError, "must be the EmaState.*got tuple"),
    (lambda: _update(fa.trace(0.9), state=()), TypeError, "must be the TraceState.*got tuple"),
]


def _update(tx: fa.GradientTransformation, params: Any = None, state: Any = None) -> Any:
    return tx.update(torch.ones(2), tx.init(torch.ones(2)) if state is None else state, params)


@pytest.mark.parametrize(("make", "kind", "match"), WRONG)
def test_errors_say_what_is_wanted(make: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        make()
