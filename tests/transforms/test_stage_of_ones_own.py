"""Stages of a user's own, written with public names alone."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from trees import assert_equal

import functional_adamax as fa
from functional_adamax._execution.program import machine
from functional_adamax.compat import Optimizer

needs_machine = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")


@dataclass(frozen=True, eq=False, repr=False)
class Times(fa.Stage):
    """``scale``."""

    factor: Any

    def rule(self, x: fa.LeafUpdate) -> Tensor:
        return x.u * x.h["factor"]


@dataclass(frozen=True, eq=False, repr=False)
class Decay(fa.Stage):
    """``add_decayed_weights``."""

    needs_params: ClassVar[bool] = True

    rate: Any

    def rule(self, x: fa.LeafUpdate) -> Tensor:
        return torch.add(x.u, x.p, alpha=self.rate)


@dataclass(frozen=True, eq=False, repr=False)
class Sign(fa.Stage):
    """``scale_by_sign``."""

    def rule(self, x: fa.LeafUpdate) -> Tensor:
        return torch.where(x.u.isnan(), x.u, x.u.sign())


@dataclass(frozen=True, eq=False, repr=False)
class Clip(fa.Stage):
    """``clip``, or another way to bound an update."""

    most: float
    how: str = "clamp"

    def hyper(self) -> dict[str, Any]:
        return {"most": self.most}

    def rule(self, x: fa.LeafUpdate) -> Tensor:
        most = x.h["most"]
        if self.how == "clamp":
            return x.u.clamp(-most, most)
        return most * x.u / (most + x.u.abs())


@dataclass(frozen=True, eq=False, repr=False)
class Unit(fa.Stage):
    """Updates of the norm 1, all together."""

    def once(self, updates: list[Tensor]) -> dict[str, Any]:
        return {"norm": fa.global_norm(updates)}

    def rule(self, x: fa.LeafUpdate) -> Tensor:
        return x.u / x.h["norm"]


PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "scale": (lambda: Times(-0.3).pair(), lambda: fa.scale(-0.3)),
    "decay": (lambda: Decay(0.1).pair(), lambda: fa.add_decayed_weights(0.1)),
    "sign": (lambda: Sign().pair(), fa.scale_by_sign),
    "clip": (lambda: Clip(0.7).pair(), lambda: fa.clip(0.7)),
}


def tree(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    found = {"a": torch.randn(3, 40, dtype=dtype), "b": torch.randn(70, dtype=dtype)}
    return found | {"c": torch.randn((), dtype=dtype), "d": torch.randn(0, 2, dtype=dtype)}


def chained(link: Any) -> fa.GradientTransformation:
    return fa.chain(fa.clip_by_global_norm(1.0), fa.scale_by_adamax(), link, fa.scale(-0.1))


def is_a_program(tx: fa.GradientTransformation) -> bool:
    return {x.executor for x in fa.explain(tx, tree()).leaves} == {"program"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("in_chain", [False, True], ids=["alone", "in a chain"])
@pytest.mark.parametrize("name", PAIRS)
def test_it_has_the_bits_of_the_stage_of_the_library(
    name: str, in_chain: bool, dtype: torch.dtype
) -> None:
    ours, theirs = (make() for make in PAIRS[name])
    if in_chain:
        ours, theirs = chained(ours), chained(theirs)
    p = tree(dtype)
    one, two = ours.init(p), theirs.init(p)
    for missing in ("", "", "b"):
        g = tree(dtype) | dict.fromkeys(missing)
        assert_equal(ours.update(g, one, p)[0], theirs.update(g, two, p)[0])
        new, one = fa.step(ours, g, one, p)
        p, two = fa.step(theirs, g, two, p, donate=True)
        assert_equal(new, p)


@needs_machine
@pytest.mark.parametrize("make", [*(x[0] for x in PAIRS.values()), lambda: Unit().pair()])
def test_it_is_a_program(make: Callable[[], Any]) -> None:
    assert is_a_program(make())
    assert is_a_program(chained(make()))


def test_what_is_computed_once_is_that_of_all_leaves() -> None:
    g = [torch.tensor([3.0]), torch.tensor([4.0]), None]
    tx = Unit().pair()
    assert [None if u is None else u.item() for u in tx.update(g, tx.init(g), g)[0]] == [
        pytest.approx(0.6),
        pytest.approx(0.8),
        None,
    ]


def test_a_field_that_is_no_number_is_read_of_the_stage() -> None:
    g = torch.tensor([3.0, -0.5])
    for how, wanted in (("clamp", [1.0, -0.5]), ("soft", [0.75, -1 / 3])):
        tx = Clip(1.0, how).pair()
        assert tx.update(g, tx.init(g))[0].tolist() == pytest.approx(wanted)


def test_the_parameters_are_there_where_they_are_needed() -> None:
    seen = []

    class Look(fa.Stage):
        def rule(self, x: fa.LeafUpdate) -> Tensor:
            seen.append(x.p)
            return x.u

    class Need(Look):
        needs_params = True

    p, g = [torch.ones(2)], [torch.zeros(2)]
    for kind in (Look, Need):
        dataclass(frozen=True)(kind)().pair().update(g, fa.EmptyState(), p)
    assert seen[0] is None
    assert seen[-1] is p[0]
    tx = Decay(0.1).pair()
    with pytest.raises(ValueError, match="params must be given for decay, got None"):
        tx.update(g, tx.init(p))
    with pytest.raises(ValueError, match="params must have the structure of updates"):
        tx.update(g, tx.init(p), p * 2)
    with pytest.raises(ValueError, match=r"updates\[0\] must have the shape of its parameter"):
        tx.update(g, tx.init(p), [torch.ones(3)])
    assert tx.update([None], tx.init(p))[0] == [None]


CALLS = [0]


@dataclass(frozen=True, eq=False, repr=False)
class Counting(Times):
    def rule(self, x: fa.LeafUpdate) -> Tensor:
        CALLS[0] += 1
        return x.u * x.h["factor"]


@dataclass(frozen=True, eq=False, repr=False)
class Asking(Times):
    def rule(self, x: fa.LeafUpdate) -> Tensor:
        return x.u * x.h["factor"] if x.h["factor"] > 0.1 else x.u


@dataclass(frozen=True, eq=False, repr=False)
class Averaging(Times):
    def rule(self, x: fa.LeafUpdate) -> Tensor:
        return x.u - x.u.mean()


@needs_machine
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Counting, "it reads CALLS, whose value may change"),
        (Asking, "it compares a hyperparameter, or takes another function of it"),
        (Averaging, "it calls mean, which is no instruction"),
    ],
)
def test_what_is_no_program_runs_as_it_is_written(kind: Any, why: str) -> None:
    tx, p = kind(0.5).pair(), tree()
    assert {x[1:] for x in fa.explain(tx, p).leaves} == {("as written", why)}
    before, g = CALLS[0], tree()
    updates, _ = tx.update(g, tx.init(p), p)
    assert CALLS[0] - before == (4 if kind is Counting else 0)
    rows = {name: fa.LeafUpdate(u, None, {"factor": 0.5}, {}) for name, u in g.items()}
    assert_equal(updates, {name: kind(0.5).rule(x) for name, x in rows.items()})


def test_it_is_a_transform_like_others() -> None:
    tx = Times(0.5).pair()
    assert repr(tx) == "times(factor=0.5)"
    assert pickle.loads(pickle.dumps(tx)) == tx == Times(0.5).pair() != Times(0.4).pair()
    assert Times(torch.ones(2)).pair() == Times(torch.ones(2)).pair()

    def loss(factor: Tensor, g: Tensor) -> Tensor:
        tx = Times(factor).pair()
        return tx.update(g, tx.init(g))[0].sum()

    slopes = vmap(grad(loss))(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert slopes.tolist() == [3.0, 7.0]
    tensors = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    for p in tensors:
        p.grad = torch.full_like(p, 2.0)
    made = fa.chain(Times(0.5).pair(), fa.sgd(0.1))
    Optimizer(tensors, made).step()
    assert [p.tolist() for p in tensors] == [[pytest.approx(0.9)] * 2, [pytest.approx(0.9)] * 3]
