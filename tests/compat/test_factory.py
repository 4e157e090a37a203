"""What makes a transform for an optimizer, and what does not."""

from __future__ import annotations

import pickle
import random
import sys
from functools import partial
from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax.compat._factory import Reads, check_factory


@pytest.mark.parametrize("factory", [fa.adamax, partial(fa.adamax, 0.1), fa.chain, abs, type])
def test_a_function_is_a_factory_as_it_is(factory: Any) -> None:
    assert check_factory(factory) is factory


def test_a_transform_makes_itself() -> None:
    factory = check_factory(fa.adamax(0.1))
    assert factory() == fa.adamax(0.1)
    assert pickle.loads(pickle.dumps(factory))() == fa.adamax(0.1)
    plain = check_factory((lambda p: (), lambda u, s, p=None: (u, s)))
    assert type(plain()) is fa.GradientTransformation


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, r"factory must be a transform or make one, got 3: the order is \(params, factory\)"),
        ("adamax", "got 'adamax': the order is"),
        ([fa.adamax], "got list: the order is"),
        (torch.nn.Linear(1, 1), "got Linear: the order is"),
        (iter(()), "got tuple_iterator: the order is"),
        (torch.optim.SGD, "got the class SGD: use it as it is, or compat.as_transform makes"),
        ((abs,), r"factory must be a pair \(init, update\) of functions, got"),
    ],
    ids=["number", "word", "list", "module", "iterator", "class", "one"],
)
def test_what_is_no_factory(given: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        check_factory(given)


RATE, RATES = 0.1, [0.1]


def made_here(lr: float) -> fa.GradientTransformation:
    return fa.chain(fa.scale_by_adamax(), fa.scale(-lr * RATE))


def through_another(lr: float) -> fa.GradientTransformation:
    return made_here(lr)


def told(factory: Any) -> bool:
    return Reads(factory).now() is not None


def test_what_a_factory_reads_is_told() -> None:
    own = 3.0
    for factory in (
        fa.adamax,
        made_here,
        through_another,
        partial(made_here, 0.1),
        check_factory(fa.adamax(0.1)),
        lambda lr: fa.adamax(lr, eps=own),
        lambda lr, mask=("a", "b"): fa.partition({"a": fa.sgd(lr), "b": fa.sgd(lr)}, mask),
    ):
        assert told(factory), factory


class Making:
    rate = 0.1

    def make(self, lr: float) -> fa.GradientTransformation:
        return fa.sgd(lr * self.rate)

    __call__ = make


def test_what_may_change_unseen_is_not_told() -> None:
    counted: list[float] = []

    def counting(lr: float) -> fa.GradientTransformation:
        counted.append(lr)
        return fa.sgd(lr)

    for factory in (
        lambda lr: fa.sgd(lr * RATES[0]),
        lambda lr: fa.sgd(lr * torch.rand(()).item()),
        lambda lr: fa.sgd(lr * torch.get_num_threads()),
        lambda lr: fa.sgd(lr * random.random()),
        counting,
        Making(),
        Making().make,
        partial(made_here, lr=torch.tensor(0.1)),
        partial(fa.partition, labels=["a"]),
    ):
        assert not told(factory), factory


def test_what_has_changed_is_another_object(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[__name__]
    reads = Reads(through_another)
    before = reads.now()
    assert reads.now() is before is not None
    monkeypatch.setattr(module, "RATE", 0.2)
    after = reads.now()
    assert after is not before
    assert reads.now() is after
    monkeypatch.setattr(module, "made_here", lambda lr: fa.sgd(lr * RATES[0]))
    assert reads.now() is None
    monkeypatch.delattr(module, "made_here")
    assert Reads(through_another).now() is None


def test_a_name_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(made_here)
    reads.now()
    monkeypatch.delattr(sys.modules[__name__], "RATE")
    assert reads.now() is None
