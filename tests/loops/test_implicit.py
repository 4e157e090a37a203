"""Derivatives of a solution by the implicit function theorem."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import pytest
import torch
from inner_loops import D, Doubled
from torch.func import grad, vmap

import functional_adamax as fa

SOLVERS: list[dict[str, Any]] = [
    {"solver": "cg", "iterations": 10},
    {"solver": "neumann", "step_size": 0.02, "iterations": 3000},
]
START = torch.zeros(4, dtype=D)
every = pytest.mark.parametrize("options", SOLVERS, ids=["cg", "neumann"])


def settling(count: torch.Tensor) -> torch.Tensor:
    """A rate that lets Adamax come to rest."""
    return 0.3 * 0.97 ** count.double()


TX = fa.adamax(settling, betas=(0.5, 0.5))


def problem() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(20, 4), (20,), (10, 4), (10,)]
    return tuple(torch.randn(shape, dtype=D, generator=generator) for shape in shapes)


def ridge(w: torch.Tensor, batch: Any, penalty: torch.Tensor) -> torch.Tensor:
    x, y = batch
    return (x @ w - y).square().sum() / 2 + penalty * w.square().sum() / 2


def closed_form(x: torch.Tensor, y: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=D), x.T @ y)


@every
def test_the_penalty_of_a_ridge_regression(options: dict[str, Any]) -> None:
    """By the penalty the loss closes over, by the data, twice by the penalty."""
    x, y, xv, yv = problem()
    penalty = torch.tensor(0.7, dtype=D, requires_grad=True)
    x.requires_grad_()

    def outer(w: torch.Tensor) -> torch.Tensor:
        return (xv @ w - yv).square().mean()

    end = fa.implicit(
        lambda w, batch: ridge(w, batch, penalty),
        TX,
        torch.zeros(4, dtype=D),
        repeat((x, y), 700),
        **options,
    )
    exact = closed_form(x, y, penalty)
    torch.testing.assert_close(end.params, exact, rtol=0, atol=1e-11)
    assert not end.values.requires_grad
    got = torch.autograd.grad(outer(end.params), [penalty, x])
    want = torch.autograd.grad(outer(exact), [penalty, x])
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() < 1e-8


@every
def test_under_func_grad_and_vmap(options: dict[str, Any]) -> None:
    x, y, xv, yv = problem()
    penalties = torch.tensor([0.3, 0.7, 2.0], dtype=D)

    def outer(penalty: torch.Tensor, solution: Any) -> torch.Tensor:
        return (xv @ solution(penalty) - yv).square().mean()

    def learned(penalty: torch.Tensor) -> torch.Tensor:
        def loss(w: torch.Tensor, batch: Any) -> torch.Tensor:
            return ridge(w, batch, penalty)

        return fa.implicit(loss, TX, START, repeat((x, y), 700), **options).params

    def exact(penalty: torch.Tensor) -> torch.Tensor:
        return closed_form(x, y, penalty)

    one = grad(lambda p: outer(p, learned))(penalties[1])
    torch.testing.assert_close(
        one, grad(lambda p: outer(p, exact))(penalties[1]), rtol=1e-8, atol=1e-9
    )
    all_at_once = vmap(grad(lambda p: outer(p, learned)))(penalties)
    wanted = vmap(grad(lambda p: outer(p, exact)))(penalties)
    torch.testing.assert_close(all_at_once, wanted, rtol=1e-8, atol=1e-9)
    summed = grad(lambda p: vmap(lambda s: outer(p * s, learned))(penalties).sum())
    wanted_sum = grad(lambda p: vmap(lambda s: outer(p * s, exact))(penalties).sum())
    point = torch.tensor(1.0, dtype=D)
    torch.testing.assert_close(summed(point), wanted_sum(point), rtol=1e-8, atol=1e-9)


def test_imaml_learns_the_point_the_loss_pulls_to() -> None:
    """min |x w - y|^2 / 2 + |w - start|^2 / 2: the derivative by the start is (x'x + 1)^-1."""
    x, y, *_ = problem()
    start = {"a": torch.randn(2, dtype=D, requires_grad=True), "b": torch.randn(2, dtype=D)}

    def loss(tree: Any, batch: Any) -> torch.Tensor:
        w = torch.cat([tree["a"], tree["b"]])
        pull = sum((tree[name] - start[name]).square().sum() for name in tree)
        return (batch[0] @ w - batch[1]).square().sum() / 2 + pull / 2

    end = fa.implicit(loss, TX, start, repeat((x, y), 700))
    weights = torch.randn(4, dtype=D)
    outer = (torch.cat([end.params["a"], end.params["b"]]) * weights).sum()
    (got,) = torch.autograd.grad(outer, start["a"])
    want = torch.linalg.solve(x.T @ x + torch.eye(4, dtype=D), weights)[:2]
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


def test_several_batches_mean_their_mean() -> None:
    targets = [torch.tensor([float(i)], dtype=D, requires_grad=True) for i in range(4)]

    def loss(p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (p - target).square().sum()

    start = torch.full((1,), 1.5, dtype=D)
    end = fa.implicit(loss, fa.adamax(0.0), start, targets)
    got = torch.autograd.grad(end.params.sum(), targets)
    assert [g.item() for g in got] == pytest.approx([0.25] * 4)


def test_unroll_and_implicit_are_called_alike() -> None:
    """And agree where the loop converges."""
    x, y, *_ = problem()
    penalty = torch.tensor(0.7, dtype=D, requires_grad=True)
    slopes = []
    for differentiate in (fa.unroll, fa.implicit):
        end = differentiate(
            lambda w, batch: ridge(w, batch, penalty),
            TX,
            torch.zeros(4, dtype=D),
            repeat((x, y), 700),
        )
        slopes.append(torch.autograd.grad(end.params.sum(), penalty)[0])
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-9)


def test_damping_modules_buffers_and_frozen_leaves() -> None:
    x, y, *_ = problem()
    target = y.clone().requires_grad_()
    module = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.BatchNorm1d(1)).double()
    params = {**dict(module.named_parameters()), "none": None, "n": torch.tensor(2)}
    buffers = dict(module.named_buffers())
    before = {name: b.clone() for name, b in buffers.items()}

    def loss(tree: Any, buffers: Any, batch: Any) -> torch.Tensor:
        weights = {k: v for k, v in tree.items() if k not in ("none", "n")}
        out = torch.func.functional_call(module, (weights, buffers), (batch[0],))
        return (out.squeeze(-1) - batch[1]).square().mean()

    end = fa.implicit(loss, TX, params, repeat((x, target), 5), buffers=buffers, damping=0.1)
    assert end.params["none"] is None
    assert torch.equal(end.params["n"], params["n"])
    assert all(torch.equal(b, before[name]) for name, b in module.named_buffers())
    assert torch.autograd.grad(end.params["0.weight"].sum(), target)[0].isfinite().all()


