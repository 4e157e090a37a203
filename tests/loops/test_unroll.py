"""Inner loops: exact, with every option, under every transform."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import pytest
import torch
from inner_loops import CHECKPOINTS, D, data, network, parabola, regression
from torch.func import functional_call, grad, hessian, jacfwd, vmap
from trees import assert_close, assert_equal, leaves, tree_map

import functional_adamax as fa
from functional_adamax._core import context


def by_hand(p: torch.Tensor, lr: Any, b1: Any, b2: Any, eps: Any, steps: int) -> torch.Tensor:
    """Adamax on sum(p^2), written out for this test alone."""
    m, u = torch.zeros_like(p), torch.zeros_like(p)
    for t in range(1, steps + 1):
        g = 2 * p
        m = b1 * m + (1 - b1) * g
        u = torch.maximum(b2 * u, g.abs() + eps)
        p = p - lr / (1 - b1**t) * m / u
    return (p**2).sum()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
@CHECKPOINTS
def test_the_reference_written_by_hand(steps: int, checkpoint: Any) -> None:
    p0 = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=D))
    hyper = [torch.tensor(x, dtype=D, requires_grad=True) for x in (0.1, 0.9, 0.999, 1e-8)]
    lr, b1, b2, eps = hyper
    end = fa.unroll(parabola, fa.adamax(lr, (b1, b2), eps), p0, range(steps), checkpoint=checkpoint)
    got = torch.autograd.grad(parabola(end.params, None), [p0, *hyper])
    want = torch.autograd.grad(by_hand(p0, *hyper, steps), [p0, *hyper])
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    if steps == 3:
        assert got[0].tolist() == pytest.approx([1.4086683, 3.4018064], abs=5e-7)
        assert got[1].item() == pytest.approx(-13.5628, abs=5e-5)


@pytest.mark.parametrize("checkpoint", [False, 2])
def test_vmap_over_tasks_is_a_loop(checkpoint: Any) -> None:
    module = network()
    params = {name: p.detach() for name, p in module.named_parameters()}
    x, y = torch.randn(3, 5, 4, dtype=D), torch.randn(3, 5, 3, dtype=D)
    lr = torch.tensor(0.05, dtype=D)
    loss = regression(module)

    def task(params: Any, lr: Any, x: Any, y: Any) -> Any:
        tx = fa.adamax(lr, eps=1e-3)
        end = fa.unroll(loss, tx, params, repeat((x, y), 5), checkpoint=checkpoint)
        return loss(end.params, (x, y))

    def batched(params: Any, lr: Any) -> Any:
        return vmap(task, (None, None, 0, 0))(params, lr, x, y).sum()

    def looped(params: Any, lr: Any) -> Any:
        return sum(task(params, lr, *pair) for pair in zip(x, y, strict=True))

    for function in (lambda f: grad(f, (0, 1)), lambda f: grad(lambda p, r: hessian(f, 1)(p, r))):
        assert_close(function(batched)(params, lr), function(looped)(params, lr), ulps=64)
    twice = vmap(lambda rate: vmap(lambda a, b: task(params, rate, a, b))(x, y))(
        torch.tensor([0.01, 0.05], dtype=D)
    )
    torch.testing.assert_close(twice[1].sum(), looped(params, lr))
    torch.testing.assert_close(jacfwd(batched, 1)(params, lr), grad(batched, 1)(params, lr))


@CHECKPOINTS
def test_leaves_that_are_not_floating_pass_through(checkpoint: Any) -> None:
    tree = {"w": torch.ones(2, requires_grad=True), "n": torch.tensor([1, 2]), "none": None}
    end = fa.unroll(
        lambda p, _: (p["w"] * p["n"]).square().sum(),
        fa.adamax(),
        tree,
        range(3),
        checkpoint=checkpoint,
    )
    assert end.params["n"].tolist() == [1, 2]
    assert end.params["none"] is None


def test_without_grad_mode_there_is_no_graph() -> None:
    p0 = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        end = fa.unroll(parabola, fa.adamax(0.1), p0, range(3), checkpoint=True)
    assert all(not x.requires_grad for x in leaves(end) if x is not None)
    assert_equal(end, tree_map(torch.detach, fa.unroll(parabola, fa.adamax(0.1), p0, range(3))))


@CHECKPOINTS
def test_buffers_go_in_and_come_out(checkpoint: Any) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).double()
    params, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    before = {name: b.clone() for name, b in buffers.items()}
    batches = data(3)

    def loss(tree: Any, buffers: Any, batch: Any) -> torch.Tensor:
        x, y = batch
        return (functional_call(module, (tree, buffers), (x,)) - y).square().mean()

    end = fa.unroll(loss, fa.adamax(0.01), params, batches, buffers=buffers, checkpoint=checkpoint)
    assert_equal(dict(module.named_buffers()), before)
    assert int(end.buffers["1.num_batches_tracked"]) == 3

    classic = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).double()
    classic.load_state_dict(module.state_dict())
    optimizer = torch.optim.Adamax(classic.parameters(), lr=0.01)
    for x, y in batches:
        optimizer.zero_grad()
        (classic(x) - y).square().mean().backward()
        optimizer.step()
    assert_equal(
        tree_map(torch.detach, end.params), tree_map(torch.detach, dict(classic.named_parameters()))
    )
    assert_equal(end.buffers, dict(classic.named_buffers()))
    assert torch.autograd.grad(end.params["0.weight"].sum(), params["0.weight"])[0].isfinite().all()


@pytest.mark.parametrize("transformed", [False, True], ids=["autograd", "func"])
def test_unused_and_frozen_leaves(transformed: bool) -> None:
    tree = {"used": torch.ones(2), "unused": torch.ones(2), "none": None, "n": torch.tensor(1)}

    def loss(tree: Any, batch: Any) -> torch.Tensor:
        return tree["used"].square().sum() * tree["n"]

    def end(used: torch.Tensor) -> Any:
        return fa.unroll(loss, fa.adamax(0.1), {**tree, "used": used}, range(2))

    if transformed:
        grad(lambda used: end(used).params["used"].sum())(tree["used"])
    result = end(tree["used"])
    assert torch.equal(result.params["unused"], tree["unused"])
    assert result.params["none"] is None
    assert result.params["n"] is tree["n"]
    constant = fa.unroll(lambda *_: torch.tensor(1.0), fa.adamax(0.1), tree, range(2))
    assert torch.equal(constant.params["used"], tree["used"])


def test_state_goes_on_and_values_are_the_losses() -> None:
    p0, tx = torch.randn(3, dtype=D), fa.adamax(lambda count: 0.1 * 0.9**count)
    whole = fa.unroll(parabola, tx, p0, range(6))
    first = fa.unroll(parabola, tx, p0, range(2))
    second = fa.unroll(parabola, tx, first.params, range(4), state=first.state)
    assert_equal((whole.params, whole.state), (second.params, second.state))
    assert torch.equal(whole.values, torch.cat([first.values, second.values]))
    assert whole.values[0] == parabola(p0, None)
    assert whole.buffers == fa.EmptyState()


def test_a_transform_without_state_can_be_unrolled() -> None:
    sgd = fa.scale_by_learning_rate(torch.tensor(0.1, dtype=D, requires_grad=True))
    p0 = torch.ones(2, dtype=D)
    end = fa.unroll(parabola, sgd, p0, range(3), checkpoint=True)
    torch.testing.assert_close(end.params, p0 * 0.8**3)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_it_trains_in_inference_mode(checkpoint: bool) -> None:
    if not context.differentiates_in_inference_mode():
        pytest.skip("this version of torch has no gradients there")
    with torch.inference_mode():
        loop = (lambda p, _: (p**2).sum(), fa.sgd(0.1), torch.ones(2), range(3))
        torch.testing.assert_close(
            fa.unroll(*loop, checkpoint=checkpoint).params, torch.full((2,), 0.8**3)
        )
        torch.testing.assert_close(fa.implicit(*loop).params, torch.full((2,), 0.8**3))


def test_batches_are_iterated_once() -> None:
    def shuffled() -> Any:
        torch.manual_seed(0)
        return torch.utils.data.DataLoader(range(6), batch_size=1, shuffle=True)

    wanted = torch.cat(list(shuffled())).float()
    found = fa.unroll(lambda p, x: (p * x).sum(), fa.sgd(0.0), torch.ones(1), shuffled()).values
    assert torch.equal(found, wanted)


def test_errors_of_unroll() -> None:
    p = torch.ones(2)
    tx = fa.adamax()
    for options, message in (
        ({"checkpoint": -1}, "checkpoint must be True, False or a number of steps, got -1"),
        ({"checkpoint": 0.5}, "checkpoint must be True, False or a number of steps, got 0.5"),
        ({"truncate": 0}, "truncate must be None or a number of steps >= 1, got 0"),
        ({"detach_first": -2}, "detach_first must be a number of steps >= 0, got -2"),
    ):
        with pytest.raises(ValueError, match=message):
            fa.unroll(parabola, tx, p, range(2), **options)
    with pytest.raises(TypeError, match="batches must be iterable, with a batch for each step"):
        fa.unroll(parabola, tx, p, 5)  # type: ignore[arg-type]
    for given, got in (
        (fa.adamax, "the function adamax: call it"),
        (torch.optim.Adam([p]), "the optimizer Adam: it steps by itself"),
        (None, "None"),
    ):
        for call in (
            lambda given=given: fa.unroll(parabola, given, p, range(2)),
            lambda given=given: fa.step(given, p, None, p),
            lambda given=given: fa.chain(given),
        ):
            with pytest.raises(TypeError, match=rf"must be a pair .* of functions, got {got}"):
                call()
    for loss in (
        lambda p, _: p,
        lambda p, _: 1.0,
        lambda p, _: (p > 0).sum(),
        lambda p, _: p.sum().to(torch.complex64),
    ):
        with pytest.raises(ValueError, match="loss must return a real scalar tensor, got"):
            fa.unroll(loss, tx, p, range(2))
