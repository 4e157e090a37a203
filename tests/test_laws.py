"""The laws every transform keeps, over one table of recipes.

The file is longer than others: all laws are in one place.
"""

from __future__ import annotations

import io
import itertools
import pickle
from typing import Any

import pytest
import torch
from recipes import RECIPES, Recipe
from torch._dynamo.utils import counters
from torch.func import jvp, vmap
from trees import (
    DTYPES,
    assert_close,
    assert_equal,
    clone,
    grads_like,
    leaves,
    member,
    params,
    stack,
    tree_map,
    with_gaps,
)

import functional_adamax as fa

MEMBERS = 3


def law(name: str) -> Any:
    """Run a law over the recipes that are not excused from it."""
    kept = [recipe for recipe in RECIPES if name not in recipe.excused]
    return pytest.mark.parametrize("recipe", kept, ids=str)


def run(tx: fa.GradientTransformation, grads: list[Any], state: Any, tree: Any) -> tuple[Any, Any]:
    for g in grads:
        updates, state = tx.update(g, state, tree)
        tree = fa.apply_updates(tree, updates)
    return tree, state


@law("pure")
def test_nothing_given_is_written(recipe: Recipe) -> None:
    tx, tree = recipe.default(), with_gaps(params())
    grads, state = grads_like(tree), tx.init(tree)
    _, state = run(tx, [grads_like(tree) for _ in range(2)], state, tree)
    given = (tree, grads, state)
    before = clone(given)
    versions = [x._version for x in leaves(given) if x is not None]

    first = tx.update(grads, state, tree)
    second = tx.update(grads, state, tree)
    stepped = fa.step(tx, grads, state, tree)
    again = fa.step(tx, grads, state, tree)

    assert_equal(first, second)
    assert_equal(stepped, again)
    assert_equal(given, before)
    assert versions == [x._version for x in leaves(given) if x is not None]


@law("memory")
def test_parameters_state_and_gradients_share_no_memory(recipe: Recipe) -> None:
    """So a caller may donate or write any of them, from the first step on."""
    tx, tree = recipe.default(), with_gaps(params())
    state, grads = tx.init(tree), grads_like(tree)
    assert_apart(tree, state, grads)
    for _ in range(2):
        tree, state = fa.step(tx, grads, state, tree)
        assert_apart(tree, state, grads)


def assert_apart(*trees: Any) -> None:
    tensors = [x for x in leaves(trees) if isinstance(x, torch.Tensor) and x.numel()]
    assert len({x.untyped_storage().data_ptr() for x in tensors}) == len(tensors) > 0


@law("same tree")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_the_same_tree_comes_out(recipe: Recipe, dtype: torch.dtype) -> None:
    tx, tree = recipe.default(), with_gaps(params(dtype))
    state = tx.init(tree)
    for _ in range(2):
        grads = grads_like(tree)
        updates, new_state = tx.update(grads, state, tree)
        new = fa.apply_updates(tree, updates)
        assert [x is None for x in leaves(updates)] == [x is None for x in leaves(grads)]
        for old_tree, new_tree in ((state, new_state), (tree, new)):
            described = tree_map(lambda x: (x.shape, x.dtype, x.device, x.stride()), old_tree)
            assert described == tree_map(
                lambda x: (x.shape, x.dtype, x.device, x.stride()), new_tree
            )
        assert_equal(fa.step(tx, grads, state, tree), (new, new_state))
        tree, state = new, new_state


def batched_choices(recipe: Recipe) -> list[tuple[bool, bool, bool, frozenset[str]]]:
    """Which of params, grads, state are batched, and which hyperparameters."""
    names = sorted(recipe.hyper)
    some = [frozenset(), frozenset(names), *(frozenset({name}) for name in names)]
    data = itertools.product([False, True], repeat=3)
    choices = [(*flags, hyper) for flags in data for hyper in some]
    stateless = not leaves(recipe.default().init(torch.zeros(1)))
    return [c for c in choices if c[0] or c[1] or c[3] or (c[2] and not stateless)]