def test_losses_with_autograd_functions_and_empty_leaves() -> None:
    target = torch.tensor([2.0, 3.0], dtype=D, requires_grad=True)

    def loss(p: Any, _: Any) -> torch.Tensor:
        return ((p["a"] - Doubled.apply(target)) ** 2).sum() + p["b"].sum()

    start = {"a": torch.zeros(2, dtype=D), "b": torch.zeros(0, dtype=D)}
    end = fa.implicit(loss, fa.sgd(0.25), start, [0] * 60).params
    (found,) = torch.autograd.grad(end["a"].sum() + end["b"].sum(), target)
    torch.testing.assert_close(found, torch.full((2,), 2.0, dtype=D))
    nothing = fa.implicit(lambda p, _: (p * target[0]).sum(), fa.sgd(0.1), start["b"], [0]).params
    assert torch.autograd.grad(nothing.sum(), target)[0].eq(0).all()


def test_batches_count_as_often_as_they_come() -> None:
    targets = torch.tensor([1.0, 5.0], dtype=D, requires_grad=True)
    tx = fa.multi_steps(fa.sgd(0.5), 4)
    start = torch.tensor(0.0, dtype=D)
    end = fa.implicit(lambda p, i: (p - targets[i]) ** 2 / 2, tx, start, [0, 0, 0, 1] * 100)
    torch.testing.assert_close(end.params, torch.tensor(2.0, dtype=D))
    slope = torch.autograd.grad(end.params, targets)[0]
    torch.testing.assert_close(slope, torch.tensor([0.75, 0.25], dtype=D))


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("held", ["unused", "frozen"])
def test_a_leaf_that_is_no_unknown_is_refused(dtype: torch.dtype, held: str) -> None:
    target = torch.tensor(1.0, dtype=dtype, requires_grad=True)
    start = {"free": torch.zeros((), dtype=dtype), "held": torch.ones((), dtype=dtype)}

    def loss(p: Any, batch: Any, target: torch.Tensor) -> torch.Tensor:
        return (p["free"] - target * (p["held"] if held == "frozen" else 1.0)) ** 2 / 2

    tx = fa.chain(fa.sgd(0.1), fa.freeze(fa.by_path(lambda name: name == "held")))

    def outer(target: torch.Tensor) -> torch.Tensor:
        end = fa.implicit(lambda p, _: loss(p, _, target), tx, start, range(200)).params
        return end["free"] * end["held"]

    with pytest.raises(RuntimeError, match="Hessian of the loss is not positive definite"):
        torch.autograd.grad(outer(target), target)
    assert grad(outer)(target.detach()).isnan()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # by which torch goes on after a break
@pytest.mark.parametrize("kind", ["implicit", "checkpoint"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiler_runs_it_as_it_is(kind: str, backend: str) -> None:
    def outer(target: torch.Tensor) -> torch.Tensor:
        def loss(p: torch.Tensor, _: Any) -> torch.Tensor:
            return ((p - target) ** 2).sum()

        start = torch.zeros(2, dtype=D)
        if kind == "implicit":
            end = fa.implicit(loss, fa.sgd(0.25), start, range(60))
        else:
            end = fa.unroll(loss, fa.sgd(0.25), start, range(6), checkpoint=2)
        return end.params.sum() + target

    target = torch.tensor(1.0, dtype=D, requires_grad=True)
    torch._dynamo.reset()
    (found,) = torch.autograd.grad(torch.compile(outer, backend=backend)(target), target)
    torch.testing.assert_close(found, torch.autograd.grad(outer(target), target)[0])


def test_errors_of_implicit() -> None:
    def loss(p: torch.Tensor, batch: Any) -> torch.Tensor:
        return p.square().sum()

    for options, message in (
        ({"solver": "lu"}, 'solver must be "cg" or "neumann", got \'lu\''),
        ({"iterations": 0}, "iterations must be a number >= 1, got 0"),
        ({"damping": -1.0}, "damping must be in"),
        ({"tolerance": -1.0}, "tolerance must be in"),
        ({"step_size": 0.0}, "step_size must be a number in"),
    ):
        with pytest.raises(ValueError, match=message):
            fa.implicit(loss, fa.adamax(), torch.ones(2), range(2), **options)
