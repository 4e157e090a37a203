"""Inner loops at their edges: no steps, no parameters, what leaves a transform, odd updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inner_loops import D, parabola
from torch.func import functional_call, grad, jacrev, jvp, vmap
from trees import assert_equal, tree_map

import functional_adamax as fa
from functional_adamax.compat import Optimizer

CHECKPOINTS = pytest.mark.parametrize("checkpoint", [False, True, 3, 100], ids=str)
TX = fa.adamax(0.1, eps=0.1)


# --- no steps, no parameters, more than there are ---------------------------------------------


@CHECKPOINTS
@pytest.mark.parametrize(
    "options", [{}, {"truncate": 2}, {"first_order": True}, {"detach_first": 2}], ids=str
)
def test_no_steps_give_the_start(checkpoint: Any, options: dict[str, Any]) -> None:
    start = {"w": torch.ones(2, dtype=D, requires_grad=True), "n": torch.tensor(1), "none": None}
    buffers = {"mean": torch.ones(2)}
    end = fa.unroll(
        lambda p, b, _: b["mean"].sum(), TX, start, [], buffers=buffers, checkpoint=checkpoint,
        **options,
    )  # fmt: skip
    assert torch.equal(end.params["w"], start["w"])
    assert end.params["none"] is None
    assert_equal(end.state, TX.init(start))
    assert (end.values.shape, end.values.dtype) == ((0,), D)
    assert torch.equal(end.buffers["mean"], buffers["mean"])
    end.buffers["mean"].add_(1.0)
    assert torch.equal(buffers["mean"], torch.ones(2)), "the buffers must be copies"
    if options.get("detach_first"):  # the start included, as after one step
        assert not end.params["w"].requires_grad
    else:
        (slope,) = torch.autograd.grad((end.params["w"] ** 2).sum(), start["w"])
        assert torch.equal(slope, 2 * start["w"].detach())


def test_no_steps_under_transforms_and_compiled() -> None:
    p = torch.tensor([1.0, 2.0], dtype=D)

    def square(p: torch.Tensor) -> torch.Tensor:
        return (fa.unroll(parabola, TX, p, []).params ** 2).sum()

    assert torch.equal(grad(square)(p), 2 * p)
    assert jvp(square, (p,), (p,))[1] == 10.0
    assert fa.unroll(parabola, TX, p, [], state=TX.init(p)).values.shape == (0,)
    assert vmap(lambda p: fa.unroll(parabola, TX, p, []))(p[:, None]).values.shape == (2, 0)
    torch._dynamo.reset()
    end = torch.compile(lambda p: fa.unroll(parabola, TX, p, []), fullgraph=True, backend="eager")(
        p
    )
    assert_equal(end, fa.unroll(parabola, TX, p, []))


def test_no_steps_of_implicit_give_the_start_and_no_derivative() -> None:
    target = torch.ones(2, dtype=D, requires_grad=True)
    start = torch.zeros(2, dtype=D)
    end = fa.implicit(lambda p, _: ((p - target) ** 2).sum(), TX, start, [])
    assert torch.equal(end.params, start)
    assert not end.params.requires_grad
    assert end.values.shape == (0,)


EMPTY: list[Any] = [{}, [], (), None, {"a": None}, {"n": torch.tensor(1)}, torch.zeros(0)]


@CHECKPOINTS
@pytest.mark.parametrize("start", EMPTY, ids=repr)
def test_trees_with_nothing_to_train(start: Any, checkpoint: Any) -> None:
    """Losses are still differentiated by what they close over, in every way."""

    def values(c: torch.Tensor) -> torch.Tensor:
        return run(c).values

    def run(c: torch.Tensor) -> fa.Unrolled:
        return fa.unroll(lambda p, x: c * x, TX, start, [2.0, 3.0], checkpoint=checkpoint)

    c = torch.tensor(2.0, dtype=D)
    want = torch.tensor([2.0, 3.0], dtype=D)
    assert_equal(run(c).params, start)
    assert torch.equal(values(c), 2 * want)
    assert torch.equal(jacrev(values)(c), want)
    assert torch.equal(vmap(values)(c[None])[0], 2 * want)
    recorded = c.clone().requires_grad_()
    assert torch.autograd.grad(values(recorded).sum(), recorded)[0] == 5.0
    if checkpoint is False:
        end = fa.implicit(lambda p, x: recorded * x, TX, start, [2.0])
        assert_equal(end.params, start)


@pytest.mark.parametrize("options", [{"truncate": 9}, {"checkpoint": 9}, {"detach_first": 3}])
def test_options_beyond_the_number_of_steps(options: dict[str, int]) -> None:
    p = torch.tensor(2.0, dtype=D, requires_grad=True)
    end, plain = (
        fa.unroll(parabola, TX, p, range(3), **options),
        fa.unroll(parabola, TX, p, range(3)),
    )
    assert torch.equal(end.params, plain.params)
    if "detach_first" in options:
        assert not end.params.requires_grad
    else:
        assert torch.equal(*(torch.autograd.grad(e.params, p)[0] for e in (end, plain)))


# --- leaving transforms -----------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("buffered", [False, True])
def test_what_is_returned_can_leave_a_transform(checkpoint: bool, buffered: bool) -> None:
    start = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=D)
    given = {"n": torch.zeros(())} if buffered else None

    def loss(p: torch.Tensor, *rest: Any) -> torch.Tensor:
        return (p**2).sum()

    def run(p: torch.Tensor) -> fa.Unrolled:
        return fa.unroll(loss, TX, p, range(2), buffers=given, checkpoint=checkpoint)

    many = vmap(run)(start)
    alone = run(start[1])
    assert isinstance(many, fa.Unrolled)
    assert_equal(tree_map(lambda x: x[1] if isinstance(x, torch.Tensor) else x, many), alone)
    assert alone.buffers == (given if buffered else fa.EmptyState())

    def outer(p: torch.Tensor) -> Any:
        end = run(p)
        return end.params.sum(), end

    slope, end = grad(outer, has_aux=True)(start[1])
    assert_equal(end, alone)
    assert slope.isfinite().all()
    assert_equal(vmap(grad(outer, has_aux=True))(start)[1].values, many.values)
    if not checkpoint:
        torch._dynamo.reset()
        assert_equal(torch.compile(run, fullgraph=True, backend="eager")(start[1]), alone)


@pytest.mark.parametrize("differentiate", [fa.unroll, fa.implicit])
def test_a_loop_goes_on_with_what_one_without_buffers_returned(differentiate: Any) -> None:
    first = differentiate(parabola, TX, torch.ones(2, dtype=D), range(2))
    assert isinstance(first.buffers, fa.EmptyState)
    more = {"state": first.state, "buffers": first.buffers}
    second = differentiate(parabola, TX, first.params, range(2), **more)
    assert_equal(
        second.values, fa.unroll(parabola, TX, torch.ones(2, dtype=D), range(4)).values[2:]
    )


@pytest.mark.parametrize("checkpoint", [True, 1, 2])
def test_checkpointed_buffers_under_grad_of_vmap(checkpoint: Any) -> None:
    """Which torch refuses to write where they are marked as differentiable."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    net = net.to(D)
    params = {name: p.detach() for name, p in net.named_parameters()}
    buffers = {name: b.expand(3, *b.shape) for name, b in net.named_buffers()}
    xs = torch.randn(3, 16, 3, dtype=D)

    def loss(p: Any, b: Any, x: torch.Tensor) -> torch.Tensor:
        return functional_call(net, (p, b), (x,)).square().mean()

    def total(p: Any, checkpoint: Any) -> Any:
        def task(b: Any, x: torch.Tensor) -> Any:
            end = fa.unroll(loss, TX, p, [x] * 4, buffers=b, checkpoint=checkpoint)
            return end.values.sum() + loss(end.params, tree_map(torch.clone, end.buffers), x), end

        losses, end = vmap(task)(buffers, xs)
        return losses.mean(), end.buffers

    got, kept = grad(total, has_aux=True)(params, checkpoint)
    want, plain = grad(total, has_aux=True)(params, False)
    assert kept["1.num_batches_tracked"].tolist() == [4] * 3
    for name in kept:
        torch.testing.assert_close(kept[name], plain[name], rtol=1e-12, atol=0.0)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-12)


