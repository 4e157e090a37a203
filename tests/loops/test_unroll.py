"""Inner loops: exact, with every option, under every transform."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from inner_loops import D, data, network, parabola, regression
from recipes import RECIPES, Recipe
from torch.func import functional_call, grad, hessian, jacfwd, jvp, vmap
from trees import assert_close, assert_equal, leaves, tree_map

import functional_adamax as fa

CHECKPOINTS = pytest.mark.parametrize("checkpoint", [False, True, 1, 3], ids=str)


# --- exactness --------------------------------------------------------------------------------


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


def inner(recipe: Recipe, names: list[str], **options: Any) -> Callable[..., Any]:
    """The loss after a loop, as a function of params, of data, and of hyperparameters."""

    def function(w: Any, b: Any, x: Any, anchor: Any, *hyper: Any) -> Any:
        tx = recipe.make(**dict(zip(names, hyper, strict=True)))

        def loss(tree: Any, batch: Any) -> torch.Tensor:
            wave = (tree["w"] @ batch + tree["b"]).sin().square().sum()
            return wave + 0.1 * (tree["w"] - anchor).square().sum()

        end = fa.unroll(loss, tx, {"w": w, "b": b, "none": None}, x.unbind(), **options)
        return end.params["w"].square().sum() + end.values.sum()

    return function


def arguments(recipe: Recipe, names: list[str], steps: int = 3) -> list[torch.Tensor]:
    shapes = [(2, 2), (), (steps, 2), (2, 2)]
    inputs = [torch.randn(shape, dtype=D) for shape in shapes]
    return inputs + [recipe.tensors()[name] for name in names]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"checkpoint": 2}], ids=["plain", "checkpoint"])
def test_gradcheck_and_gradgradcheck(recipe: Recipe, options: dict[str, Any]) -> None:
    names = sorted(recipe.hyper)
    inputs = [x.requires_grad_() for x in arguments(recipe, names)]
    function = inner(recipe, names, **options)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_gradcheck_with_no_momentum_and_with_gaps() -> None:
    """beta1 = 0, and a leaf whose gradient is None at one step, in the bare loop."""

    def function(p: Any, q: Any, lr: Any, b1: Any, b2: Any, eps: Any, decay: Any) -> Any:
        tx = fa.adamax(lr, (b1, b2), eps, decay)
        tree = {"p": p, "q": q}
        state = tx.init(tree)
        for i in range(3):
            grads = {"p": tree["p"].sin(), "q": None if i == 1 else tree["q"] * tree["p"].sum()}
            tree, state = fa.step(tx, grads, state, tree)
        return tree["p"], tree["q"]

    for b1 in (0.0, 0.9):
        values = (0.1, b1, 0.99, 1e-2, 0.1)
        inputs = [torch.randn(3, dtype=D), torch.randn((), dtype=D)]
        inputs += [torch.tensor(x, dtype=D) for x in values]
        inputs = [x.requires_grad_() for x in inputs]
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("shape", [(), (1,), (3,)], ids=["scalar", "one", "per element"])
@CHECKPOINTS
def test_learned_rates_of_every_shape(shape: Any, checkpoint: Any) -> None:
    p = torch.randn(3, dtype=D, requires_grad=True)
    lr = torch.rand(shape, dtype=D).add(0.01).requires_grad_()
    per_leaf = {"a": torch.rand((), dtype=D).requires_grad_(), "b": lr}

    def single(p: Any, lr: Any) -> Any:
        return fa.unroll(
            parabola, fa.adamax(lr, eps=0.1), p, range(4), checkpoint=checkpoint
        ).params

    def tree(p: Any, a: Any, b: Any) -> Any:
        def loss(tree: Any, batch: Any) -> Any:
            return parabola(tree["a"], batch) * parabola(tree["b"], batch)

        tx = fa.adamax({"a": a, "b": b}, eps=0.1)
        end = fa.unroll(loss, tx, {"a": p, "b": 2 * p}, range(3), checkpoint=checkpoint)
        return end.params["a"], end.params["b"]

    assert torch.autograd.gradcheck(single, (p, lr))
    assert torch.autograd.gradcheck(tree, (p, per_leaf["a"], per_leaf["b"]))


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("checkpoint", [False, 2])
def test_every_way_to_differentiate_agrees(recipe: Recipe, checkpoint: Any) -> None:
    names = sorted(recipe.hyper)
    inputs = arguments(recipe, names)
    function = inner(recipe, names, checkpoint=checkpoint)
    numbers = tuple(range(len(inputs)))
    by_func = grad(function, numbers)(*inputs)
    by_autograd = torch.autograd.grad(
        function(*(x.requires_grad_() for x in inputs)), inputs, allow_unused=True
    )
    inputs = [x.detach() for x in inputs]
    for x, y, z in zip(by_func, by_autograd, inputs, strict=True):
        torch.testing.assert_close(x, torch.zeros_like(z) if y is None else y)
    tangents = tuple(torch.randn_like(x) for x in inputs)
    _, forward = jvp(function, tuple(inputs), tangents)
    reverse = sum((g * t).sum() for g, t in zip(by_func, tangents, strict=True))
    torch.testing.assert_close(forward, reverse)


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


# --- truncation, first order, detaching -------------------------------------------------------


def test_truncation_is_a_detached_state_every_so_often() -> None:
    p0 = torch.randn(3, dtype=D, requires_grad=True)
    lr = torch.tensor(0.1, dtype=D, requires_grad=True)
    tx = fa.adamax(lr, eps=0.1)
    for checkpoint in (False, True):
        end = fa.unroll(parabola, tx, p0, range(7), truncate=3, checkpoint=checkpoint)
        middle = fa.unroll(parabola, tx, p0, range(6))
        start, state = fa.detach((middle.params, middle.state))
        want = fa.unroll(parabola, tx, start, range(1), state=state)
        assert torch.equal(end.params, want.params)
        assert torch.equal(*(torch.autograd.grad(e.params.sum(), lr)[0] for e in (end, want)))
        assert torch.autograd.grad(end.params.sum(), p0, allow_unused=True) == (None,)
        by_value = torch.autograd.grad(end.values[:3].sum(), p0)[0]
        short = fa.unroll(parabola, tx, p0, range(3))
        assert torch.equal(by_value, torch.autograd.grad(short.values.sum(), p0)[0])


def test_early_steps_without_a_graph() -> None:
    p0 = torch.randn(3, dtype=D, requires_grad=True)
    lr = torch.tensor(0.1, dtype=D, requires_grad=True)
    tx = fa.adamax(lr, eps=0.1)
    end = fa.unroll(parabola, tx, p0, range(5), detach_first=3)
    early = fa.unroll(parabola, tx, p0, range(3))
    start, state = fa.detach((early.params, early.state))
    want = fa.unroll(parabola, tx, start, range(2), state=state)
    assert torch.equal(end.params, want.params)
    slope = torch.autograd.grad(end.params.sum(), lr)[0]
    assert torch.equal(slope, torch.autograd.grad(want.params.sum(), lr)[0])
    assert end.values.requires_grad
    assert early.values.requires_grad
    assert torch.equal(end.values[:3], early.values)
    whole = fa.unroll(parabola, tx, p0, range(5), detach_first=9)
    assert not whole.params.requires_grad
    by_func = grad(
        lambda rate: fa.unroll(
            parabola, fa.adamax(rate, eps=0.1), p0.detach(), range(5), detach_first=3
        ).params.sum()
    )(lr.detach())
    torch.testing.assert_close(by_func, slope)


@CHECKPOINTS
@pytest.mark.parametrize("transformed", [False, True], ids=["autograd", "func"])
def test_first_order_gradients_reach_the_start_by_the_identity(
    checkpoint: Any, transformed: bool
) -> None:
    p0 = torch.randn(3, dtype=D)

    def outer(p: torch.Tensor) -> torch.Tensor:
        tx = fa.adamax(0.1)
        end = fa.unroll(parabola, tx, p, range(4), first_order=True, checkpoint=checkpoint)
        return (end.params * torch.arange(3.0, dtype=D)).sum()

    if transformed:
        got = grad(outer)(p0)
    else:
        (got,) = torch.autograd.grad(outer(p0.requires_grad_()), p0)
    assert torch.equal(got, torch.arange(3.0, dtype=D))


def test_a_hundred_steps_with_detach_keep_the_graph_constant() -> None:
    tx, p = fa.adamax(0.01), torch.randn(3, requires_grad=True)
    params, state = p * 1.0, tx.init(p)

    def nodes(x: torch.Tensor) -> int:
        seen, stack = set(), [x.grad_fn]
        while stack:
            node = stack.pop()
            if node is not None and node not in seen:
                seen.add(node)
                stack.extend(n for n, _ in node.next_functions)
        return len(seen)

    counts, sizes = set(), set()
    gc.freeze()  # what is there already need not be looked through
    for i in range(100):
        end = fa.unroll(parabola, tx, *fa.detach((params,)), range(2), state=fa.detach(state))
        params, state = end.params, end.state
        if i >= 5:
            gc.collect()
            sizes.add(sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()))
            counts.add(nodes(params.requires_grad_() * 1))
        del end
    gc.unfreeze()
    assert len(counts) == 1
    assert len(sizes) == 1


def test_without_grad_mode_there_is_no_graph() -> None:
    p0 = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        end = fa.unroll(parabola, fa.adamax(0.1), p0, range(3), checkpoint=True)
    assert all(not x.requires_grad for x in leaves(end) if x is not None)
    assert_equal(end, tree_map(torch.detach, fa.unroll(parabola, fa.adamax(0.1), p0, range(3))))


# --- modules, buffers, odd losses -------------------------------------------------------------


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
def test_one_leaf_computed_from_another_gives_partial_gradients(transformed: bool) -> None:
    """Also where the loss closes over the very tensor it starts from."""
    w = torch.randn(3, dtype=D)

    def outer(w: torch.Tensor) -> torch.Tensor:
        def loss(tree: Any, batch: Any) -> torch.Tensor:
            return (tree["a"] * tree["b"]).sum() + (tree["a"] - w).square().sum()

        end = fa.unroll(loss, fa.adamax(0.1, eps=0.1), {"a": w, "b": 2 * w}, range(2))
        return (end.params["a"] * end.params["b"]).sum()

    if transformed:
        got = grad(outer)(w)
    else:
        (got,) = torch.autograd.grad(outer(w.requires_grad_()), w)
    w = w.detach()
    step = 1e-6
    for i in range(3):
        move = torch.zeros_like(w)
        move[i] = step
        slope = (outer(w + move) - outer(w - move)) / (2 * step)
        assert got[i].item() == pytest.approx(slope.item(), rel=1e-6)


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


OPTIONS: list[dict[str, Any]] = [{}, {"first_order": True}, {"detach_first": 2}, {"truncate": 2}]


@pytest.mark.parametrize("options", [*OPTIONS, {"checkpoint": True}], ids=str)
@pytest.mark.parametrize("tx", [fa.sgd(0.01), fa.adamax(0.1)])
def test_forward_mode_of_both_kinds(tx: Any, options: dict[str, Any]) -> None:
    """By the start, and by a rate, of parameters and values."""
    jacobian = torch.autograd.functional.jacobian
    forward = {"vectorize": True, "strategy": "forward-mode"}
    start, rate = torch.tensor([1.0, 2.0], dtype=D), torch.tensor(0.01, dtype=D)

    def by_start(p: torch.Tensor) -> Any:
        return fa.unroll(lambda p, _: (p**4).sum(), tx, p, range(4), **options)

    def by_rate(lr: torch.Tensor) -> Any:
        return fa.unroll(lambda p, _: (p**4).sum(), fa.sgd(lr), start, range(4), **options)

    for function, x in ((by_start, start), (by_rate, rate)):
        for which in ("params", "values"):
            one: Any = lambda x, f=function, w=which: getattr(f(x), w)  # noqa: E731
            wanted = jacobian(one, x)
            torch.testing.assert_close(jacobian(one, x, **forward), wanted)
            torch.testing.assert_close(jacfwd(one)(x), wanted)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("recording", [False, True])
def test_tangents_without_grad_mode(recorded: bool, recording: bool) -> None:
    start, tangent = torch.tensor([1.0, 2.0], dtype=D), torch.tensor([1.0, 0.5], dtype=D)

    def trained(p: torch.Tensor) -> torch.Tensor:
        return fa.unroll(lambda p, _: (p**4).sum(), fa.sgd(0.01), p, range(4)).params

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(start.clone().requires_grad_(recorded), tangent)
        with torch.set_grad_enabled(recording):
            found = forward_ad.unpack_dual(trained(dual)).tangent
    torch.testing.assert_close(found, jvp(trained, (start,), (tangent,))[1])


@pytest.mark.parametrize("checkpoint", [False, True])
def test_it_trains_in_inference_mode(checkpoint: bool) -> None:
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
