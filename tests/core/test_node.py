"""One container of a tree: what is a leaf, what its children are, what builds it anew."""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict, deque
from typing import Any, NamedTuple

import pytest
import torch

import functional_adamax as fa
from functional_adamax._core import node


class Pair(NamedTuple):
    left: Any
    right: Any


ONE, TWO = torch.ones(1), torch.ones(2)
CONTAINERS: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "list": ([ONE, None], [ONE, None], [0, 1]),
    "tuple": ((ONE,), [ONE], [0]),
    "empty": ((), [], []),
    "dict": ({"b": ONE, "a": TWO}, [TWO, ONE], ["a", "b"]),
    "ordered": (OrderedDict(b=ONE, a=TWO), [ONE, TWO], ["b", "a"]),
    "default": (defaultdict(list, b=ONE, a=TWO), [TWO, ONE], ["a", "b"]),
    "deque": (deque([ONE, [TWO]]), [ONE, [TWO]], [0, 1]),
    "named": (Pair(ONE, fa.EmptyState()), [ONE, fa.EmptyState()], ["left", "right"]),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_opened_and_built(name: str) -> None:
    given, children, keys = CONTAINERS[name]
    assert node.is_node(given)
    found, names, build = node.open_node(given)
    assert found == children
    assert names == keys
    again = build(found)
    assert type(again) is type(given)
    assert again == given
    assert list(node.open_node(build([5] * len(found)))[0]) == [5] * len(found)


@pytest.mark.parametrize("leaf", [None, 3.0, "word", ONE, fa.EmptyState()], ids=repr)
def test_what_is_not_opened(leaf: Any) -> None:
    assert not node.is_node(leaf)
    assert node.is_empty(leaf) == isinstance(leaf, fa.EmptyState)


def test_leaves_by_their_types() -> None:
    fine = [ONE, torch.nn.Parameter(ONE), None, fa.EmptyState()]
    assert node.are_leaves(fine)
    assert node.are_leaves([])
    for other in (1.0, [ONE], ()):
        assert not node.are_leaves([*fine, other])


def test_keys_of_a_level_are_positions_where_names_are_fields() -> None:
    children, metadata, keys, build = node.open_level(Pair(ONE, TWO))
    assert keys == (0, 1)
    assert build(metadata, children) == Pair(ONE, TWO)


def test_a_public_state_is_saved_under_its_public_name(tmp_path: Any) -> None:
    for kind in (fa.EmptyState, fa.AdamaxState, fa.ScheduledState):
        assert kind.__module__ == "functional_adamax"
        assert pickle.loads(pickle.dumps(kind)) is kind
    state = fa.AdamaxState(ONE, {"w": TWO}, fa.EmptyState())
    assert b"functional_adamax\n" in pickle.dumps(state, 0)
    torch.save(state, tmp_path / "state")
    again = torch.load(tmp_path / "state", weights_only=True)
    assert type(again) is fa.AdamaxState
    assert torch.equal(again.exp_avg["w"], TWO)
