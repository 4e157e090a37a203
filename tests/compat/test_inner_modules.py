"""Inner loops leave the module as it is, whatever it shares, and refuse what they cannot do.

The file is longer than others: the modules that it tries are written out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jvp, vmap
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from trees import assert_equal

import functional_adamax as fa
from functional_adamax.compat import inner_loop


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    """From the start: ``module.double()`` would part shared buffers."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Tied(nn.Module):
    """One parameter in two modules, one of which occurs twice, the other also deeper."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        if shared:
            self.second.weight = self.first.weight
        self.again = nn.ModuleDict(
            {"deep": nn.Sequential(self.first if shared else nn.Linear(3, 3))}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again["deep"](self.second(self.first(x).tanh()).tanh())


class Alone(nn.Module):
    """A parameter and a buffer of one module's own, under two names."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(3))
        self.b = self.a if shared else nn.Parameter(torch.randn(3))
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("seen_too", self.seen if shared else torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(1.0)
        return (x * self.a + self.seen_too).tanh() * self.b


def stack(make: Callable[[], nn.Module]) -> Callable[[bool], nn.Module]:
    def made(shared: bool) -> nn.Module:
        one = make()
        return nn.Sequential(one, nn.Tanh(), nn.Sequential(one if shared else make()))

    return made


# What is shared, and for the unshared spelling, the names of what must stay equal.
CASES: dict[str, tuple[Callable[[bool], nn.Module], dict[str, list[str]]]] = {
    "a submodule": (
        stack(lambda: nn.Linear(3, 3)),
        {"0.weight": ["2.0.weight"], "0.bias": ["2.0.bias"]},
    ),
    "a norm with buffers": (
        stack(lambda: nn.BatchNorm1d(3)),
        {
            **{f"0.{k}": [f"2.0.{k}"] for k in ("weight", "bias", "running_mean", "running_var")},
            "0.num_batches_tracked": ["2.0.num_batches_tracked"],
        },
    ),
    "parameters of several modules": (
        Tied,
        {
            "first.weight": ["second.weight", "again.deep.0.weight"],
            "first.bias": ["again.deep.0.bias"],
        },
    ),
    "tensors of one module": (Alone, {"a": ["b"], "seen": ["seen_too"]}),
    "parametrized weights": (
        stack(lambda: weight_norm(nn.Linear(3, 3))),
        {
            f"0.{k}": [f"2.0.{k}"]
            for k in (
                "bias",
                "parametrizations.weight.original0",
                "parametrizations.weight.original1",
            )
        },
    ),
}
cases = pytest.mark.parametrize("case", CASES)


def places(module: nn.Module) -> dict[str, Any]:
    """Every tensor of the module, where it is, and how it looks."""
    return {
        f"{prefix}.{name}": (id(x), type(x), x.requires_grad, x.is_leaf, x.detach().clone())
        for prefix, child in module.named_modules(remove_duplicate=False)
        for group in (child._parameters, child._buffers)
        for name, x in group.items()
        if x is not None
    }


def assert_untouched(module: nn.Module, before: dict[str, Any]) -> None:
    after = places(module)
    assert after.keys() == before.keys()
    for name, (*kind, value) in before.items():
        assert [*after[name][:-1]] == kind, name
        assert torch.equal(after[name][-1], value), name


@cases
def test_the_module_is_not_written(case: str) -> None:
    net, x = CASES[case][0](True), torch.randn(5, 3)
    before = places(net)
    for _ in range(2):  # a second task starts where the first did
        with inner_loop(net, fa.adamax(0.1)) as (functional, inner):
            first = functional(x)
            for _ in range(3):
                inner.step(functional(x).square().mean())
                assert_untouched(net, before)
            functional(x).square().mean().backward()
        assert_untouched(net, before)
        with inner_loop(net, fa.sgd(0.1)) as (functional, _), pytest.raises(RuntimeError):
            functional(torch.randn(5, 99))
        assert_untouched(net, before)
        assert torch.equal(functional_like(net, x), first)
    assert all(p.grad is not None for p in net.parameters())


def functional_like(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output of the module, leaving its buffers."""
    return copy.deepcopy(net)(x)


@cases
def test_what_is_shared_is_trained_as_one_tensor(case: str) -> None:
    """Values and gradients of an outer loss are those of a net of separate tensors that are tied.

    The separate net is called with one tensor at all places, so it shares nothing itself.
    """
    make, ties = CASES[case]
    net, apart = make(True), make(False)
    lr = torch.tensor(0.05, requires_grad=True)
    x, y = torch.randn(7, 3), torch.randn(7, 3)
    names = [name for name, _ in net.named_parameters()]

    with inner_loop(net, fa.adamax(lr, eps=0.1)) as (functional, inner):
        for _ in range(3):
            inner.step((functional(x) - y).square().mean())
        outer = (functional(x) - y).square().mean()
    assert list(functional.params) == names

    def everywhere(tree: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        copies = {
            other: tree[name] for name, many in ties.items() for other in many if name in tree
        }
        return {**tree, **copies}

    def loss(p: Any, b: Any, _: Any) -> torch.Tensor:
        tensors = everywhere(p), everywhere(b)
        out = functional_call(apart, tensors, (x,), tie_weights=False)
        return (out - y).square().mean()

    start = dict(net.named_parameters())
    assert set(everywhere(start)) == {name for name, _ in apart.named_parameters()}
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    end = fa.unroll(loss, fa.adamax(lr, eps=0.1), start, range(3), buffers=buffers)
    want = loss(end.params, end.buffers, None)
    assert torch.equal(outer, want)
    assert_equal(fa.detach(functional.params), fa.detach(end.params))
    assert_equal(functional.buffers, end.buffers)
    inputs = [lr, *start.values()]
    for a, b in zip(
        torch.autograd.grad(outer, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        assert torch.equal(a, b)


def test_buffers_that_the_module_replaces_come_out() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls = self.calls + 1
            return x * self.weight

    one = Counting()
    net = nn.Sequential(one, one)
    with inner_loop(net, fa.sgd(0.1)) as (functional, inner):
        for _ in range(3):
            inner.step(functional(torch.ones(2)).sum())
    assert int(functional.buffers["0.calls"]) == 6
    assert int(one.calls) == 0


def test_spectral_norms_and_recurrent_nets_are_left_as_they_are() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.LSTM(3, 4, batch_first=True)
            self.out = spectral_norm(nn.Linear(4, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.inside(x)[0])

    net, x = Recurrent(), torch.randn(2, 5, 3)
    before, y = places(net), functional_like(net, x)
    with inner_loop(net, fa.adamax(0.1)) as (functional, inner):
        for _ in range(2):
            inner.step(functional(x).square().mean())
    assert_untouched(net, before)
    assert torch.equal(functional_like(net, x), y)
    assert not torch.equal(functional(x), y)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(3)), "0.weight"),
        (lambda: nn.LazyBatchNorm1d(affine=False), "running_mean"),
    ],
    ids=["parameters", "buffers"],
)
def test_a_lazy_module_must_run_first(make: Callable[[], nn.Module], name: str) -> None:
    module = make()
    with (
        pytest.raises(ValueError, match=rf"but {name} is not initialized: run the module once"),
        inner_loop(module, fa.sgd(0.1)),
    ):
        pass
    x = torch.randn(4, 2)
    module(x)
    with inner_loop(module, fa.sgd(0.1)) as (functional, inner):
        if functional.params:
            inner.step(functional(x).square().mean())


@pytest.mark.parametrize(
    "transform", [grad, vmap, jacfwd, "jvp"], ids=["grad", "vmap", "jacfwd", "jvp"]
)
def test_a_transform_is_told_to_take_unroll(transform: Any) -> None:
    net, x = nn.Linear(3, 1), torch.randn(5, 3)

    def after(lr: torch.Tensor) -> torch.Tensor:
        with inner_loop(net, fa.sgd(lr)) as (functional, inner):
            inner.step(functional(x).square().mean())
            return functional(x).square().mean()

    def step_inside(scale: torch.Tensor) -> torch.Tensor:
        inner.step((functional(x) * scale).square().mean())
        return functional(x).square().mean()

    def loop(lr: torch.Tensor) -> torch.Tensor:
        def loss(p: Any, _: Any) -> torch.Tensor:
            return functional_call(net, p, (x,)).square().mean()

        params = {name: p.detach() for name, p in net.named_parameters()}
        return loss(fa.unroll(loss, fa.sgd(lr), params, range(1)).params, None)

    at = torch.tensor([0.1, 0.2]) if transform is vmap else torch.tensor(0.1)
    run = (lambda f: lambda x: jvp(f, (x,), (x,))) if transform == "jvp" else transform
    message = r"does not see through torch\.func: .* take functional_adamax\.unroll"
    with pytest.raises(NotImplementedError, match=message):
        run(after)(at)
    with inner_loop(net, fa.sgd(0.1)) as (functional, inner):
        with pytest.raises(NotImplementedError, match=message):
            run(step_inside)(at)
        slope = grad(lambda x: functional(x).sum())(x)  # which needs no step
        assert torch.equal(slope, net.weight.detach().expand(5, 3))
    found = run(loop)(at)  # and unroll runs there
    want = torch.autograd.grad(after(r := torch.tensor(0.1, requires_grad=True)), r)[0]
    if transform in (grad, jacfwd):
        torch.testing.assert_close(found, want)
    elif transform is vmap:
        torch.testing.assert_close(found, torch.stack([after(lr) for lr in at]))
    else:
        torch.testing.assert_close(found[1], 0.1 * want)
