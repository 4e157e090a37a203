"""What an inner loop gives a transform beside gradients: the loss, and gradients elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inner_loops import D, data, network, parabola, regression
from torch.func import grad, vmap
from trees import assert_close, leaves

import functional_adamax as fa

CHECKPOINTS = pytest.mark.parametrize("checkpoint", [False, 2], ids=str)


def bowl(p: torch.Tensor, batch: Any) -> torch.Tensor:
    return (p**2 - batch).square().sum()


def sharp(p: torch.Tensor, rho: torch.Tensor, checkpoint: Any) -> torch.Tensor:
    tx = fa.sam(fa.adamax(0.1), rho)
    batches = torch.linspace(0.5, 1.0, 4, dtype=D)
    return fa.unroll(bowl, tx, p, batches, checkpoint=checkpoint).params


@CHECKPOINTS
def test_sam_looks_at_the_batch_of_its_step(checkpoint: Any) -> None:
    p, rho = torch.tensor([1.5, -0.7], dtype=D), torch.tensor(0.05, dtype=D)
    tx = fa.sam(fa.adamax(0.1), rho)
    want, state = p, tx.init(p)
    for batch in torch.linspace(0.5, 1.0, 4, dtype=D):
        elsewhere = grad(lambda x, batch=batch: bowl(x, batch))
        want, state = fa.step(tx, elsewhere(want), state, want, grad_fn=elsewhere)
    torch.testing.assert_close(sharp(p, rho, checkpoint), want, rtol=1e-14, atol=0.0)
    plain = fa.unroll(bowl, fa.adamax(0.1), p, torch.linspace(0.5, 1.0, 4, dtype=D)).params
    assert not torch.allclose(plain, want, rtol=1e-6)


@CHECKPOINTS
def test_steps_of_sam_are_differentiated(checkpoint: Any) -> None:
    p = torch.tensor([1.5, -0.7], dtype=D, requires_grad=True)
    rho = torch.tensor(0.05, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, r: sharp(x, r, checkpoint), (p, rho))
    many = torch.tensor([[1.5, -0.7], [0.3, 2.0]], dtype=D)
    found = vmap(lambda x: sharp(x, rho.detach(), False))(many)
    want = torch.stack([sharp(x, rho.detach(), False) for x in many])
    torch.testing.assert_close(found, want, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("kind", ["masked", "partition"])
def test_gradients_elsewhere_for_some_of_the_leaves(kind: str) -> None:
    def loss(p: Any, batch: Any) -> torch.Tensor:
        return (p["a"] ** 2 * p["b"] ** 2).sum() * batch

    start = {"a": torch.tensor([1.0, 2.0], dtype=D), "b": torch.tensor([2.0, 1.0], dtype=D)}
    tx, held = fa.sam(fa.sgd(0.1), 0.05), fa.freeze({"a": False, "b": True})
    masked = fa.chain(fa.masked(tx, {"a": True, "b": False}), held)
    parts = fa.partition({"sam": tx, "held": fa.set_to_zero()}, {"a": "sam", "b": "held"})
    end = fa.unroll(loss, masked if kind == "masked" else parts, start, [0.5, 0.6])
    alone = fa.unroll(lambda a, x: loss({**start, "a": a}, x), tx, start["a"], [0.5, 0.6])
    torch.testing.assert_close(end.params["a"], alone.params)
    assert torch.equal(end.params["b"], start["b"])


def test_batches_may_be_a_dataset() -> None:
    rows = torch.utils.data.TensorDataset(torch.arange(1.0, 4.0))
    end = fa.unroll(lambda p, row: (p * row[0]) ** 2, fa.sgd(0.0), torch.tensor(1.0), rows)
    assert end.values.tolist() == [1.0, 4.0, 9.0]


def test_gradients_elsewhere_are_constants_in_first_order() -> None:
    p = torch.tensor([1.5, -0.7], dtype=D, requires_grad=True)
    tx = fa.sam(fa.scale(-0.1), 0.05)
    end = fa.unroll(bowl, tx, p, [0.5, 0.6], first_order=True).params
    assert torch.equal(torch.autograd.grad(end.sum(), p)[0], torch.ones(2, dtype=D))


def test_buffers_are_written_once_a_step() -> None:
    module = torch.nn.Sequential(network(), torch.nn.BatchNorm1d(3).to(D))
    params, buffers = dict(module.named_parameters()), dict(module.named_buffers())

    def loss(tree: Any, buffers: Any, batch: Any) -> torch.Tensor:
        out = torch.func.functional_call(module, (tree, buffers), (batch[0],))
        return (out - batch[1]).square().mean()

    end = fa.unroll(loss, fa.sam(fa.adamax()), params, data(3), buffers=buffers)
    assert int(end.buffers["1.num_batches_tracked"]) == 3


def test_a_plateau_is_seen() -> None:
    tx = fa.chain(fa.sgd(0.0), fa.reduce_on_plateau(patience=2, factor=0.5))
    end = fa.unroll(parabola, tx, torch.ones(2, dtype=D), range(7))
    assert end.state[1].scale == 0.125  # after steps 3, 5 and 7, of losses that stay the same


def test_a_transform_of_the_users_takes_what_it_names() -> None:
    """Polyak's step: the loss over the squared norm of the gradient."""

    def update(grads: Any, state: Any, params: Any, value: Any) -> tuple[Any, Any]:
        total = sum((g**2).sum() for g in leaves(grads))
        return {name: -g * value / total for name, g in grads.items()}, state

    tx = fa.GradientTransformation(lambda params: (), update)
    module = network()
    start, batches = dict(module.named_parameters()), data(3)
    end = fa.unroll(regression(module), tx, start, batches)
    p = start
    for batch in batches:
        g, value = torch.func.grad_and_value(regression(module))(p, batch)
        total = sum((x**2).sum() for x in g.values())
        p = {name: x - g[name] * value / total for name, x in p.items()}
    assert_close(fa.detach(end.params), fa.detach(p))
    assert torch.autograd.grad(end.values[-1], start["0.weight"])[0].isfinite().all()
