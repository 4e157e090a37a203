"""The rule of Adamax is the paper's, and its derivative is what autograd finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from executors import bits, leaf
from oracle import Oracle
from torch import Tensor
from trees import DTYPES

from functional_adamax._core import numerics
from functional_adamax._execution import adamax_rule
from functional_adamax._execution.adamax_rule import AdamaxLeaf

NAN, INF = torch.nan, torch.inf


def moved(x: AdamaxLeaf) -> tuple[AdamaxLeaf, Tensor]:
    update, t, m, u = adamax_rule.step(x)
    return x._replace(p=x.p + update, t=t, m=m, u=u), update


@pytest.mark.parametrize("maximize", [False, True])
def test_many_steps_are_those_of_the_paper(maximize: bool) -> None:
    p = torch.randn(7, dtype=torch.float64)
    oracle = Oracle(p.numpy(), 0.1, 0.8, 0.9, 1e-3, 0.01, maximize)
    zeros = torch.zeros(7, dtype=torch.float64)
    t = torch.zeros((), dtype=torch.float64)
    x = AdamaxLeaf(p, p, zeros, zeros, t, 0.1, 0.8, 0.9, 1e-3, 0.01, maximize=maximize)
    for _ in range(9):
        g = torch.randn(7, dtype=torch.float64)
        oracle.step(g.numpy())
        x, _ = moved(x._replace(g=g))
        np.testing.assert_allclose(x.p.numpy(), oracle.theta, rtol=1e-12)
        np.testing.assert_allclose(x.m.numpy(), oracle.m, rtol=1e-12, atol=1e-16)
        np.testing.assert_allclose(x.u.numpy(), oracle.u, rtol=1e-12)
    assert x.t == 9


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_step_has_the_bits_of_torch(dtype: torch.dtype) -> None:
    x = leaf((257, 3), dtype, 0.1, 0.0, True)
    q = torch.nn.Parameter(x.p.clone())
    q.grad = x.g
    optimizer = torch.optim.Adamax([q], 0.1, (x.b1, x.b2), x.eps)
    state = {"step": x.t.float(), "exp_avg": x.m.clone(), "exp_inf": x.u.clone()}
    optimizer.state[q] = state
    optimizer.step()
    update, t, m, u = adamax_rule.step(x)
    found = numerics.add(x.p, update), m, u
    for got, want in zip(found, (q.detach(), state["exp_avg"], state["exp_inf"]), strict=True):
        assert torch.equal(bits(got), bits(want))
    assert t == state["step"]


def test_special_values() -> None:
    """Of g and u; eps is zero, so that 0/0 shows."""
    g = torch.tensor([0.0, -0.0, INF, -INF, NAN, 1.0, 1e-45])
    zeros = torch.zeros(7)
    t = torch.zeros((), dtype=torch.float64)
    x = AdamaxLeaf(zeros, g, zeros, zeros, t, 1.0, 0.75, 0.5, 0.0, 0.0)
    update, _, m, u = adamax_rule.step(x)
    np.testing.assert_array_equal(u.numpy(), np.array([0, 0, INF, INF, NAN, 1, 1e-45], np.float32))
    np.testing.assert_array_equal(m.numpy()[[0, 2, 3, 4, 5]], [0, INF, -INF, NAN, 0.25])
    np.testing.assert_array_equal(update.numpy()[:6], [NAN, NAN, NAN, NAN, NAN, -1])


def test_nothing_given_is_written_and_empty_leaves_are_stepped() -> None:
    for shape in ((), (0, 3), (4,)):
        x = leaf(shape, torch.float32, 0.1, 0.1, False)
        before = [y.clone() for y in x[:5]]
        update, t, m, u = adamax_rule.step(x)
        assert all(torch.equal(y, z) for y, z in zip(x[:5], before, strict=True))
        assert update.shape == m.shape == u.shape == shape
        assert t == x.t + 1


def test_the_scale_is_the_rate_over_the_bias() -> None:
    x = leaf((3,), torch.float64, 0.1, 0.0, False)
    t = torch.tensor(5.0, dtype=torch.float64)
    assert adamax_rule.scale(x, t).item() == -(0.1 / (1 - 0.9**5))
