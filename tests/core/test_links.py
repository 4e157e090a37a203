"""Transforms inside of transforms: what is one, what it is called with, what its errors say."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax._core import links

SGD = torch.optim.SGD
TX = fa.scale(2.0)


def init(params: Any) -> Any:
    return ()


class Long:
    def __repr__(self) -> str:
        return "two\nlines"


def pair(update: Any) -> fa.GradientTransformation:
    return links.checked_link("tx", (init, update))


def test_a_pair_of_functions_is_a_transform() -> None:
    assert links.checked_link("tx", TX) == TX
    made = links.checked_link("tx", (init, print))
    assert type(made) is fa.GradientTransformation
    assert made == (init, print)


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (3, "got 3"),
        ((init,), "got (<function init at"),
        ((init, 3), "got (<function init at"),
        (fa.adamax, "got the function adamax: call it"),
        (SGD, "got the optimizer SGD: it steps by itself; compat.as_transform makes a"),
        (SGD([torch.zeros(1)], 0.1), "got the optimizer SGD: it steps by itself"),
        ([TX, TX, TX], "got a list: give its 3 items one by one, chain(*transforms)"),
        (Long(), "got Long"),
    ],
    ids=["number", "one", "half", "factory", "class", "optimizer", "list", "long"],
)
def test_what_is_no_transform(given: Any, got: str) -> None:
    wanted = f"tx must be a pair (init, update) of functions, {got}"
    with pytest.raises(TypeError, match=re.escape(wanted)):
        links.checked_link("tx", given)


def test_an_update_gets_those_of_the_extra_arguments_that_it_takes() -> None:
    seen: list[Any] = []
    extra = {"value": 1, "other": 2}

    def named(u: Any, s: Any, p: Any = None, *, value: Any = None) -> Any:
        seen.append(value)
        return u, s

    def every(u: Any, s: Any, p: Any = None, **more: Any) -> Any:
        seen.append(more)
        return u, s

    def none(u: Any, s: Any, p: Any = None) -> Any:
        seen.append(())
        return u, s

    for update in (named, every, none):
        found = links.call_update(pair(update), 5, 6, 7, extra)
        assert found == (5, 6)
    assert seen == [1, extra, ()]
    assert links.call_update(TX, torch.ones(1), fa.EmptyState(), None, extra)[0].item() == 2.0


def test_an_update_of_other_arguments_is_named() -> None:
    def update(u: Any, *, params: Any) -> Any:
        return u

    wanted = r"must take \(updates, state, params\), by position, got update\(u.*params: .*wrap it"
    with pytest.raises(TypeError, match=wanted):
        links.call_update(pair(update), 1, 2, 3, {})


def test_an_error_of_the_users_is_the_same_error_with_a_note() -> None:
    error = TypeError("from inside")

    def update(u: Any, s: Any, p: Any = None) -> Any:
        raise error

    with pytest.raises(TypeError) as caught:
        links.call_update(pair(update), {"a": None, "b": torch.ones(1), "c": None}, (), None, {})
    assert caught.value is error
    (note,) = error.__notes__
    assert note.startswith("updates['a'] is None, and so are 1 more: its parameter has no gradient")
    other = ValueError("without gaps")
    links.note_missing(other, {"b": torch.ones(1)}, "updates")
    assert not hasattr(other, "__notes__")
