"""Cautious optimizers, against NumPy, at the edges and under vmap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import vmap
from trees import assert_equal
from twins_methods import run

import functional_adamax as fa

NAN = float("nan")


def cautious_oracle(u: np.ndarray, g: np.ndarray) -> np.ndarray:
    mask = (-u * g > 0).astype(np.float64)
    return u * mask / max(mask.mean(), 1e-3)


def test_cautious_leaves_out_what_would_climb() -> None:
    random = np.random.default_rng(0)
    inner = fa.sgd(0.1, momentum=0.9)
    tx = fa.cautious(inner)
    p = {"w": torch.zeros(4, 3, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}
    state = plain = tx.init(p)
    for _ in range(10):
        g = {k: torch.tensor(random.normal(size=tuple(x.shape))) for k, x in p.items()}
        updates, state = tx.update(g, state)
        raw, plain = inner.update(g, plain)
        for k in p:
            want = cautious_oracle(raw[k].numpy(), g[k].numpy())
            np.testing.assert_allclose(updates[k].numpy(), want, rtol=1e-14)
    assert_equal(state, plain)


def test_cautious_of_a_direction_is_cautious_of_the_optimizer() -> None:
    p, grads = torch.randn(9), [torch.randn(9) for _ in range(6)]
    outside = fa.cautious(fa.chain(fa.scale_by_adam(), fa.scale_by_learning_rate(0.1)))
    inside = fa.chain(
        fa.cautious(fa.scale_by_adam(), ascending=True), fa.scale_by_learning_rate(0.1)
    )
    torch.testing.assert_close(run(inside, p, grads), run(outside, p, grads))
    climbing = fa.cautious(fa.adam(0.1, maximize=True), ascending=True)
    down = run(fa.cautious(fa.adam(0.1)), torch.zeros(9), grads)
    torch.testing.assert_close(run(climbing, torch.zeros(9), grads), -down)


@pytest.mark.parametrize(("size", "factor"), [(500, 500.0), (4000, 1000.0)])
def test_cautious_scales_up_a_thousandfold_at_most(size: int, factor: float) -> None:
    tx = fa.cautious(fa.identity(), ascending=True)
    lone = torch.eye(1, size)[0]
    torch.testing.assert_close(tx.update(lone, tx.init(lone))[0], lone * factor)


def test_cautious_at_the_edges() -> None:
    tx = fa.cautious(fa.identity(), ascending=True)
    state = tx.init(None)
    assert tx.update(None, state)[0] is None
    assert tx.update(torch.ones(0, 2), state)[0].shape == (0, 2)
    assert_equal(tx.update(torch.zeros(2), state)[0], torch.zeros(2))
    got = tx.update(torch.tensor([NAN, 1.0]), state)[0]
    assert got[0].isnan()
    assert got[1] == 1.0
    backwards = fa.cautious(fa.scale(-1.0), ascending=True)
    assert_equal(backwards.update(torch.ones(3), backwards.init(None))[0].abs(), torch.zeros(3))
    tiny = torch.tensor([1e-38, 1.0, -1e-38])  # their squares are zero in float32
    assert_equal(tx.update(tiny, state)[0], tiny)
    half = torch.ones(4, dtype=torch.float16)
    assert tx.update(half, state)[0].dtype == torch.float16


def test_cautious_goes_by_components_of_complex_leaves() -> None:
    z = torch.randn(6, dtype=torch.complex128)
    grads = [torch.randn(6, dtype=torch.complex128) for _ in range(4)]
    tx = fa.cautious(fa.sgd(0.1, momentum=0.9))
    want = run(tx, torch.view_as_real(z), [torch.view_as_real(g) for g in grads])
    torch.testing.assert_close(torch.view_as_real(run(tx, z, grads)), want)


def test_under_vmap_the_share_is_that_of_each_member() -> None:
    tx = fa.cautious(fa.sgd(0.1, momentum=0.9))
    p, a, b = torch.randn(3, 5), torch.randn(3, 5), torch.randn(3, 5)
    got = vmap(lambda p, a, b: run(tx, p, [a, b]))(p, a, b)
    for i in range(3):
        torch.testing.assert_close(got[i], run(tx, p[i], [a[i], b[i]]))


def test_mistakes_are_named() -> None:
    with pytest.raises(TypeError, match=r"inner must be a pair .*, got 0.1"):
        fa.cautious(0.1)  # type: ignore[arg-type]
    inner = fa.GradientTransformation(lambda p: (), lambda u, s, p=None: ({"b": u["a"]}, s))
    with pytest.raises(ValueError, match=r"the updates of inner must.*\['a'\] is missing"):
        fa.cautious(inner).update({"a": torch.ones(2)}, ())
