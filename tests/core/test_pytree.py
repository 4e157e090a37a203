"""Which trees there are, and what comes of trees that do not fit."""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict, deque
from typing import Any, NamedTuple

import optree
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import RECIPES, Recipe
from trees import assert_equal, grads_like, leaves, params

import functional_adamax as fa
from functional_adamax._core import memory


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


def test_dense_memory() -> None:
    x = torch.empty(24)
    dense = [x, x.view(2, 3, 4).permute(2, 0, 1), x[:0], x[0], x.view(1, 24).expand(1, 24)]
    dense.append(x.view(4, 6).t()[None])
    holes = [x[::2], x.view(4, 6)[:, :3], x[:1].expand(3), x.as_strided((2, 2, 2), (1, 1, 5))]
    for y in dense + holes:
        wanted = torch.ops.aten.is_non_overlapping_and_dense(y)
        assert memory.is_dense(y) == wanted == any(y is z for z in dense)


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


def test_tied_tensors_are_reported_with_both_paths() -> None:
    shared = torch.ones(2)
    with pytest.warns(UserWarning, match=re.escape("params['a'] and params['b'][0] are the same")):
        fa.adamax().init({"a": shared, "b": [shared]})
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight
    with pytest.warns(UserWarning, match="named_parameters"):
        fa.adamax().init(module.state_dict())
    fa.adamax().init(dict(module.named_parameters()))  # lists it once: no warning


def test_layouts_are_kept() -> None:
    tree = {"c": t(2, 3, 4, 5).to(memory_format=torch.channels_last), "t": t(4, 3).t()}
    state = fa.adamax().init(tree)
    for _ in range(2):
        new, state = fa.step(fa.adamax(), grads_like(tree), state, tree)
        for moments in (state.exp_avg, state.exp_inf, new):
            assert moments["c"].is_contiguous(memory_format=torch.channels_last)
            assert moments["t"].stride() == (1, 3)


def wrong(change: Any) -> Any:
    def make() -> tuple[Any, Any, Any]:
        tree = params()
        state = fa.adamax().init(tree)
        return change(grads_like(tree), state, tree)

    return make


def drop(tree: Any, key: str) -> Any:
    return {k: v for k, v in tree.items() if k != key}


