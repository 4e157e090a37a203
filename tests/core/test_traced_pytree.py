"""Structures as a compiler follows them answer as those of optree do."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from typing import Any, NamedTuple

import optree
import pytest
import torch
from torch import Tensor

import functional_adamax as fa
from functional_adamax._core import pytree, traced_pytree
from functional_adamax._core.pytree import EmptyState


class Pair(NamedTuple):
    first: Any
    second: Any


@optree.register_pytree_node_class(namespace=optree.registry.__GLOBAL_NAMESPACE)  # type: ignore[attr-defined]
class Box:
    def __init__(self, inside: Any, label: str) -> None:
        self.inside, self.label = inside, label

    def tree_flatten(self) -> tuple[Any, Any, Any]:
        return (self.inside,), self.label, ("inside",)

    @classmethod
    def tree_unflatten(cls, label: str, children: Any) -> Box:
        return cls(*children, label)


W, X, Y, Z = (torch.full((2,), float(i)) for i in range(4))
TREES = {
    "leaf": X,
    "none": None,
    "number": 3.0,
    "empty state": EmptyState(),
    "list": [X, Y],
    "tuple": (X, None),
    "empty": {"a": [], "b": ()},
    "dict": {"b": X, "a": Y},
    "numbered": {2: X, 1: Y, 10: None},
    "mixed": {"b": X, 1: Y},
    "constants": {"b": None, "a": None},
    "ordered": OrderedDict(b=X, a=Y),
    "default": defaultdict(list, b=X, a=Y),
    "deque": deque([X, Y], maxlen=3),
    "named": Pair(X, Pair(Y, None)),
    "registered": Box([X, Y], "label"),
    "registered, with another label": Box([X, Y], "other"),
    "nested": {"fc": {"weight": X, "bias": Y}, "rest": [Z, (W, {"a": None, "e": EmptyState()})]},
    "shallow beside deep": [X, [Y], Z],
    "subclass": [torch.nn.Parameter(X), torch.nn.Buffer(Y)],
}


def same(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", TREES)
def test_structures_answer_as_those_of_optree(name: str) -> None:
    tree = TREES[name]
    wanted, theirs = pytree.flatten(tree)
    leaves, spec = traced_pytree.flatten(tree)
    assert same(leaves, wanted)
    assert (spec.num_leaves, spec.is_leaf()) == (theirs.num_leaves, theirs.is_leaf())
    assert spec.paths() == theirs.paths()
    if "registered" not in name:  # which may be written in ways of their own
        assert pytree.paths(spec, "x") == pytree.paths(theirs, "x")
    again = spec.unflatten(leaves)
    assert optree.tree_structure(again, none_is_leaf=True) == optree.tree_structure(
        tree, none_is_leaf=True
    )
    assert same(pytree.flatten(again)[0], leaves)
    if isinstance(tree, dict):
        assert list(again) == list(theirs.unflatten(wanted)) == list(tree)
    assert spec == traced_pytree.flatten(again)[1]


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("other", TREES)
def test_matching_agrees_with_optree(name: str, other: str) -> None:
    theirs, ours = pytree.flatten(TREES[name])[1], traced_pytree.flatten(TREES[name])[1]
    try:
        wanted = theirs.flatten_up_to(TREES[other])
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 - of which nobody reads the words
            ours.flatten_up_to(TREES[other])
    else:
        assert same(ours.flatten_up_to(TREES[other]), wanted)
    equal = pytree.flatten(TREES[other])[1] == theirs
    assert (traced_pytree.flatten(TREES[other])[1] == ours) == equal


@pytest.mark.parametrize(
    "name",
    ["leaf", "list", "dict", "numbered", "ordered", "named", "nested", "shallow beside deep"],
)
def test_trees_of_every_kind_compiled(name: str) -> None:
    params = TREES[name]
    grads = pytree.tree_map(lambda x: x + 1 if isinstance(x, Tensor) else None, params)
    if name == "nested":
        params = pytree.tree_map(lambda x: x if isinstance(x, Tensor) else None, params)
        grads = OrderedDict(reversed(grads.items()))
    tx = fa.chain(fa.clip_by_global_norm(1.0), fa.adamax(0.1))
    state = tx.init(params)

    def step(grads: Any, state: Any, params: Any) -> Any:
        return fa.step(tx, grads, state, params)

    torch._dynamo.reset()
    found = torch.compile(step, fullgraph=True, backend="eager")(grads, state, params)
    wanted = step(grads, state, params)
    a, b = pytree.flatten(found), pytree.flatten(wanted)
    assert a[1] == b[1]
    assert all(x is y or torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))
