"""The direction whose denominator never decreases, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import functional_adamax as fa


def test_amsmax_divides_by_the_largest_norm_so_far() -> None:
    random = np.random.default_rng(0)
    b1, b2, eps = 0.8, 0.5, 1e-3
    tx = fa.chain(fa.scale_by_amsmax(b1, eps), fa.scale_by_learning_rate(0.1))
    p = random.normal(size=5)
    m, u, largest, t = np.zeros(5), np.zeros(5), np.zeros(5), 0
    ours = torch.tensor(p)
    state = tx.init(ours)
    for i in range(20):
        g = None if i % 5 == 0 else random.normal(size=5)
        if g is not None:  # with the u of Adamax, decayed by whatever b2, and its maximum
            t += 1
            m, u = b1 * m + (1 - b1) * g, np.maximum(b2 * u, np.abs(g) + eps)
            largest = np.maximum(largest, u)
            p = p - 0.1 / (1 - b1**t) * m / largest
        ours, state = fa.step(tx, None if g is None else torch.tensor(g), state, ours)
        np.testing.assert_allclose(ours.numpy(), p, rtol=1e-12)
    np.testing.assert_allclose(state[0].exp_inf.numpy(), largest, rtol=1e-14)


def test_amsmax_takes_smaller_steps_than_adamax_after_a_large_gradient() -> None:
    grads = [torch.full((1,), 100.0)] + [torch.ones(1)] * 50
    lengths = []
    for direction in (fa.scale_by_amsmax(0.0), fa.scale_by_adamax((0.0, 0.5))):
        state = direction.init(torch.zeros(1))
        for g in grads:
            update, state = direction.update(g, state)
        lengths.append(update.item())
    assert lengths == pytest.approx([0.01, 1.0], rel=1e-6)


def test_it_keeps_the_largest_norm_of_each_element_through_special_values() -> None:
    tx = fa.scale_by_amsmax(0.0, eps=0.0)
    state = tx.init(torch.zeros(4))
    for g in ([1.0, 0.0, torch.inf, 2.0], [-3.0, 0.0, 1.0, torch.nan], [2.0, 4.0, 1.0, 1.0]):
        updates, state = tx.update(torch.tensor(g), state)
    assert state.exp_inf[:3].tolist() == [3.0, 4.0, torch.inf]
    assert state.exp_inf[3].isnan(), "what was not a number stays the largest"
    assert updates[:2].tolist() == pytest.approx([2 / 3, 1.0])


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\), got 1.0"):
        fa.scale_by_amsmax(1.0)
    with pytest.raises(ValueError, match=r"eps must be in \[0, inf\)"):
        fa.scale_by_amsmax(eps=-1.0)
