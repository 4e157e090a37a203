"""NumPy's numbers: groups and checkpoints hold Python's, of the same bits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from wrapped import parameters

import functional_adamax as fa
from functional_adamax import compat

KINDS = {
    "float64": np.float64,
    "float32": np.float32,
    "array": lambda x: np.array(x),
    "array of float32": lambda x: np.array(x, dtype=np.float32),
    "longdouble": np.longdouble,
}


def numbers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [x for v in value.values() for x in numbers(v)]
    if isinstance(value, (list, tuple)):
        return [x for v in value for x in numbers(v)]
    return [value]


def saved(optimizer: Any) -> Any:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def stepped(optimizer: Any, times: int = 2) -> torch.Tensor:
    (p,) = optimizer.param_groups[0]["params"]
    for i in range(times):
        p.grad = torch.full_like(p, 0.3 + i)
        optimizer.step()
    return p.detach().clone()


def clipped(lr: float = 0.1) -> Any:
    return fa.chain(fa.clip_by_global_norm(1.0), fa.scale(-1.0), fa.scale(lr))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factory", [fa.adamax, fa.adam, clipped])
def test_a_schedule_may_return_numbers_of_numpy(factory: Any, kind: str) -> None:
    made = KINDS[kind]

    def rate(count: torch.Tensor) -> Any:
        return made(0.1 * np.cos(int(count) / 10))

    optimizer = compat.Optimizer(parameters(3), factory, lr=rate)
    plain = compat.Optimizer(parameters(3), factory, lr=lambda count: float(rate(count)))
    assert torch.equal(stepped(optimizer), stepped(plain))
    (group,) = optimizer.param_groups
    assert (type(group["lr"]), type(group["scheduled_lr"])) == (float, float)
    assert group["lr"] == float(rate(torch.tensor(1)))
    resumed = compat.Optimizer(parameters(3), factory, lr=rate)
    resumed.load_state_dict(saved(optimizer))
    resumed.param_groups[0]["params"][0].data.copy_(group["params"][0])
    assert torch.equal(stepped(resumed), stepped(optimizer))


@pytest.mark.parametrize("kind", [np.int64, np.int32, lambda x: np.array(x)])
def test_a_schedule_may_return_ints_of_numpy(kind: Any) -> None:
    optimizer = compat.Optimizer(parameters(3), fa.sgd, lr=lambda count: kind(1))
    stepped(optimizer)
    assert type(optimizer.param_groups[0]["lr"]) is int
    assert saved(optimizer)["param_groups"][0]["scheduled_lr"] == 1


def test_pairs_and_trees_of_numpy() -> None:
    def betas(count: torch.Tensor) -> Any:
        return np.float64(0.9), np.array(0.99)

    optimizer = compat.Optimizer(parameters(3), fa.adam, betas=betas, lr=np.float64(0.1))
    stepped(optimizer)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    assert {type(x) for x in optimizer.param_groups[0]["scheduled_betas"]} == {float}
    tree = compat.Optimizer(
        [("w", parameters(3)[0])], fa.sgd, lr=lambda count: {"w": np.float32(0.5)}
    )
    stepped(tree)
    assert saved(tree)["param_groups"][0]["lr"] == {"w": 0.5}


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.longdouble])
@pytest.mark.parametrize("factory", [fa.adamax, fa.adamw, clipped])
def test_given_numbers_of_numpy_are_kept_as_those_of_python(factory: Any, kind: Any) -> None:
    optimizer = compat.Optimizer(parameters(3), factory, lr=kind(0.1))
    plain = compat.Optimizer(parameters(3), factory, lr=float(kind(0.1)))
    assert type(optimizer.param_groups[0]["lr"]) is float
    assert torch.equal(stepped(optimizer), stepped(plain))
    assert saved(optimizer)["param_groups"][0]["lr"] == float(kind(0.1))


def test_the_functional_form_takes_what_numpy_says() -> None:
    w = torch.ones(3)
    for make in (fa.adamax, fa.adam, fa.scale_by_learning_rate, fa.inject_hyperparams(fa.adamax)):
        for kind in KINDS.values():
            number = float(kind(0.1))
            tx, plain = make(lambda count, kind=kind: kind(0.1)), make(lambda count, n=number: n)
            found, wanted = (one.update(w, one.init(w), w)[0] for one in (tx, plain))
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("make", [compat.Adamax, compat.wrap(fa.adamax)])
def test_checkpoints_have_numbers_of_python_whoever_set_them(make: Any) -> None:
    optimizer = make(parameters(3), lr=np.float64(0.1), betas=(np.float64(0.9), np.float32(0.5)))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: np.cos(i / 10))
    stepped(optimizer)
    scheduler.step()
    optimizer.param_groups[0]["weight_decay"] = np.int64(0)
    (group,) = saved(optimizer)["param_groups"]
    assert group["lr"] == 0.1 * np.cos(0.1)
    assert {type(x) for x in numbers(group)} <= {int, float, bool, type(None)}


def test_float32_of_numpy_divides_as_in_torch() -> None:
    """Whose bits are others than those of the number in double precision."""
    pair = []
    for cls in (torch.optim.Adamax, compat.Adamax):
        (w,) = parameters(1000)
        w.data.copy_(torch.linspace(-1, 1, 1000))
        optimizer = cls([w], lr=np.float32(0.1))
        pair.append(stepped(optimizer, 5))
        assert type(optimizer.param_groups[0]["lr"]) is np.float32
    assert torch.equal(*pair)