# --- odd updates ------------------------------------------------------------------------------


def test_an_update_that_takes_params_by_keyword_alone_is_refused() -> None:
    """As torchopt's transforms have it."""

    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> Any:
        raise AssertionError("must not run")

    tx = fa.GradientTransformation(lambda params: (), update)
    message = (
        r"the update of a transform must take \(updates, state, params\), by position, "
        r"got update\(updates.*inplace.*: wrap it"
    )
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    link = fa.chain(fa.clip(1.0), tx)
    for call in (
        lambda: fa.unroll(parabola, tx, p, range(2)),
        lambda: fa.implicit(parabola, tx, p, range(2)),
        lambda: fa.step(tx, p, (), p),
        lambda: link.update(p, link.init(p), p),
        Optimizer([p], tx).step,
    ):
        with pytest.raises(TypeError, match=message):
            call()
    assert torch.equal(p, torch.ones(2))


def test_a_type_error_of_an_update_is_the_users_own() -> None:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return updates + "1", state

    tx = fa.GradientTransformation(lambda params: (), update)
    with pytest.raises(TypeError, match="unsupported operand type|can only concatenate"):
        fa.step(tx, torch.ones(2), (), torch.ones(2))


def test_a_momentum_of_one_is_taken_alike() -> None:
    p, lr = torch.zeros(2, dtype=D), 0.1
    sgd, chain = fa.sgd(lr, momentum=1.0), fa.chain(fa.trace(1.0), fa.scale_by_learning_rate(lr))
    q, a, b = p, sgd.init(p), chain.init(p)
    for _ in range(3):
        g = torch.randn(2, dtype=D)
        p, a = fa.step(sgd, g, a, p)
        q, b = fa.step(chain, g, b, q)
    torch.testing.assert_close(p, q, rtol=1e-14, atol=0.0)
