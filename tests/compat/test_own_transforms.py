"""Transforms of the user, written as pairs of functions, on parameters without gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import optree
import pytest
import torch
from torch import nn

import functional_adamax as fa
from functional_adamax.compat import Optimizer


class Momentum(NamedTuple):
    buffer: Any


def plain(lr: float = 0.1, beta: float = 0.5) -> fa.GradientTransformation:
    """The natural way, which knows no missing leaves."""

    def init(params: Any) -> Any:
        return Momentum(optree.tree_map(torch.zeros_like, params))

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        del params
        new = optree.tree_map(lambda m, g: beta * m + g, state.buffer, grads)
        return optree.tree_map(lambda m: -lr * m, new), Momentum(new)

    return fa.GradientTransformation(init, update)


def strict(lr: float = 0.1) -> fa.GradientTransformation:
    def init(params: Any) -> Any:
        return optree.tree_map(torch.zeros_like, params, none_is_leaf=True)

    return fa.GradientTransformation(init, plain(lr).update)


def cured(lr: float = 0.1, beta: float = 0.5) -> fa.GradientTransformation:
    """What the message says."""

    def moved(g: Any, m: Any) -> Any:
        return m if g is None else beta * m + g

    def init(params: Any) -> Any:
        return Momentum(optree.tree_map(torch.zeros_like, params))

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        del params
        new = optree.tree_map(moved, grads, state.buffer, none_is_leaf=True)
        updates = optree.tree_map(
            lambda g, m: None if g is None else -lr * m, grads, new, none_is_leaf=True
        )
        return updates, Momentum(new)

    return fa.GradientTransformation(init, update)


def frozen(named: bool) -> tuple[list[nn.Parameter], Any]:
    params = [nn.Parameter(torch.ones(n)) for n in (2, 3, 4)]
    params[0].grad = torch.ones(2)
    return params, list(zip("abc", params, strict=True)) if named else params


def notes(factory: Any, named: bool) -> str:
    optimizer = Optimizer(frozen(named)[1], factory)
    with pytest.raises((ValueError, TypeError)) as caught:
        optimizer.step()
    assert not optimizer.state
    return "\n".join(caught.value.__notes__)


@pytest.mark.parametrize("factory", [plain, lambda: fa.chain(fa.clip(1.0), plain())])
@pytest.mark.parametrize("named", [False, True])
def test_a_missing_gradient_is_named_with_the_cure(factory: Any, named: bool) -> None:
    (note,) = notes(factory, named).splitlines()
    leaf = "updates['b']" if named else "updates[1]"
    assert note.startswith(f"{leaf} is None, and so are 1 more: its parameter has no gradient.")
    assert "returns None for such a leaf; optree.tree_map(..., none_is_leaf=True)" in note


def test_a_missing_parameter_is_named_where_the_state_is_made() -> None:
    assert "params['b'] is None, and so are 1 more" in notes(strict, True)


def test_the_functional_form_names_it_too() -> None:
    params = {"a": torch.ones(2), "b": torch.ones(3)}
    tx = fa.chain(fa.scale(2.0), plain())
    with pytest.raises(TypeError, match="NoneType") as caught:
        tx.update({"a": torch.ones(2), "b": None}, tx.init(params), params)
    assert "updates['b'] is None: its parameter has no gradient" in caught.value.__notes__[0]


def test_errors_of_another_cause_are_left_alone() -> None:
    def failing(lr: float = 0.1) -> fa.GradientTransformation:
        def update(grads: Any, state: Any, params: Any = None) -> Any:
            raise LookupError("of the user")

        return fa.GradientTransformation(lambda params: fa.EmptyState(), update)

    params = [nn.Parameter(torch.ones(2))]
    params[0].grad = torch.ones(2)
    with pytest.raises(LookupError, match="of the user") as caught:
        Optimizer(params, failing).step()
    assert not hasattr(caught.value, "__notes__")


def test_the_cure_works() -> None:
    params, _ = frozen(False)
    optimizer = Optimizer(params, cured)
    for _ in range(2):
        optimizer.step()
    assert [p[0].item() for p in params] == pytest.approx([1 - 0.1 - 0.15, 1.0, 1.0])
