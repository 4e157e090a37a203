"""What the methods share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import grad, vmap
from trees import assert_equal
from twins_methods import run

import functional_adamax as fa
from functional_adamax._core import numerics

METHODS = {
    "sgd": fa.sgd(0.1, 0.9, weight_decay=0.1),
    "adam": fa.adam(0.1, eps=1e-3, weight_decay=0.1),
    "adamw": fa.adamw(0.1, eps=1e-3, weight_decay=0.1),
    "rmsprop": fa.rmsprop(0.1, eps=1e-3, weight_decay=0.1, momentum=0.5, centered=True),
    "lion": fa.lion(0.1, weight_decay=0.1),
    "nadamax": fa.nadamax(0.1, eps=1e-3, weight_decay=0.1),
}
methods = pytest.mark.parametrize("tx", METHODS.values(), ids=METHODS)


def test_the_root_has_the_values_of_torchs() -> None:
    v = torch.tensor([0.0, -0.0, 4.0, 1e-45, torch.inf, torch.nan, -1.0])
    torch.testing.assert_close(numerics.root(v), v.sqrt(), rtol=0, atol=0, equal_nan=True)


def test_the_root_has_a_finite_derivative_at_zero() -> None:
    v = torch.tensor([0.0, 4.0], dtype=torch.float64)
    assert grad(lambda v: numerics.root(v).sum())(v).tolist() == [0.0, 0.25]
    assert grad(lambda v: grad(lambda v: numerics.root(v).sum())(v).sum())(v).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
def test_the_averages_have_the_bits_of_torchs(dtype: torch.dtype, decay: float) -> None:
    m, v, g = (
        torch.randn(999, dtype=dtype),
        torch.rand(999, dtype=dtype),
        torch.randn(999).to(dtype),
    )
    for given in (decay, torch.tensor(decay, dtype=torch.float64)):
        assert_equal(numerics.average(m, g, given), m.clone().lerp_(g, 1 - decay))
        square = v.clone().mul_(decay).addcmul_(g, g, value=1 - decay)
        assert_equal(numerics.average_square(v, g, given), square)


@methods
def test_complex_leaves_go_by_components(tx: fa.GradientTransformation) -> None:
    z = torch.randn(6, dtype=torch.complex128)
    grads: list[Any] = [torch.randn(6, dtype=torch.complex128) for _ in range(3)]
    want = run(tx, torch.view_as_real(z), [torch.view_as_real(g) for g in grads])
    torch.testing.assert_close(torch.view_as_real(run(tx, z, grads)), want)
    lazy = [g.conj().resolve_conj().conj() for g in grads]  # conjugate views of the same values
    assert lazy[0].is_conj()
    assert_equal(run(tx, z, lazy), run(tx, z, grads))


def test_a_learning_rate_for_every_element_of_a_complex_leaf() -> None:
    z, g = torch.randn(2, dtype=torch.complex128), torch.randn(2, dtype=torch.complex128)
    for make in (fa.sgd, fa.adam, fa.adamw, fa.rmsprop, fa.lion, fa.nadamax):
        each = make(torch.tensor([0.1, 0.2], dtype=torch.float64), weight_decay=0.1)
        got = run(each, z, [g, g])
        for i, lr in enumerate((0.1, 0.2)):
            want = run(make(lr, weight_decay=0.1), z[i], [g[i], g[i]])
            torch.testing.assert_close(got[i], want)


@methods
def test_a_step_is_counted_for_each_leaf(tx: fa.GradientTransformation) -> None:
    tree = {"a": torch.ones(2), "b": torch.ones(2), "none": None}
    state = tx.init(tree)
    for i in range(4):
        grads = {"a": torch.ones(2), "b": torch.ones(2) if i % 2 else None, "none": None}
        tree, state = fa.step(tx, grads, state, tree)
    assert (float(state.step["a"]), float(state.step["b"])) == (4.0, 2.0)
    assert state.step["a"].dtype == torch.float64
    assert state.step["none"] == fa.EmptyState()


@methods
def test_a_gradient_of_another_dtype_is_cast(tx: fa.GradientTransformation) -> None:
    p, g = torch.randn(3), torch.randn(3, dtype=torch.float64)
    assert_equal(run(tx, p, [g, g]), run(tx, p, [g.float(), g.float()]))


@methods
def test_a_tied_parameter_warns_once(tx: fa.GradientTransformation) -> None:
    x = torch.ones(2)
    with pytest.warns(UserWarning, match=r"params\['a'\] and params\['b'\]") as caught:
        tx.init({"a": x, "b": x})
    assert len(caught) == 1
    assert caught[0].filename == __file__


@methods
def test_inside_func_grad_and_vmap_of_grad(tx: fa.GradientTransformation) -> None:
    def after_two_steps(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        def loss(w: torch.Tensor) -> torch.Tensor:
            return ((w * x - 1) ** 2).sum()

        state = tx.init(w)
        for _ in range(2):
            w, state = fa.step(tx, grad(loss)(w), state, w)
        return loss(w)

    w, x = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    got = vmap(grad(after_two_steps))(w, x)
    for i in range(4):
        torch.testing.assert_close(got[i], grad(after_two_steps)(w[i], x[i]))