@law("vmap")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_vmap_is_a_loop(recipe: Recipe, dtype: torch.dtype) -> None:
    trees = [params(dtype) for _ in range(MEMBERS)]
    gradients = [[grads_like(trees[0]) for _ in range(2)] for _ in range(MEMBERS)]
    spread = {
        name: torch.tensor([value * (1 + i / 10) for i in range(MEMBERS)], dtype=torch.float64)
        for name, value in recipe.hyper.items()
    }
    if "b1" in spread:
        spread["b1"] = torch.tensor([0.0, 0.5, 0.8], dtype=torch.float64)
        spread["b2"] = torch.tensor([0.5, 0.9, 0.95], dtype=torch.float64)
    tx = recipe.default()
    states = [run(tx, g[:1], tx.init(t), t)[1] for g, t in zip(gradients, trees, strict=True)]

    def once(hyper: Any, grads: Any, state: Any, tree: Any) -> Any:
        return fa.step(recipe.make(**hyper), grads, state, tree)

    for batched_params, batched_grads, batched_state, batched_hyper in batched_choices(recipe):
        t = stack(trees) if batched_params else trees[0]
        g = stack([g[1] for g in gradients]) if batched_grads else gradients[0][1]
        s = stack(states) if batched_state else states[0]
        h = {k: v if k in batched_hyper else v[0] for k, v in spread.items()}
        dims = (
            {k: 0 if k in batched_hyper else None for k in spread},
            0 if batched_grads else None,
            0 if batched_state else None,
            0 if batched_params else None,
        )
        got = vmap(once, in_dims=dims)(h, g, s, t)
        for i in range(MEMBERS):
            operands = (
                {k: v[i] if k in batched_hyper else v for k, v in h.items()},
                member(g, i) if batched_grads else g,
                member(s, i) if batched_state else s,
                member(t, i) if batched_params else t,
            )
            assert_close(member(got, i), once(*operands), operands)


@law("vmap")
def test_vmap_of_init_is_a_loop(recipe: Recipe) -> None:
    trees = [params() for _ in range(MEMBERS)]
    got = vmap(recipe.default().init)(stack(trees))
    for i, tree in enumerate(trees):
        assert_equal(member(got, i), recipe.default().init(tree))


@law("compile")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_compiled_is_eager_in_one_graph(recipe: Recipe, dtype: torch.dtype) -> None:
    def once(hyper: Any, grads: Any, state: Any, tree: Any) -> Any:
        tx = recipe.make(**hyper)
        updates, state = tx.update(grads, state, tree)
        return fa.apply_updates(tree, updates), state

    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(once, fullgraph=True, backend="inductor")
    tree = {"w": torch.randn(4, 3, dtype=dtype), "b": torch.randn((), dtype=dtype), "n": None}
    state = recipe.default().init(tree)
    for i in range(20):
        hyper = {k: v * (1 - i / 50) for k, v in recipe.tensors().items()}
        grads = grads_like(tree)
        want = once(hyper, grads, state, tree)
        operands = (grads, state, tree)
        tree, state = compiled(hyper, grads, state, tree)
        assert_close((tree, state), want, operands)
    assert counters["stats"]["unique_graphs"] == 1, "a graph for every step"
    assert sum(counters["graph_break"].values()) == 0


def through_three_steps(recipe: Recipe, names: list[str]) -> Any:
    """A function of tensors alone: params, three gradients, then the hyperparameters."""

    def function(w: Any, b: Any, gw: Any, gb: Any, *hyper: Any) -> Any:
        tx = recipe.make(**dict(zip(names, hyper, strict=True)))
        tree = {"w": w, "b": b}
        state = tx.init(tree)
        for i in range(3):
            grads = {"w": (i + 1) * gw + w.sin(), "b": gb * tree["b"].cos() if i != 1 else None}
            updates, state = tx.update(grads, state, tree)
            tree = fa.apply_updates(tree, updates)
        return tree["w"], tree["b"], *(x for x in leaves(state) if x.dim())

    return function


@law("differentiable")
def test_differentiable_in_everything(recipe: Recipe) -> None:
    names = sorted(recipe.hyper)
    inputs = [torch.randn(s, dtype=torch.float64) for s in ((2, 2), (), (2, 2), ())]
    inputs += [recipe.tensors()[name] for name in names]
    inputs = [x.requires_grad_() for x in inputs]
    function = through_three_steps(recipe, names)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@law("differentiable")
