"""Counters that nobody reads as numbers are marked for Dynamo, and the marks are taken back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.symbolic_convert import TensorifyState

from functional_adamax._core.private import compiler

Marks = set[str]


class Environment:
    """Of the symbols of a compilation."""


def counter(name: str, environment: Any) -> Any:
    node = SimpleNamespace(shape_env=environment, _expr=SimpleNamespace(name=name))
    return SimpleNamespace(item_memo=SimpleNamespace(node=node))


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> Marks:
    """The names that are marked, one of somebody else among them."""
    found = {"others"}
    monkeypatch.setattr(TensorifyState, "force_specializations", found)
    monkeypatch.setattr(compiler, "_names", set())
    monkeypatch.setattr(compiler, "_compilation", None)
    return found


def test_a_counter_is_marked_once_and_asked_no_more(marks: Marks) -> None:
    environment = Environment()
    x, y = counter("zf0", environment), counter("zf1", environment)
    compiler.leave_unread([x, torch.ones(()), y])  # a tensor that has no symbol is left alone
    assert marks == {"others", "zf0", "zf1"}
    assert x.item_memo is None
    compiler.leave_unread([x])
    assert marks == {"others", "zf0", "zf1"}


def test_another_compilation_takes_the_marks_back(marks: Marks) -> None:
    first, second = Environment(), Environment()
    compiler.leave_unread([counter("zf0", first)])
    compiler.leave_unread([counter("zf1", second)])
    assert marks == {"others", "zf1"}


def test_the_end_of_a_compilation_takes_the_marks_back(marks: Marks) -> None:
    environment = Environment()
    compiler.leave_unread([counter("zf0", environment)])
    torch._dynamo.callback.callback_handler.run_end_callbacks(None)
    assert marks == {"others"}
