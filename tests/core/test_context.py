"""Under which transforms a computation stands, and which tensors are followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functionalize, grad, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from functional_adamax._core import context

ONE = torch.ones(2)
Asked = Callable[[torch.Tensor], Any]


def plainly(f: Asked) -> None:
    f(ONE)


def in_a_dual_level(f: Asked) -> None:
    with forward_ad.dual_level():
        f(ONE)


WAYS: dict[str, tuple[Callable[[Asked], Any], set[str]]] = {
    "plain": (plainly, set()),
    "grad": (lambda f: grad(lambda x: f(x).sum())(ONE), {"transforming", "traced"}),
    "vmap": (lambda f: vmap(f)(ONE), {"transforming", "traced", "batching", "only_vmaps"}),
    "vmap of grad": (lambda f: vmap(grad(f))(ONE), {"transforming", "traced", "batching"}),
    "jvp": (lambda f: jvp(f, (ONE,), (ONE,)), {"transforming", "traced", "forward_mode"}),
    "functionalize": (lambda f: functionalize(f)(ONE), {"transforming", "traced"}),
    "dual level": (in_a_dual_level, {"traced", "forward_mode"}),
    "make_fx": (lambda f: make_fx(f)(ONE), {"traced"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_said_of_each_way_to_compute(way: str) -> None:
    run, wanted = WAYS[way]
    found: set[str] = set()

    def asked(x: torch.Tensor) -> torch.Tensor:
        for name in ("transforming", "forward_mode", "batching", "traced", "only_vmaps"):
            if getattr(context, name)():
                found.add(name)
        return x * 2

    run(asked)
    assert found == wanted
    assert not context.traced()


def test_levels_and_the_sizes_of_vmaps() -> None:
    found: list[Any] = [context.level()]
    vmap(lambda x: found.append((context.level(), context.only_vmaps())) or x)(torch.ones(7))
    grad(grad(lambda x: found.append(context.level()) or x))(torch.ones(()))
    assert found == [0, (1, {1: 7}), 2]


def test_what_autograd_records() -> None:
    p = torch.ones(1, requires_grad=True)
    assert context.recorded([ONE, p])
    assert not context.recorded([ONE])
    with torch.no_grad():
        assert not context.recorded([p])


def test_a_tensor_is_followed_to_the_level_it_is_from() -> None:
    outer = torch.ones((), requires_grad=True)

    def function(x: torch.Tensor) -> torch.Tensor:
        assert context.followed_outside(x, 0) is None  # of level 1 itself
        assert context.followed_outside(outer, 0) is outer
        assert context.followed_outside(ONE, 0) is None
        assert context.followed_outside(x, 1) is x
        assert grad(lambda y: checked(y, x) * y)(x).shape == ()
        return x * outer

    def checked(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        assert context.followed_outside(y, 1) is None
        assert context.followed_outside(x, 1) is x
        return x

    assert grad(function)(torch.tensor(2.0)) == 1.0
    assert context.followed_outside(3.0, 0) is None


def test_what_may_be_differentiated_at_any_level() -> None:
    p = torch.ones(2, requires_grad=True)
    found = []
    vmap(lambda x: found.append(context.tracked(x)) or x)(p)
    vmap(lambda x: found.append(context.tracked(x)) or x)(ONE)
    vmap(grad(lambda x: found.append(context.tracked(x)) or x))(ONE)
    assert found == [True, False, True]
    assert not context.tracked(ONE)


def test_a_wrapper_outlives_its_transform_as_what_it_wraps() -> None:
    kept: list[torch.Tensor] = []
    vjp(lambda x: kept.append(x) or x, ONE)
    assert kept[0] is not ONE
    assert context.living(kept[0]) is ONE
    assert context.living(ONE) is ONE


def test_nodes_are_numbered_as_they_are_made() -> None:
    p = torch.ones((), requires_grad=True)
    first = context.node_number(None)
    y = p * 2
    z = y * 2
    assert context.node_number(p) == context.node_number(ONE) == -1
    assert first <= context.node_number(y) < context.node_number(z) < context.node_number(None)


def test_batches_of_autograd_are_told() -> None:
    seen = []
    p = torch.ones(2, requires_grad=True)
    y = p * 1
    y.register_hook(lambda g: seen.append(context.batched_by_autograd([None, g])))
    torch.autograd.grad(y, p, torch.eye(2), is_grads_batched=True, retain_graph=True)
    torch.autograd.grad(y, p, ONE)
    assert seen == [True, False]


def test_functions_for_a_compiler_are_themselves_outside_of_it() -> None:
    def function() -> int:
        return 3

    assert context.uncompiled(function) is function
    assert context.constant(function) is function
    assert function() == 3
    compiled = torch.compile(lambda x: x + function(), backend="eager", fullgraph=True)
    assert compiled(ONE).tolist() == [4.0, 4.0]


def test_code_inside_of_a_compilation_can_be_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    flag = "_is_compiling_flag"
    monkeypatch.setattr(torch.compiler, flag, True)
    with context.eager():
        assert not torch.compiler.is_compiling()
    assert torch.compiler.is_compiling()
    monkeypatch.delattr(torch.compiler, flag)
    with context.eager():
        assert not hasattr(torch.compiler, flag)
