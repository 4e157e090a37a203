"""Which trees there are, and what comes of trees that do not fit."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from typing import Any, NamedTuple

import optree
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import RECIPES, Recipe
from trees import assert_equal, grads_like, leaves

import functional_adamax as fa
from functional_adamax._core import pytree


class Layer(NamedTuple):
    weight: Any
    bias: Any


@optree.register_pytree_node_class(namespace=optree.registry.__GLOBAL_NAMESPACE)
class Box:
    def __init__(self, content: Any) -> None:
        self.content = content

    def tree_flatten(self) -> Any:
        return (self.content,), None, ("content",)

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> Box:
        return cls(*children)


def t(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


TREES = {
    "tensor": lambda: t(3),
    "0-d": lambda: torch.tensor(1.0),
    "empty tensor": lambda: t(0, 3),
    "dict": lambda: {"b": t(2), "a": t(3)},
    "OrderedDict": lambda: OrderedDict([("b", t(2)), ("a", t(3))]),
    "defaultdict": lambda: defaultdict(list, {"b": t(2), "a": t(3)}),
    "list": lambda: [t(2), t(3)],
    "tuple": lambda: (t(2), (t(3),)),
    "deque": lambda: deque([t(2), t(3)]),
    "NamedTuple": lambda: Layer(t(2), None),
    "registered": lambda: Box({"x": t(2)}),
    "no leaves": dict,
    "nested empties": lambda: {"a": [], "b": ((), {"c": {}})},
    "None": lambda: None,
    "with None": lambda: {"a": None, "b": [None, t(2)]},
    "integers": lambda: {"a": torch.arange(3), "b": t(2), "c": torch.tensor(True)},
    "mixed dtypes": lambda: [
        t(2),
        t(2).double(),
        t(2).bfloat16(),
        torch.randn(2, dtype=torch.cfloat),
    ],
    "channels_last": lambda: t(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": lambda: t(4, 3).t(),
    "strided": lambda: t(8)[::2],
    "expanded": lambda: torch.ones(1).expand(4),
    "Parameter": lambda: torch.nn.Parameter(t(3)),
    "ParameterDict as dict": lambda: dict(torch.nn.Linear(2, 2).named_parameters()),
}
TRANSFORMS = {
    "adamax": fa.adamax(weight_decay=0.1),
    "adamaxw": fa.adamaxw(),
    "chain": fa.chain(
        fa.scale_by_adamax(), fa.add_decayed_weights(0.1), fa.scale_by_learning_rate(0.1)
    ),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("donate", [False, True])
def test_any_tree_works(name: str, transform: str, donate: bool) -> None:
    tx, tree = TRANSFORMS[transform], TREES[name]()
    if donate:
        tree = optree.tree_map(lambda x: x.detach(), tree)
    state = tx.init(tree)
    flat = [x.detach().clone() for x in optree.tree_leaves(tree)]
    structure = optree.tree_structure(tree, none_is_leaf=True)
    flat_state = tx.init(flat)
    for _ in range(3):
        grads = grads_like(tree)
        pairs = zip(leaves(grads), leaves(tree), strict=True)
        flat_grads = [g for g, p in pairs if p is not None]
        tree, state = fa.step(tx, grads, state, tree, donate=donate)
        flat, flat_state = fa.step(tx, flat_grads, flat_state, flat)
        assert optree.tree_structure(tree, none_is_leaf=True) == structure
        for x, y in zip(optree.tree_leaves(tree), flat, strict=True):
            assert torch.equal(x, y)
            assert (x.dtype, x.shape) == (y.dtype, y.shape)


tensors = st.sampled_from([(), (2,), (1, 3)]).map(lambda shape: torch.zeros(shape))
trees = st.recursive(
    tensors | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("zyxa"), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Layer, inner, inner)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(tree=trees, data=st.data())
def test_random_trees_with_random_gaps(tree: Any, data: Any) -> None:
    tx = fa.adamax(0.5)
    grads = optree.tree_map(
        lambda x: torch.ones_like(x) if x is not None and data.draw(st.booleans()) else None,
        tree,
        none_is_leaf=True,
    )
    new, state = fa.step(tx, grads, tx.init(tree), tree)
    assert optree.tree_structure(new, none_is_leaf=True) == optree.tree_structure(
        tree, none_is_leaf=True
    )
    for g, p, q in zip(leaves(grads), leaves(tree), leaves(new), strict=True):
        if p is None:
            assert q is None
        else:
            assert torch.equal(q, p if g is None else p - 0.5)
    assert_equal(fa.from_state_dict(tx.init(tree), fa.to_state_dict(state)), state)


def test_dicts_stand_for_one_another_in_any_order() -> None:
    tx, tree = fa.adamax(0.5), {"b": torch.zeros(2), "a": torch.zeros(3)}
    grads = OrderedDict([("b", torch.ones(2)), ("a", -torch.ones(3))])
    new, _ = fa.step(tx, grads, tx.init(tree), tree)
    assert new["b"].tolist() == [-0.5] * 2
    assert new["a"].tolist() == [0.5] * 3


QUIET = [recipe for recipe in RECIPES if recipe.name != "add_noise"]  # drawn leaf after leaf


@pytest.mark.parametrize("recipe", QUIET, ids=str)
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_dicts_stand_for_one_another_in_every_transform(recipe: Recipe, kind: Any) -> None:
    """A dict goes in the order of its keys, an OrderedDict in its own."""
    tree = kind(w=torch.randn(3, 2), layer=kind(w=torch.randn(3), b=torch.randn(2)), b=t(3))
    tx, grads = recipe.default(), grads_like(tree)
    others = [
        OrderedDict(b=grads["b"], w=grads["w"], layer=grads["layer"]),
        {**grads, "layer": OrderedDict(reversed(grads["layer"].items()))},
    ]
    wanted, state = fa.step(tx, grads, tx.init(tree), tree)
    wanted, state = fa.step(tx, grads, state, wanted)
    for other in others:
        new, found = fa.step(tx, other, tx.init(tree), tree)
        new, found = fa.step(tx, other, found, new)
        assert_equal((new, found), (wanted, state))


def test_layouts_are_kept() -> None:
    tree = {"c": t(2, 3, 4, 5).to(memory_format=torch.channels_last), "t": t(4, 3).t()}
    state = fa.adamax().init(tree)
    for _ in range(2):
        new, state = fa.step(fa.adamax(), grads_like(tree), state, tree)
        for moments in (state.exp_avg, state.exp_inf, new):
            assert moments["c"].is_contiguous(memory_format=torch.channels_last)
            assert moments["t"].stride() == (1, 3)


def test_map_tensors_leaves_the_rest_as_it_is() -> None:
    tree = {"a": torch.ones(2), "b": [None, 3, fa.EmptyState()]}
    found = pytree.map_tensors(lambda x: x + 1, tree)
    assert found["a"].tolist() == [2.0, 2.0]
    assert found["b"] == tree["b"]
