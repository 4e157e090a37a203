"""Checkpointed inner loops have the bits of the plain ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from inner_loops import D, Doubled, data, network, regression
from torch.func import grad, jacrev, vmap
from trees import assert_equal, tree_map

import functional_adamax as fa


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_loops_in_loops(inside: bool, outside: bool) -> None:
    """By what the inner loop closes over, in all modes."""
    start = torch.tensor([1.0, 2.0], dtype=D)

    def trained(lr: torch.Tensor, inside: bool, outside: bool) -> torch.Tensor:
        def loss(a: torch.Tensor, _: Any) -> torch.Tensor:
            def inner(q: torch.Tensor, _: Any) -> torch.Tensor:
                return (a * q**2).sum()

            end = fa.unroll(inner, fa.sgd(lr), start, range(3), checkpoint=inside)
            return (end.params**2).sum()

        half = torch.tensor(0.5, dtype=D)
        return fa.unroll(loss, fa.sgd(0.01), half, range(3), checkpoint=outside).params

    lr = torch.tensor(0.1, dtype=D, requires_grad=True)
    (wanted,) = torch.autograd.grad(trained(lr, False, False), lr)
    assert wanted > 0.3

    def function(lr: torch.Tensor) -> torch.Tensor:
        return trained(lr, inside, outside)

    torch.testing.assert_close(torch.autograd.grad(function(lr), lr)[0], wanted)
    torch.testing.assert_close(grad(function)(lr.detach()), wanted)
    torch.testing.assert_close(vmap(grad(function))(lr.detach().expand(2))[1], wanted)

    def batched(lr: torch.Tensor) -> torch.Tensor:
        return vmap(lambda x: function(lr) * x)(torch.ones(2, dtype=D)).mean()

    torch.testing.assert_close(grad(batched)(lr.detach()), wanted)


@pytest.mark.parametrize(
    "same",
    [torch.Tensor.double, torch.Tensor.cpu, torch.flatten, torch.real, torch.as_tensor],
)
def test_operations_that_return_their_argument(same: Any) -> None:
    target = torch.tensor([1.0, 3.0], dtype=D, requires_grad=True)

    def loss(p: torch.Tensor, _: Any) -> torch.Tensor:
        return ((p - same(target)) ** 2).sum() * (target.data + same(target)).sum()

    found = []
    for checkpoint in (False, True):
        end = fa.unroll(
            loss, fa.adamax(0.1), torch.zeros(2, dtype=D), range(5), checkpoint=checkpoint
        )
        found.append(torch.autograd.grad(end.params.sum(), target)[0])
    assert torch.equal(*found)


def test_closed_over_tensors_that_go_to_autograd_functions() -> None:
    """Ours are followed, others are refused, but for what is computed inside or in a batch."""
    half, weight = torch.tensor(0.5, dtype=D), torch.tensor([1.0, 2.0], dtype=D).requires_grad_()
    tx = fa.adamax(0.1, eps=0.1)

    def stepped(a: torch.Tensor, _: Any) -> torch.Tensor:
        q, _state = fa.step(tx, 2 * weight * a, tx.init(weight), weight)
        return (q**2).sum() * a**2

    def solved(a: torch.Tensor, _: Any) -> torch.Tensor:
        def inner(p: torch.Tensor, _: Any) -> torch.Tensor:
            return (weight**2 * (p - a) ** 2).sum() + (p**2).sum()

        return (
            fa.implicit(inner, fa.sgd(0.1), torch.ones(2, dtype=D), range(40)).params ** 2
        ).sum()

    def doubled(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (Doubled.apply(x) * Doubled.apply(a) * a).sum()

    cases: dict[Any, list[Any]] = {stepped: [0] * 3, solved: [0] * 3, doubled: [weight]}
    for loss, batches in cases.items():
        found = []
        for checkpoint in (False, True):
            end = fa.unroll(loss, fa.sgd(0.01), half, batches, checkpoint=checkpoint)
            found.append(torch.autograd.grad(end.params, weight)[0])
        torch.testing.assert_close(found[1], found[0])
        assert found[0].all()
    with pytest.raises(RuntimeError, match=r"hands it to a torch\.autograd\.Function"):
        fa.unroll(lambda a, _: doubled(a, weight), fa.sgd(0.01), half, [0] * 3, checkpoint=True)


def test_data_of_a_transform_is_closed_over() -> None:
    x, y = torch.randn(4, 5, 2, dtype=D), torch.randn(4, 5, dtype=D)

    def trained(p: torch.Tensor, x: torch.Tensor, y: torch.Tensor, checkpoint: bool) -> Any:
        def loss(p: torch.Tensor, _: Any) -> torch.Tensor:
            return (x @ p - y).square().mean()

        tx = fa.adamax(0.1, eps=0.1)
        return fa.unroll(loss, tx, p, range(5), checkpoint=checkpoint).params.sum()

    def meta(p: torch.Tensor, checkpoint: bool) -> torch.Tensor:
        return vmap(partial(trained, p, checkpoint=checkpoint))(x, y).sum()

    p = torch.tensor([1.0, 2.0], dtype=D)
    torch.testing.assert_close(grad(meta)(p, True), grad(meta)(p, False))
    torch.testing.assert_close(jacrev(jacrev(meta))(p, True), jacrev(jacrev(meta))(p, False))


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
@pytest.mark.parametrize("checkpoint", [True, 1, 4, 100])
@pytest.mark.parametrize("repeated", [False, True], ids=["batches", "one batch"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_checkpointed_gradients_have_the_same_bits(
    dtype: torch.dtype, checkpoint: Any, repeated: bool, dropout: float
) -> None:
    """By params, hyperparameters, data and closed-over tensors; the second ones to 1e-10."""
    module = network(dtype, dropout)
    params = dict(module.named_parameters())
    anchor = {name: torch.randn_like(p).requires_grad_() for name, p in params.items()}
    strength = torch.tensor(0.1, dtype=dtype, requires_grad=True)
    hyper = [
        torch.tensor(x, dtype=dtype, requires_grad=True) for x in (0.05, 0.9, 0.99, 1e-3, 1e-2)
    ]
    batches = data(1, dtype) * 10 if repeated else data(10, dtype)
    for x, _ in batches:
        x.requires_grad_()
    mean = regression(module)

    def loss(tree: Any, batch: Any) -> torch.Tensor:
        pull = sum((tree[name] - anchor[name]).square().sum() for name in tree)
        return mean(tree, batch) + strength * pull

    lr, b1, b2, eps, decay = hyper
    inputs = [
        *params.values(),
        *anchor.values(),
        strength,
        *hyper,
        *{id(x): x for x, _ in batches}.values(),
    ]
    results = []
    for option in (False, checkpoint):
        torch.manual_seed(1)
        tx = fa.adamax(lr, (b1, b2), eps, decay)
        end = fa.unroll(loss, tx, params, batches, checkpoint=option)
        outer = sum(p.square().sum() for p in end.params.values()) + end.values.sum()
        first = torch.autograd.grad(outer, inputs, create_graph=dtype == D)
        second: Any = []
        if dtype == D:
            second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        results.append((end, first, second, torch.rand(())))
    plain, remade = results
    assert_equal(tree_map(torch.detach, remade[0]), tree_map(torch.detach, plain[0]))
    assert torch.equal(remade[3], plain[3]), "the random numbers afterwards differ"
    assert all(torch.equal(x, y) for x, y in zip(remade[1], plain[1], strict=True))
    for x, y in zip(remade[2], plain[2], strict=True):
        assert (x - y).abs().max() <= 1e-10 * y.abs().max()


def test_a_tensor_the_first_step_did_not_use_is_named_in_an_error() -> None:
    late = torch.tensor(2.0, requires_grad=True)

    def loss(p: torch.Tensor, i: int) -> torch.Tensor:
        return (p**2).sum() * (late if i > 1 else 1.0)

    p0 = torch.ones(2, requires_grad=True)
    tx = fa.adamax(0.1)
    for start in (p0, p0.detach()):
        with pytest.raises(
            RuntimeError, match=r"shape \(\) that may be differentiated .* first step"
        ):
            fa.unroll(loss, tx, start, range(4), checkpoint=2)
    with pytest.raises(RuntimeError, match=r"shape \(\) that may be differentiated .* first step"):
        grad(lambda p: fa.unroll(loss, tx, p, range(4), checkpoint=2).params.sum())(p0.detach())
    plain = fa.unroll(loss, tx, p0, range(4))
    assert torch.autograd.grad(plain.params.sum(), late)[0].isfinite()


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_a_closed_over_tensor_handed_to_a_transform_is_named_in_an_error(transform: str) -> None:
    w = torch.ones(2, requires_grad=True)

    def loss(p: torch.Tensor, batch: Any) -> torch.Tensor:
        if transform == "vmap":
            return vmap(lambda a, b: (a * b) ** 3)(p, w).sum()
        return grad(lambda a, b: (a * b).sum() ** 2)(p, w).sum()

    p0 = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"shape \(2,\) .* hands it to a transform"):
        fa.unroll(loss, fa.adamax(0.1), p0, range(4), checkpoint=2)


def test_transforms_inside_a_checkpointed_loss() -> None:
    """Their arguments may be the loss's own, and they may close over what they like."""
    w = torch.ones(2, dtype=D, requires_grad=True)

    def loss(p: torch.Tensor, batch: Any) -> torch.Tensor:
        penalty = grad(lambda a: (a * w).sum() ** 2)(p).square().sum()
        return vmap(lambda a: (a * batch).sin().sum())(p).sum() + 0.1 * penalty

    p0 = torch.randn(2, dtype=D, requires_grad=True)
    batches = [torch.randn(2, dtype=D, requires_grad=True) for _ in range(4)]
    results = []
    for checkpoint in (False, 2):
        end = fa.unroll(loss, fa.adamax(0.1, eps=0.1), p0, batches, checkpoint=checkpoint)
        results.append(torch.autograd.grad(end.params.sum(), [p0, w, *batches]))
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_checkpoint_recomputes_under_the_autocast_of_the_call() -> None:
    module = network(torch.float32)
    params, batches = dict(module.named_parameters()), data(4, torch.float32)
    loss = regression(module)
    results = []
    for checkpoint in (False, 2):
        with torch.autocast("cpu", torch.bfloat16):
            end = fa.unroll(loss, fa.adamax(0.01), params, batches, checkpoint=checkpoint)
        outer = sum(p.square().sum() for p in end.params.values())
        results.append(torch.autograd.grad(outer, list(params.values())))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
