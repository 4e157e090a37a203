"""Hyperparameters in the state: read and set by name, scheduled, batched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trees import assert_equal, clone

import functional_adamax as fa
from functional_adamax._schedules.scheduled import is_schedule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factory", [fa.adamax, fa.adamaxw, fa.nadamax, fa.adam, fa.rmsprop])
def test_injected_has_the_bits_of_the_factory(dtype: torch.dtype, factory: Any) -> None:
    params = torch.randn(5, 3, dtype=dtype)
    one = factory(lr=0.013, weight_decay=0.07)
    two = fa.inject_hyperparams(factory)(lr=0.013, weight_decay=0.07)
    state, other = one.init(params), two.init(params)
    for _ in range(5):
        grads = torch.randn(5, 3, dtype=dtype)
        updates, state = one.update(grads, state, params)
        injected, other = two.update(grads, other, params)
        if dtype != torch.bfloat16:
            assert torch.equal(updates, injected)
        torch.testing.assert_close(updates, injected, rtol=1e-2, atol=0)
    assert fa.get_hyperparams(other)["lr"].dtype == torch.float64


def test_injected_hyperparameters_are_read_and_set_by_name() -> None:
    made = fa.inject_hyperparams(fa.adamax)
    tx = fa.chain(fa.clip(1.0), fa.masked(made(lr=0.1, betas=(0.8, 0.9)), {"a": True, "b": False}))
    params = {"a": torch.randn(2), "b": torch.randn(2)}
    state = tx.init(params)
    found = fa.get_hyperparams(state)
    assert found["lr"] == 0.1
    assert [float(x) for x in found["betas"]] == [0.8, 0.9]
    assert {"maximize", "state_dtype", "derivative_floor"}.isdisjoint(found)
    before = clone(state)
    changed = fa.set_hyperparams(state, lr=0.2, betas=(0.5, torch.tensor(0.6)))
    assert_equal(state, before)
    grads = {name: torch.randn(2) for name in params}
    wanted = fa.adamax(0.2, (0.5, 0.6))
    got = tx.update(grads, changed, params)[0]["a"]
    clipped = grads["a"].clamp(-1, 1)
    torch.testing.assert_close(got, wanted.update(clipped, wanted.init(params["a"]))[0])
    with pytest.raises(KeyError, match="'speed' must be one of"):
        fa.set_hyperparams(state, speed=1.0)
    with pytest.raises(ValueError, match="betas"):
        made(betas=(0.5, 1.5))
    twice = fa.chain(made(lr=0.1), made(lr=0.2)).init(params)
    assert fa.get_hyperparams(twice)["state[1].hyperparams['lr']"] == 0.2
    with pytest.raises(KeyError, match=r"state\[0\]\.hyperparams\['lr'\], state\[1\]"):
        fa.set_hyperparams(twice, lr=1.0)


def halving(count: torch.Tensor) -> torch.Tensor:
    return 0.1 * 0.5**count


class CallableTree(dict):  # type: ignore[type-arg]
    def __call__(self) -> None:
        raise AssertionError("a tree is no schedule")


def test_injected_schedules_and_callable_trees() -> None:
    params = {"a": torch.ones(2)}
    tx = fa.inject_hyperparams(fa.adamax)(lr=halving)
    plain = fa.adamax(lr=halving)
    state, other = tx.init(params), plain.init(params)
    for i in range(4):
        updates, state = tx.update(params, state)
        wanted, other = plain.update(params, other)
        assert_equal(updates, wanted)
        shown = fa.get_hyperparams(state)["lr"]
        assert torch.equal(shown, halving(torch.tensor(i)).double())
    rates = {"a": torch.tensor([0.1, 0.2])}
    tree_rate = fa.inject_hyperparams(fa.adamax)(lr=rates)
    assert_equal(
        tree_rate.update(params, tree_rate.init(params))[0],
        fa.adamax(rates).update(params, fa.adamax().init(params))[0],
    )
    assert not is_schedule(CallableTree(a=0.1))


def test_schedules_of_what_is_no_rate() -> None:
    params, zeros = torch.ones(1), torch.zeros(1)
    tx = fa.inject_hyperparams(fa.add_decayed_weights)(fa.linear_schedule(0.5, 0.0, 4))
    state = tx.init(params)
    found = []
    for _ in range(3):
        updates, state = tx.update(zeros, state, params)
        found.append(updates.item())
    assert found == pytest.approx([0.5, 0.375, 0.25])
    tx = fa.inject_hyperparams(fa.clip_by_global_norm)(fa.linear_schedule(2.0, 0.0, 2))
    state = tx.init(params)
    for i, norm in enumerate([2.0, 1.0]):
        updates, _ = tx.update(3 * params, state._replace(count=torch.tensor(i)))
        assert updates.item() == pytest.approx(norm)
    betas = fa.inject_hyperparams(fa.adamax)(betas=lambda count: (0.5 * count, 0.999))
    state = betas.init(params)._replace(count=torch.tensor(1))
    assert_equal(betas.update(params, state)[1].inner.exp_avg, torch.tensor([0.5]))
    with pytest.raises(ValueError, match="weight_decay must be in"):
        fa.inject_hyperparams(fa.adamaxw)(lambda count: 0.1, weight_decay=-1.0)
    with pytest.raises(ValueError, match="weight_decay must be in"):
        fa.inject_hyperparams(fa.add_decayed_weights)(lambda count: -1.0)


def test_schedules_that_pass_through_zero_switch_nothing_off() -> None:
    params = torch.ones(1)
    tx = fa.inject_hyperparams(fa.sgd)(0.1, momentum=lambda count: 0.9 if count != 1 else 0.0)
    state, found = tx.init(params), []
    for _ in range(3):
        updates, state = tx.update(params, state)
        found.append(updates.item())
    assert found == pytest.approx([-0.1, -0.1, -0.19])


def test_static_names_arguments() -> None:
    for static in ("lr", ("lr",)):
        state = fa.inject_hyperparams(fa.adamax, static)(0.1).init(torch.zeros(1))
        assert sorted(fa.get_hyperparams(state)) == ["betas", "eps"]
    fa.inject_hyperparams(lambda **given: fa.adamax(**given), static="eps")(lr=0.1)
    with pytest.raises(TypeError, match=r"static must name arguments .*, got \['rate'\]"):
        fa.inject_hyperparams(fa.adamax, ["rate"])(0.1)


def test_what_is_injected_is_copied() -> None:
    table = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    tx = fa.inject_hyperparams(fa.sgd)(lr=lambda count: table[count % 3])
    p, state = torch.zeros(1), tx.init(torch.zeros(1))
    for _ in range(5):
        p, state = fa.step(tx, torch.ones(1), state, p, donate=True)
    assert p.item() == pytest.approx(-0.9)
    assert table.tolist() == [0.1, 0.2, 0.3]
    rate = torch.tensor(0.1, dtype=torch.float64)
    given = fa.inject_hyperparams(fa.sgd)(lr=rate).init(p)
    set_later = fa.set_hyperparams(given, lr=rate)
    rate.fill_(1.0)
    assert given.hyperparams["lr"] == set_later.hyperparams["lr"] == 0.1


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"lr": "x"}, TypeError, "lr must be a real number or a real tensor, got 'x'"),
        ({"lr": None}, TypeError, "lr must be a real number or a real tensor, got None"),
        ({"lr": float("nan")}, ValueError, "lr must be finite, got nan"),
        ({"betas": 0.5}, ValueError, "betas must have the structure of what it replaces"),
        ({"betas": (0.5,)}, ValueError, "betas must have the structure of what it replaces"),
        ({"lr": {"a": 0.5}}, ValueError, "lr must have the structure of what it replaces"),
    ],
)
def test_hyperparameters_that_do_not_fit_the_state(
    values: Any, error: type[Exception], words: str
) -> None:
    state = fa.inject_hyperparams(fa.adamax)(lr=0.1).init(torch.zeros(2))
    with pytest.raises(error, match=words):
        fa.set_hyperparams(state, **values)
    listed = fa.set_hyperparams(state, betas=[0.5, 0.25]).hyperparams["betas"]
    assert (*map(float, listed),) == (0.5, 0.25)


def test_hyperparameters_in_the_state_are_batched() -> None:
    params, grads = torch.ones(4, 2), torch.ones(4, 2)
    tx = fa.inject_hyperparams(fa.adamax)(lr=0.1)
    state = torch.func.vmap(tx.init)(params)
    state = fa.set_hyperparams(state, lr=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    updates, _ = torch.func.vmap(tx.update)(grads, state)
    torch.testing.assert_close(updates[:, 0], -torch.tensor([0.1, 0.2, 0.3, 0.4]))


def test_what_stays_outside_of_the_injected() -> None:
    params = torch.ones(2)
    tx = fa.inject_hyperparams(fa.params_ema)(0.9)
    assert list(fa.get_hyperparams(tx.init(params))) == ["decay"]
    tx = fa.inject_hyperparams(fa.adamax, static=("derivative_floor",))(derivative_floor=1e-3)
    assert "derivative_floor" not in fa.get_hyperparams(tx.init(params))
    tx.update(params, tx.init(params), params)
