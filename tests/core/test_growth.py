"""One warning for training that extends a graph from step to step, and none for anything else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from inner_loops import network, parabola
from torch.func import functional_call, grad, vmap

import functional_adamax as fa
from functional_adamax._core import growth
from functional_adamax.compat import inner_loop

Params = dict[str, torch.Tensor]
GROWS = "the last 300 steps are one graph of autograd"


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "_warned", False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The calls that look at graphs."""
    calls: list[Any] = []
    monkeypatch.setattr(growth, "_extend", lambda *trees: calls.append(trees))
    return calls


def train(params: Params, tx: fa.GradientTransformation, steps: int, **options: Any) -> Params:
    """As a user writes it: the gradient by torch.func, then a step."""
    module, x = network(torch.float32), torch.randn(5, 4)

    def loss(p: Params) -> torch.Tensor:
        return functional_call(module, p, (x,)).square().mean()

    state = tx.init(params)
    for _ in range(steps):
        params, state = fa.step(tx, grad(loss)(params), state, params, **options)
    return params


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("tx", [fa.adamax(0.01), fa.sgd(0.01), fa.chain(fa.clip(1.0), fa.sgd(0.1))])
def test_training_of_parameters_that_were_not_detached_warns_once(tx: Any, donate: bool) -> None:
    params = dict(network(torch.float32).named_parameters())
    with pytest.warns(UserWarning, match=GROWS) as caught:
        train(params, tx, 310, donate=donate)
    train(params, tx, 310, donate=donate)  # warnings are errors here
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert "{name: p.detach() for name, p in module.named_parameters()}" in text
    assert "functional_adamax.detach((params, state))" in text


def test_the_advice_for_a_module_does_not_grow_a_graph(asked: list[Any]) -> None:
    module = network(torch.float32)
    with pytest.raises(TypeError) as error:
        fa.adamax().init(module)
    advice = str(error.value).split("take ")[1]
    params = eval(advice, {"module": module})
    assert set(params) == {name for name, _ in module.named_parameters()}
    trained = train(params, fa.adamax(0.01), 3)
    assert not any(p.requires_grad for p in trained.values())
    assert asked == []


def test_a_graph_that_grows_in_the_state_alone_is_noticed() -> None:
    lr = torch.tensor(0.01, requires_grad=True)
    tx, p = fa.chain(fa.scale_by_learning_rate(lr), fa.trace(0.5)), torch.ones(2)

    def run(p: torch.Tensor, state: Any) -> None:
        for _ in range(302):
            p, state = fa.step(tx, 2 * p, state, p.detach())

    with pytest.warns(UserWarning, match=GROWS):
        run(p, tx.init(p))


def test_updates_applied_by_hand_are_steps() -> None:
    def run(p: torch.Tensor) -> None:
        for _ in range(302):
            p = fa.apply_updates(p, -0.001 * p)

    with pytest.warns(UserWarning, match=GROWS):
        run(torch.ones(2, requires_grad=True))


def test_loops_that_are_differentiated_are_not_bothered() -> None:
    start = torch.ones(2, requires_grad=True)
    tx = fa.adamax(0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for checkpoint in (False, True):
            end = fa.unroll(parabola, tx, start, range(310), checkpoint=checkpoint)
            assert torch.autograd.grad(end.params.sum(), start)[0].isfinite().all()
        fa.implicit(parabola, tx, start, range(310))
        module, x = network(torch.float32), torch.randn(5, 4)
        with inner_loop(module, tx) as (functional, inner):
            for _ in range(310):
                inner.step(functional(x).square().mean())
        for _ in range(3):  # by hand, each from the start
            p, state = start, tx.init(start)
            for _ in range(300):
                p, state = fa.step(tx, 2 * p, state, p)
        p, state = start, tx.init(start)
        for i in range(610):  # in stretches
            p, state = fa.detach((p, state)) if i % 100 == 0 else (p, state)
            p, state = fa.step(tx, 2 * p * start, state, p)


def test_what_is_not_recorded_is_not_asked(asked: list[Any]) -> None:
    module = network(torch.float32)
    params = {name: p.detach() for name, p in module.named_parameters()}
    params = {"none": None, **params}  # type: ignore[dict-item]
    tx = fa.adamax(0.01)
    state, grads = tx.init(params), dict(params)
    for donate in (False, True):
        params, state = fa.step(tx, grads, state, params, donate=donate)
    fa.apply_updates(params, grads)
    with torch.no_grad():
        fa.step(tx, grads, state, dict(module.named_parameters()) | {"none": None})
    p = torch.ones(2)
    grad(lambda p: fa.step(tx, p, tx.init(p), p)[0].sum())(p)
    vmap(lambda p: fa.step(tx, p, tx.init(p), p)[0])(p)
    compiled = torch.compile(
        lambda p: fa.step(tx, p, tx.init(p), p)[0], fullgraph=True, backend="eager"
    )
    compiled(p.requires_grad_())
    assert asked == []
    fa.step(tx, p, tx.init(p), p)
    assert len(asked) == 1