ERRORS = {
    "missing key": (
        lambda g, s, p: (drop(g, "w"), s, p),
        ValueError,
        r"grads must have the structure of .*: grads\['w'\] is missing",
    ),
    "extra key": (
        lambda g, s, p: ({**g, "x": torch.ones(1)}, s, p),
        ValueError,
        r"grads\['x'\] is unexpected",
    ),
    "other container": (
        lambda g, s, p: ({**g, "layers": tuple(g["layers"])}, s, p),
        ValueError,
        r"grads must have the structure",
    ),
    "container for a leaf": (
        lambda g, s, p: ({**g, "w": [g["w"]]}, s, p),
        TypeError,
        r"grads\['w'\] must be a tensor or None, got list",
    ),
    "number for a leaf": (
        lambda g, s, p: ({**g, "w": 1.0}, s, p),
        TypeError,
        r"grads\['w'\] must be a tensor or None, got float",
    ),
    "shape": (
        lambda g, s, p: ({**g, "w": torch.ones(3, 4)}, s, p),
        ValueError,
        r"grads\['w'\] must have the shape of its parameter, \(4, 3\), got \(3, 4\)",
    ),
    "integer gradient": (
        lambda g, s, p: ({**g, "w": torch.ones(4, 3, dtype=torch.int64)}, s, p),
        TypeError,
        r"grads\['w'\] must be a real floating tensor like its parameter, got a torch.int64",
    ),
    "complex gradient": (
        lambda g, s, p: ({**g, "w": torch.ones(4, 3, dtype=torch.complex64)}, s, p),
        TypeError,
        r"grads\['w'\] must be a real floating tensor.*complex64",
    ),
    "sparse gradient": (
        lambda g, s, p: ({**g, "w": torch.ones(4, 3).to_sparse()}, s, p),
        RuntimeError,
        r"grads\['w'\]: Adamax does not support sparse gradients.*to_dense",
    ),
    "other device": (
        lambda g, s, p: ({**g, "w": torch.ones(4, 3, device="meta")}, s, p),
        ValueError,
        r"grads\['w'\] must be on the device of its state, cpu, got meta",
    ),
    "no gradients at all": (
        lambda g, s, p: (None, s, p),
        ValueError,
        r"grads must have the structure of",
    ),
    "other params": (
        lambda g, s, p: (g, s, drop(p, "w")),
        ValueError,
        r"params must have the structure of the params that init was given: params\['w'\]",
    ),
    "params of another shape": (
        lambda g, s, p: (g, s, {**p, "w": torch.ones(5)}),
        ValueError,
        r"params\['w'\] must fit its state, .*\(4, 3\) on cpu, got .* of shape \(5,\) on cpu",
    ),
    "state of another transform": (
        lambda g, s, p: (g, (s,), p),
        TypeError,
        "state must be the AdamaxState that init returned, got tuple",
    ),
    "complex params": (
        lambda g, s, p: (g, s, {**p, "w": p["w"].to(torch.complex128)}),
        ValueError,
        r"params\['w'\] must fit its state, .* got a torch.complex128",
    ),
    "moment of another shape": (
        lambda g, s, p: (g, s._replace(exp_inf={**s.exp_inf, "w": torch.ones(7)}), p),
        ValueError,
        r"state\.exp_inf\['w'\] must fit state\.exp_avg, .*\(4, 3\).* got .*\(7,\)",
    ),
    "step of another shape": (
        lambda g, s, p: (g, s._replace(step={**s.step, "w": torch.ones(7)}), p),
        ValueError,
        r"state\.step\['w'\] must be a tensor of shape \(\), got .*\(7,\)",
    ),
    "EmptyState for a gradient": (
        lambda g, s, p: ({**g, "w": fa.EmptyState()}, s, p),
        TypeError,
        r"grads\['w'\] must be a tensor or None, got EmptyState",
    ),
    "broken state": (
        lambda g, s, p: (g, s._replace(exp_inf=drop(s.exp_inf, "w")), p),
        ValueError,
        r"state\.exp_inf must have the structure of state\.step: state\.exp_inf\['w'\] is missing",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("donate", [False, True])
def test_errors_name_the_leaf_what_was_wanted_and_what_came(case: str, donate: bool) -> None:
    change, error, message = ERRORS[case]
    grads, state, tree = wrong(change)()
    with pytest.raises(error, match=message):
        fa.step(fa.adamax(), grads, state, tree, donate=donate)


def test_more_errors() -> None:
    tree = {"n": torch.tensor(3), "none": None}
    state = fa.adamax().init(tree)
    for key in tree:
        with pytest.raises(TypeError, match=rf"grads\['{key}'\] must be None, because"):
            fa.adamax().update({**dict.fromkeys(tree), key: torch.tensor(1.0)}, state)
    with pytest.raises(TypeError, match=r"params\['x'\] must be a tensor or None, got str"):
        fa.adamax().init({"x": "text"})
    for tx in (fa.adamax(weight_decay=0.1), fa.adamaxw(), fa.add_decayed_weights(0.1)):
        with pytest.raises(ValueError, match="params must be given for weight decay, got None"):
            tx.update(torch.ones(2), tx.init(torch.ones(2)))
    with pytest.raises(ValueError, match=r"updates\['a'\] is missing and updates\['b'\] is unexp"):
        fa.apply_updates({"a": torch.ones(1)}, {"b": torch.ones(1)})
    with pytest.raises(TypeError, match=r"updates\['a'\] must be None"):
        fa.apply_updates({"a": torch.tensor(1)}, {"a": torch.ones(())})
    with pytest.raises(ValueError, match="state must be the tuple of 1 states .* got tuple of 0"):
        fa.chain(fa.identity()).update(torch.ones(1), ())
    with pytest.raises(TypeError, match="state must be the ScheduledState .* got AdamaxState"):
        fa.adamax(abs).update(torch.ones(1), fa.adamax().init(torch.ones(1)))
    with pytest.raises(ValueError, match="state_dict must be a dict, got None"):
        fa.from_state_dict({"a": torch.ones(1)}, None)
    decay = fa.add_decayed_weights(0.1)
    assert decay.update({"a": None}, fa.EmptyState()) == ({"a": None}, fa.EmptyState())
    with pytest.raises(TypeError, match=r"transforms\[1\] must be a pair"):
        fa.chain(fa.identity(), fa.adamax)


@optree.register_pytree_node_class(namespace=optree.registry.__GLOBAL_NAMESPACE)
class Strict:
    """A container that must have tensors."""

    def __init__(self, inside: torch.Tensor) -> None:
        self.inside, self.shape = inside, inside.shape

    def tree_flatten(self) -> Any:
        return (self.inside,), None, ("inside",)

    @classmethod
    def tree_unflatten(cls, metadata: None, children: Any) -> Strict:
        return cls(*children)


def test_errors_do_not_need_containers_without_tensors() -> None:
    tx, params = fa.adamax(), Strict(torch.ones(3))
    with pytest.raises(ValueError, match="must have the shape of its parameter"):
        tx.update(Strict(torch.ones(2)), tx.init(params))
