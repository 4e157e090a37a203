"""What makes a transform for an optimizer, and what does not."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax.compat._factory import check_factory


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
