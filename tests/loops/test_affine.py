"""Derivatives through loops over nets with norms, from inside and from outside of ``vmap``."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from inner_loops import D, regression
from torch import nn
from torch.func import functional_call, grad, grad_and_value, jacfwd, vmap
from trees import tree_map

import functional_adamax as fa
from functional_adamax._loops import affine

TASKS = 3
Tree = dict[str, torch.Tensor]


class Channels(nn.Module):
    """A norm of (batch, channels, length), for the rows of a linear layer."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.T[None])[0].T


NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.LayerNorm(6),
    "layer without bias": lambda: nn.LayerNorm(6, bias=False),
    "batch": lambda: nn.BatchNorm1d(6),
    "batch without buffers": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "instance": lambda: Channels(nn.InstanceNorm1d(6, affine=True)),
    "group": lambda: nn.GroupNorm(2, 6),
    "rms": lambda: nn.RMSNorm(6),
}
norms = pytest.mark.parametrize("norm", NORMS)


def network(norm: str) -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 6), NORMS[norm](), nn.Tanh(), nn.Linear(6, 3)).to(D)
    for name, p in net.named_parameters():
        if name.startswith("1."):  # weights other than one, which hide a mistake in their place
            nn.init.uniform_(p, 0.5, 1.5)
    return net


