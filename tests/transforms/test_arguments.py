"""Which arguments of a factory are hyperparameters, and which functions are schedules."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import functional_adamax as fa
from functional_adamax import compat
from functional_adamax._schedules.scheduled import Schedule
from functional_adamax._transforms.arguments import declared

if TYPE_CHECKING:
    from nowhere import Number  # type: ignore[import-not-found]

W = torch.ones(3)


def injected(tx: Any) -> dict[str, Any]:
    return fa.get_hyperparams(tx.init(W))


def test_annotations_and_defaults_tell_hyperparameters() -> None:
    def own(
        lr: float | Schedule,
        rate: Any,
        steps: int | Schedule,
        mask: Any = None,
        decay=0.1,
        betas=(0.9, 0.999),
        count=3,
        limit: torch.Tensor | None = None,
        schedule: Schedule | None = None,
        flag: bool = False,
    ) -> None: ...

    assert declared(own) == {
        "lr": True,
        "rate": None,
        "steps": False,
        "mask": None,
        "decay": True,
        "betas": True,
        "count": None,
        "limit": True,
        "schedule": None,
        "flag": False,
    }
    assert {k: v for k, v in declared(fa.adamax).items() if v} == dict.fromkeys(
        ["lr", "betas", "eps", "weight_decay", "derivative_floor"], True
    )
    assert declared(fa.multi_steps)["every_k"] is False
    assert declared(fa.masked)["mask"] is None


def test_annotations_that_only_checkers_know() -> None:
    def own(lr: Number, decay: Number = 0.1) -> Any:
        return fa.adamaxw(lr, weight_decay=decay)

    assert declared(own) == {"lr": None, "decay": True}
    tx = fa.inject_hyperparams(own)(lr=lambda count: 0.1, decay=lambda count: 1)
    assert sorted(injected(tx)) == ["decay", "lr"]


@pytest.mark.parametrize(
    "value",
    [1, 1.0, np.int64(1), np.float64(1), np.float32(1), torch.tensor(1), torch.tensor(1.0)],
    ids=lambda value: type(value).__name__ + str(getattr(value, "dtype", "")),
)
def test_every_kind_of_number_is_injected(value: Any) -> None:
    tx = fa.inject_hyperparams(fa.adamax)(lr=value)
    rate = injected(tx)["lr"]
    assert rate.dtype == torch.float64
    assert rate == 1
    params, state = W.clone(), tx.init(W)
    state = fa.set_hyperparams(state, lr=0.5)
    assert torch.equal(fa.step(tx, W, state, params)[0], torch.full((3,), 0.5))


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(True)], ids=repr)
def test_bools_are_never_injected(value: Any) -> None:
    def own(lr: float = 0.1, flag: Any = 0.5) -> Any:
        return fa.adamax(lr)

    assert sorted(injected(fa.inject_hyperparams(own)(flag=value))) == ["lr"]


def test_ints_in_pairs_are_injected() -> None:
    hyper = injected(fa.inject_hyperparams(fa.adamax)(0.1, betas=(0, 0.5)))
    assert [float(beta) for beta in hyper["betas"]] == [0.0, 0.5]


def test_ints_that_count_stay_outside() -> None:
    made = fa.inject_hyperparams(fa.multi_steps)
    state = made(fa.sgd(0.1), 4).init(W)
    assert state.hyperparams == {}
    state = made(fa.sgd(0.1), lambda count: 4).init(W)
    assert state.hyperparams == {}
    tx = fa.inject_hyperparams(lambda lr, steps=2: fa.multi_steps(fa.sgd(lr), steps))(0.1, steps=3)
    assert sorted(injected(tx)) == ["lr"]


def int_first(count: torch.Tensor) -> Any:
    return 1 if count == 0 else 0.5


@pytest.mark.parametrize("factory", [fa.adamax, lambda lr: fa.adamax(lr)], ids=["ours", "own"])
def test_a_schedule_whose_first_value_is_an_int(factory: Any) -> None:
    tx, state = fa.inject_hyperparams(factory)(lr=int_first), None
    state, params = tx.init(W), W
    found = []
    for _ in range(2):
        params, state = fa.step(tx, W, state, params)
        found.append(float(fa.get_hyperparams(state)["lr"]))
    assert found == [1.0, 0.5]
    (w,) = [torch.nn.Parameter(W.clone())]
    optimizer = compat.Optimizer([w], factory, lr=int_first)
    assert optimizer.param_groups[0]["lr"] == 1


def broken(count: torch.Tensor) -> float:
    raise LookupError("no rate in the table")


@pytest.mark.parametrize(
    "made",
    [
        lambda: fa.inject_hyperparams(fa.adamax)(lr=broken),
        lambda: fa.inject_hyperparams(fa.adamaxw)(0.1, weight_decay=broken),
        lambda: compat.Optimizer([torch.nn.Parameter(W)], fa.adamax, lr=broken),
    ],
    ids=["rate", "decay", "optimizer"],
)
def test_the_error_of_a_schedule_comes_through(made: Any) -> None:
    with pytest.raises(LookupError, match="no rate in the table") as caught:
        made()
    (note,) = caught.value.__notes__
    assert note.startswith("raised by the schedule given as ")
    assert note.endswith("for a count of 0")


def test_an_error_that_may_be_of_a_schedule_is_named() -> None:
    def own(lr):
        return fa.scale(-lr)

    for made in (
        lambda: fa.inject_hyperparams(own)(lr=broken),
        lambda: compat.Optimizer([torch.nn.Parameter(W)], own, lr=broken),
    ):
        with pytest.raises(TypeError, match="unary") as caught:
            made()
        (note,) = caught.value.__notes__
        assert note == (
            "lr is taken for no schedule: for a count of 0 it raised "
            "LookupError('no rate in the table')"
        )


def matrices(params: Any) -> Any:
    return {name: p.ndim > 1 for name, p in params.items()}


@pytest.mark.parametrize(
    "mask",
    [
        matrices,
        fa.by_path(lambda path: path.startswith("a")),
        lambda params: {"a": True, "b": False},
    ],
    ids=["of tensors", "by_path", "constant"],
)
def test_masks_are_no_schedules(mask: Any) -> None:
    def own(lr: Any, mask: Any) -> Any:
        return fa.masked(fa.sgd(lr), mask)

    params = {"a": torch.ones(1, 1), "b": torch.ones(1)}
    tx = fa.inject_hyperparams(own)(lr=lambda count: 0.5, mask=mask)
    state = tx.init(params)
    assert list(fa.get_hyperparams(state)) == ["lr"]
    updates, _ = tx.update(params, state, params)
    assert (updates["a"].item(), updates["b"].item()) == (-0.5, 1.0)
    made = compat.Optimizer(
        [(k, torch.nn.Parameter(p)) for k, p in params.items()], own, lr=0.5, mask=mask
    )
    assert "schedules" not in made.param_groups[0]


def test_set_hyperparameters_may_be_of_numpy() -> None:
    state = fa.inject_hyperparams(fa.adamax)(lr=0.1).init(W)
    for value in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5)):
        assert fa.get_hyperparams(fa.set_hyperparams(state, lr=value))["lr"] == 0.5


def scheduled(rate: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    return rate * 0.5**count


def unannotated(lr, mask=None):
    return fa.adamax(lr)


@pytest.mark.parametrize("factory", [fa.adamax, unannotated, partial(fa.adamax, eps=1e-3)])
def test_a_compiler_is_told_what_the_factory_declares(factory: Any) -> None:
    def updated(rate: torch.Tensor) -> torch.Tensor:
        tx = fa.inject_hyperparams(factory)(lr=partial(scheduled, rate))
        return tx.update(W, tx.init(W), W)[0]

    torch._dynamo.reset()
    compiled = torch.compile(updated, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(torch.tensor(0.1)), updated(torch.tensor(0.1)))


def test_importing_does_not_import_the_compiler() -> None:
    code = "import sys, functional_adamax as fa; fa.inject_hyperparams(fa.adamax)(lr=1); "
    code += "print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