def test_differentiable_in_the_state(recipe: Recipe) -> None:
    tx, tree = recipe.default(), {"w": torch.randn(3, dtype=torch.float64)}
    _, state = run(tx, [grads_like(tree) for _ in range(2)], tx.init(tree), tree)
    flat = leaves(state)
    floating = [i for i, x in enumerate(flat) if x.is_floating_point() and x.dim()]
    if not floating:
        pytest.skip("no moments in this state")
    spec = torch.utils._pytree.tree_structure(state)
    grads = grads_like(tree)

    def function(*moments: Any) -> Any:
        mixed = list(flat)
        for i, moment in zip(floating, moments, strict=True):
            mixed[i] = moment
        new, after = fa.step(tx, grads, torch.utils._pytree.tree_unflatten(mixed, spec), tree)
        return new["w"], *(leaves(after)[i] for i in floating)

    inputs = [flat[i].clone().requires_grad_() for i in floating]
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@law("differentiable")
def test_jvp_is_the_derivative(recipe: Recipe) -> None:
    names = sorted(recipe.hyper)
    inputs = [torch.randn(s, dtype=torch.float64) for s in ((2, 2), (), (2, 2), ())]
    inputs += [recipe.tensors()[name] for name in names]
    function = through_three_steps(recipe, names)
    tangents = [torch.randn_like(x) for x in inputs]
    _, got = jvp(lambda *x: function(*x)[:2], tuple(inputs), tuple(tangents))
    h = 1e-6
    high = function(*(x + h * d for x, d in zip(inputs, tangents, strict=True)))
    low = function(*(x - h * d for x, d in zip(inputs, tangents, strict=True)))
    for g, a, b in zip(got, high[:2], low[:2], strict=True):
        torch.testing.assert_close(g, (a - b) / (2 * h), rtol=1e-6, atol=1e-7)


@law("donate")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.filterwarnings("ignore:eps=")
def test_donated_is_pure(recipe: Recipe, dtype: torch.dtype) -> None:
    tx, tree = recipe.default(), with_gaps(params(dtype))
    state = tx.init(tree)
    donated, donated_state = clone(tree), clone(state)
    for i in range(4):
        grads = grads_like(tree)
        if i == 1:
            grads["inner"]["w"] = None
        tree, state = fa.step(tx, grads, state, tree)
        before = donated["inner"]["w"]
        donated, donated_state = fa.step(tx, grads, donated_state, donated, donate=True)
        assert donated["inner"]["w"] is before, "donated storage was not used"
        assert_equal((donated, donated_state), (tree, state))


@law("pickle")
def test_pickles_compares_and_prints(recipe: Recipe) -> None:
    tx = recipe.default()
    assert pickle.loads(pickle.dumps(tx)) == tx == recipe.default()
    assert hash(tx) == hash(recipe.default())
    with_tensors = recipe.make(**recipe.tensors())
    assert pickle.loads(pickle.dumps(with_tensors)) == with_tensors
    if recipe.hyper:
        assert with_tensors != tx
        changed = {k: v * 0.5 for k, v in recipe.tensors().items()}
        assert recipe.make(**changed) != with_tensors
    for value in recipe.hyper.values():
        assert str(value) in repr(tx)


@law("checkpoint")
def test_state_survives_a_safe_load(recipe: Recipe) -> None:
    tx, tree = recipe.default(), with_gaps(params(torch.float32))
    grads = [grads_like(tree) for _ in range(5)]
    middle, state = run(tx, grads[:2], tx.init(tree), tree)
    file = io.BytesIO()
    torch.save(fa.to_state_dict((middle, state)), file)
    file.seek(0)
    like = (tree, tx.init(tree))
    loaded = fa.from_state_dict(like, torch.load(file, weights_only=True))
    assert_equal(loaded, (middle, state))
    assert_equal(run(tx, grads[2:], loaded[1], loaded[0]), run(tx, grads[2:], state, middle))


@law("errors")
@pytest.mark.parametrize("donate", [False, True])
def test_a_failed_step_changes_nothing_and_names_the_leaf(recipe: Recipe, donate: bool) -> None:
    tx, tree = recipe.default(), params()
    _, state = run(tx, [grads_like(tree)], tx.init(tree), tree)
    grads = grads_like(tree)
    grads["layers"][0] = grads["layers"][0]._replace(right=torch.randn(7, dtype=torch.float64))
    before = clone((tree, state))
    with pytest.raises(ValueError, match=r"\['layers'\]\[0\]\.right.*shape.*\(\).*\(7,\)"):
        fa.step(tx, grads, state, tree, donate=donate)
    assert_equal((tree, state), before)