def problem(norm: str, **options: Any) -> tuple[Callable[..., torch.Tensor], Tree, Any]:
    """The loss of a task after a loop, what it starts from, and tasks, stacked."""
    net = network(norm)
    params = {name: p.detach() for name, p in net.named_parameters()}
    buffers = dict(net.named_buffers())
    tx = fa.adamax(torch.tensor(0.05, dtype=D), eps=0.1)

    def loss(p: Tree, b: Tree, batch: Any) -> torch.Tensor:
        return (functional_call(net, (p, b), (batch[0],)) - batch[1]).square().mean()

    def task(p: Tree, b: Tree, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        end = fa.unroll(loss, tx, p, repeat((x, y), 4), buffers=b, **options)
        return loss(end.params, end.buffers, (x, y)) + end.values.sum()

    many = {name: b.expand(TASKS, *b.shape) for name, b in buffers.items()}
    x, y = torch.randn(TASKS, 7, 4, dtype=D), torch.randn(TASKS, 7, 3, dtype=D)
    return task, params, (many, x, y)


def one_by_one(task: Callable[..., torch.Tensor], params: Tree, tasks: Any) -> Tree:
    """The gradient of the sum over the tasks, without vmap."""
    many, xs, ys = tasks
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for i in range(TASKS):
        buffers = {name: b[i].clone() for name, b in many.items()}
        slopes = grad(task)(params, buffers, xs[i], ys[i])
        total = {name: total[name] + g for name, g in slopes.items()}
    return total


def assert_near(got: Tree, want: Tree) -> None:
    """To 1e-10 of the largest: a bias before a batch norm has the derivative zero."""
    largest = max(float(g.abs().max()) for g in want.values())
    assert largest > 1e-3
    for name in want:
        assert (got[name] - want[name]).abs().max() < 1e-10 * largest, name


@norms
@pytest.mark.parametrize("checkpoint", [False, 2])
def test_gradients_inside_of_vmap_are_those_of_a_loop(norm: str, checkpoint: Any) -> None:
    task, params, tasks = problem(norm, checkpoint=checkpoint)
    many = vmap(grad(task), (None, 0, 0, 0))(params, *tasks)
    assert_near({name: g.sum(0) for name, g in many.items()}, one_by_one(task, params, tasks))


@norms
@pytest.mark.parametrize("checkpoint", [False, 2])
def test_gradients_outside_of_vmap_are_those_of_a_loop(norm: str, checkpoint: Any) -> None:
    task, params, tasks = problem(norm, checkpoint=checkpoint)
    want = one_by_one(task, params, tasks)

    def total(p: Tree) -> torch.Tensor:
        return vmap(task, (None, 0, 0, 0))(p, *tasks).sum()

    assert_near(grad(total)(params), want)
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    total(leaves).backward()
    assert_near({name: p.grad for name, p in leaves.items()}, want)


@pytest.mark.parametrize("norm", ["layer", "batch", "instance"])
def test_gradients_that_a_transform_asks_for_are_those_of_a_loop(norm: str) -> None:
    """By ``grad_fn``, as sam does; and by forward mode, twice, in nested vmaps."""
    net = network(norm)
    net[1].train(False)
    params = {name: p.detach() for name, p in net.named_parameters()}
    x, y = torch.randn(TASKS, 7, 4, dtype=D), torch.randn(TASKS, 7, 3, dtype=D)
    rates = torch.tensor([0.02, 0.05], dtype=D)
    loss = regression(net)

    def task(rate: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        tx = fa.sam(fa.adamax(rate, eps=0.1), 0.05)
        return loss(fa.unroll(loss, tx, params, repeat((x, y), 3)).params, (x, y))

    def many(rates: torch.Tensor) -> torch.Tensor:
        return vmap(lambda rate: vmap(task, (None, 0, 0))(rate, x, y))(rates).sum()

    def single(rates: torch.Tensor) -> torch.Tensor:
        return torch.stack([task(r, *pair) for r in rates for pair in zip(x, y, strict=True)]).sum()

    for derivative in (grad, jacfwd):
        torch.testing.assert_close(
            derivative(many)(rates), derivative(single)(rates), rtol=1e-10, atol=1e-12
        )


def test_norms_without_weights_and_of_halves_keep_their_dtype() -> None:
    x = torch.randn(2, 5, 6, dtype=torch.bfloat16)
    weight = torch.rand(6)

    def normalized(x: torch.Tensor) -> list[torch.Tensor]:
        with affine.exact_norms():
            assert torch.nn.functional.layer_norm(x, (6,)).dtype == torch.bfloat16
            return [
                torch.nn.functional.layer_norm(x, (6,), weight.bfloat16()),
                torch.nn.functional.batch_norm(x, None, None, weight, -weight, True, eps=1e-3),
            ]

    layer, batch = vmap(normalized)(x)
    assert layer.dtype == batch.dtype == torch.bfloat16
    wide = x.float()
    want = torch.nn.functional.layer_norm(wide, (6,), weight.bfloat16().float())
    torch.testing.assert_close(layer.float(), want, rtol=0.02, atol=0.02)
    want = torch.stack(
        [
            torch.nn.functional.batch_norm(a, None, None, weight, -weight, True, eps=1e-3)
            for a in wide
        ]
    )
    torch.testing.assert_close(batch.float(), want, rtol=0.02, atol=0.03)


def test_nothing_is_watched_outside_of_vmap() -> None:
    seen = []

    def loss(p: torch.Tensor, _: Any) -> torch.Tensor:
        seen.append(torch._C._len_torch_function_stack())
        return (p**2).sum()

    p = torch.ones(2, dtype=D)
    fa.unroll(loss, fa.sgd(0.1), p, range(2))
    grad(lambda p: fa.unroll(loss, fa.sgd(0.1), p, range(2)).params.sum())(p)
    assert seen == [0] * 4
    vmap(lambda p: fa.unroll(loss, fa.sgd(0.1), p, range(2)).params)(p[None])
    assert seen[4:] == [1] * 2


def test_the_page_learns_a_net_with_a_norm_by_the_gradient_of_a_loop() -> None:
    """Its code for many tasks, with another net."""
    page = (Path(__file__).parents[2] / "docs/differentiation.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (code,) = (block for block in blocks if "of_each_task" in block)
    code = code.replace(
        "torch.nn.Linear(3, 1)",
        "torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1))",
    )
    assert "LayerNorm" in code
    names: dict[str, Any] = {"torch": torch, "fa": fa, "functional_call": functional_call}
    names |= {"grad_and_value": grad_and_value, "vmap": vmap, "repeat": repeat, "print": str}
    torch.set_default_dtype(D)
    try:
        exec(code.replace("range(50)", "range(1)"), names)
        weights, rate = names["linear"].state_dict(), torch.tensor(0.1)
        found = names["of_each_task"](weights, rate, names["xs"], names["ys"])[0]
        for i, pair in enumerate(zip(names["xs"], names["ys"], strict=True)):
            want = grad(names["after_adapting"])(weights, rate, *pair)
            for name, slope in want.items():
                torch.testing.assert_close(found[name][i], slope, rtol=1e-10, atol=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


def test_values_under_vmap_are_those_of_a_loop() -> None:
    task, params, tasks = problem("batch")
    many = vmap(task, (None, 0, 0, 0))(params, *tasks)
    buffers, xs, ys = tasks
    for i in range(TASKS):
        alone = task(params, tree_map(lambda b, i=i: b[i].clone(), buffers), xs[i], ys[i])
        torch.testing.assert_close(many[i], alone, rtol=1e-12, atol=0.0)
