"""What a function closes over: found while it runs, replaced, and refused where it is lost."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from inner_loops import Doubled
from torch import Tensor
from torch.func import grad, vmap

from functional_adamax._core import capture, context


def leaf(value: float = 2.0) -> Tensor:
    return torch.tensor(value, requires_grad=True)


def test_tensors_that_may_be_differentiated_are_found_once() -> None:
    x, rate, weight, plain = leaf(), leaf(), leaf(), torch.ones(())

    def function(x: Tensor) -> Tensor:
        inside = torch.ones((), requires_grad=True) * x
        return x * rate + torch.stack([weight, rate]).sum() * plain + inside

    found = capture.closed_over(function, [x])
    assert len(found) == 2
    assert found[0] is rate
    assert found[1] is weight


def test_tensors_of_a_transform_are_found() -> None:
    seen: list[Any] = []

    def outer(a: Tensor) -> Tensor:
        seen.append([x is a for x in capture.closed_over(lambda x: x * a, [torch.ones(())])])
        return a

    vmap(outer)(torch.ones(2))
    grad(outer)(torch.ones(()))
    assert seen == [[True], [True]]


def test_questions_are_no_use() -> None:
    rate = leaf()

    def function(x: Tensor) -> Tensor:
        assert rate.shape == ()
        assert rate.dtype == torch.float32
        assert rate.requires_grad
        assert rate.dim() == 0
        return x * 1

    assert capture.closed_over(function, [leaf()]) == []


def test_others_stand_in_their_place() -> None:
    old, new, known = leaf(2.0), leaf(5.0), leaf(3.0)
    with capture.Closure(context.level(), [known], [old], [new], capture.refuse):
        result = old * known + torch.stack([old]).sum()
    assert result == 20.0
    by_old, by_new = torch.autograd.grad(result, (old, new), allow_unused=True)
    assert by_old is None
    assert by_new == 4.0
    assert old * 1 == 2.0, "outside it is itself"


def test_a_tensor_that_is_new_is_refused_by_what_used_it() -> None:
    stranger, plain = leaf(), torch.ones(3)
    with capture.Closure(context.level(), [], [], [], capture.refuse):
        assert (plain * 2).sum() == 6.0
        with pytest.raises(RuntimeError, match=r"mul was given a tensor of shape \(\) that may be"):
            stranger * 2
    with capture.Closure(context.level(), [], [], [], capture.ignore):
        assert stranger * 2 == 4.0


def test_what_goes_to_an_autograd_function_is_seen() -> None:
    rate = leaf()

    def function(x: Tensor) -> Tensor:
        return x * Doubled.apply(rate)

    with pytest.raises(RuntimeError, match=r"of shape \(\) .* hands it to a torch.autograd.Funct"):
        capture.closed_over(function, [leaf()], capture.refuse_applied)


@pytest.mark.parametrize("apply", [Doubled.apply, partial(capture.apply, Doubled)])
def test_a_function_is_applied_to_what_stands_there(apply: Any) -> None:
    """A mode sees what it computes and not what it is given, unless it is applied from here."""
    old, new = leaf(2.0), leaf(5.0)
    with capture.Closure(context.level(), [], [old], [new], capture.refuse):
        result = apply(old)
    assert result == 10.0
    by_old, by_new = torch.autograd.grad(result, (old, new), allow_unused=True)
    ours = isinstance(apply, partial)
    assert (by_old is None, by_new is None) == (ours, not ours)


def test_applying_is_applying_where_nobody_watches() -> None:
    x = leaf(3.0)
    result = capture.apply(Doubled, x)
    assert result == Doubled.apply(x)
    assert torch.autograd.grad(result, x)[0] == torch.autograd.grad(Doubled.apply(x), x)[0]


class Both(torch.autograd.Function):
    """A number times a tensor, and the tensor itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(factor: float, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * factor, x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del output
        ctx.factor, _ = inputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, cotangents[0] * ctx.factor + cotangents[1]


def over_members(function: Any) -> Any:
    return grad(lambda x: vmap(function)(x).sum())


@pytest.mark.parametrize(
    ("transformed", "x"),
    [
        (grad, 2.0),
        (lambda f: grad(grad(f)), 2.0),
        (lambda f: vmap(grad(f)), [2.0, 3.0]),
        (over_members, [2.0, 3.0]),
    ],
    ids=["grad", "twice", "of members", "over members"],
)
def test_applying_is_applying_under_transforms(transformed: Any, x: Any) -> None:
    def loss(apply: Any, x: Tensor) -> Tensor:
        first, second = apply(3.0, x)
        return first * second * second + first.sin()

    ways = (partial(capture.apply, Both), Both.apply)
    ours, torchs = (transformed(partial(loss, way))(torch.tensor(x)) for way in ways)
    assert torch.equal(ours, torchs)
    assert ours.abs().sum() > 1


def test_under_grad_nothing_is_made_anew_in_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    grad(lambda x: capture.apply(Doubled, x))(torch.ones(()))
    made: list[str] = []
    kind = type(Doubled)
    init = kind.__init__
    monkeypatch.setattr(kind, "__init__", lambda *x: (made.append(x[1]), init(*x))[1])
    grad(lambda x: capture.apply(Doubled, x))(torch.ones(()))
    assert made == []
    grad(Doubled.apply)(torch.ones(()))
    assert made, "torch makes a class"
