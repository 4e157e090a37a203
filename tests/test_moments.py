"""What a state keeps of a leaf stays what it is: of the kind, shape and dtype it came with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recipes import RECIPES, Recipe

import functional_adamax as fa
from functional_adamax._core import pytree

PARAMS = {"v": torch.linspace(-1, 1, 3), "w": torch.linspace(1, 2, 4)}
GRADS = {"v": torch.ones(3), "w": torch.full((4,), -2.0)}


def moments(state: Any) -> list[int]:
    """The positions of the floating leaves that are no scalars."""
    leaves, _ = pytree.flatten(state)
    return [
        i
        for i, x in enumerate(leaves)
        if isinstance(x, torch.Tensor) and x.is_floating_point() and x.dim()
    ]


def with_leaf(state: Any, i: int, dtype: torch.dtype) -> tuple[Any, str]:
    """The state with its leaf ``i`` in another dtype, and the field that the leaf is in."""
    leaves, spec = pytree.flatten(state)
    leaves[i] = leaves[i].to(dtype)
    field = pytree.paths(spec, "state")[i].split("[")[-2].split(".")[-1]
    return pytree.unflatten(spec, leaves), field


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_moment_of_another_dtype_keeps_it_or_is_refused_by_name(
    recipe: Recipe, dtype: torch.dtype
) -> None:
    tx = recipe.default()
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    for i in moments(state):
        if pytree.flatten(state)[0][i].dtype == dtype:
            continue
        given, field = with_leaf(state, i, dtype)
        after, message = given, ""
        try:
            _, after = tx.update(GRADS, given, PARAMS)
        except (TypeError, ValueError) as error:
            message = str(error)
        assert field in message or after is not given
        dtypes = [x.dtype for x in pytree.tensors(given)]
        assert [x.dtype for x in pytree.tensors(after)] == dtypes


@pytest.mark.parametrize(
    "make", [fa.adamax, fa.adamaxw, fa.adam, fa.nadamax], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("donate", [False, True])
def test_moments_of_two_dtypes_are_refused_with_the_path(make: Any, donate: bool) -> None:
    tx = make(0.1)
    state = tx.init(PARAMS)
    given, _ = with_leaf(state, moments(state)[0], torch.bfloat16)
    before = [x.clone() for x in pytree.tensors((PARAMS, given))]
    with pytest.raises(ValueError, match=r"state\.\w+\['v'\] must fit state\.\w+, a torch\.\w+"):
        fa.step(tx, GRADS, given, PARAMS, donate=donate)
    after = pytree.tensors((PARAMS, given))
    assert all(torch.equal(x, y) for x, y in zip(after, before, strict=True))


@pytest.mark.parametrize("make", [fa.adamax, fa.adam, fa.lion, fa.trace, fa.ema])
def test_a_moment_of_integers_is_refused_with_the_path(make: Any) -> None:
    tx = make(0.1)
    state = tx.init(PARAMS)
    given, field = with_leaf(state, moments(state)[0], torch.int64)
    with pytest.raises(TypeError, match=rf"state\.{field}\['v'\] must be a floating or complex"):
        tx.update(GRADS, given, PARAMS)
