"""Checks per leaf: an error names the leaf, what was wanted and what came.

The file is longer than others: it has a table of mistakes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
import pytest
import torch
from trees import grads_like, params

import functional_adamax as fa
from functional_adamax._core import checks, pytree


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


def spec_of(tree: Any) -> Any:
    return pytree.flatten(tree)[1]


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (1.0, r"params\['w'\] must be a tensor or None, got float: make a tensor of it"),
        (
            np.ones(2),
            r"params\['w'\] .* got ndarray: make a tensor of it, torch.as_tensor",
        ),
        ("a", r"params\['w'\] .* got str: take \{name: p.detach\(\) for name, p in module.named"),
        (torch.nn.Linear(1, 1), r"params\['w'\] .* got Linear: take \{name"),
        (object(), r"params\['w'\] must be a tensor or None, got object$"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_is_no_tensor_is_named_with_a_cure(leaf: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        checks.parameters({"v": torch.ones(1), "w": leaf})


def test_how_tensors_are_described() -> None:
    assert checks.describe(torch.ones(2, 3)) == "a torch.float32 tensor of shape (2, 3)"
    assert checks.placed(torch.ones(())) == "a torch.float32 tensor of shape () on cpu"
    assert [checks.describe(x) for x in (None, 1.0, ())] == ["None", "float", "tuple"]
    kinds = [torch.half, torch.complex64, torch.int8, torch.bool]
    assert [checks.kind(torch.zeros(1, dtype=dtype)) for dtype in kinds] == [
        "a real floating",
        "a complex",
        "an integer",
        "a boolean",
    ]
    trained = [torch.half, torch.complex64]
    assert [x for x in kinds if checks.trainable(torch.zeros(1, dtype=x))] == trained
    assert not checks.trainable(1.0)


def test_a_state_of_another_kind() -> None:
    checks.state(fa.EmptyState(), fa.EmptyState)
    with pytest.raises(TypeError, match="the EmptyState that init returned, got dict, hint; upd"):
        checks.state({}, fa.EmptyState, ", hint")


def test_moments_are_alike_and_floating() -> None:
    spec, one = spec_of([0, 0]), torch.ones(2)
    checks.moments(spec, {})
    checks.moments(spec, {"a": [one, fa.EmptyState()], "b": [one.clone(), fa.EmptyState()]})
    for other in (torch.ones(3), one.double(), one.to("meta"), None):
        with pytest.raises(ValueError, match=r"state\.b\[1\] must fit state\.a, a torch.float32"):
            checks.moments(spec, {"a": [one, one], "b": [one, other]})
    with pytest.raises(TypeError, match=r"state\.a\[0\] must be a floating or complex tensor"):
        checks.moments(spec, {"a": [torch.tensor(1), one]})


def test_scalars_and_places() -> None:
    spec, like = spec_of([0, 0]), [torch.ones(2), fa.EmptyState()]
    checks.scalars(spec, [torch.ones(()), None], like, "state.step")
    checks.same_places(spec, [torch.ones(2).double(), None], like, "params")
    for bad in (torch.ones(1), 1.0, None):
        with pytest.raises(
            ValueError, match=r"state.step\[0\] must be a tensor of shape \(\), got"
        ):
            checks.scalars(spec, [bad, None], like, "state.step")
    for odd in (torch.ones(3), torch.ones(2) * 1j, torch.ones(2, device="meta"), None):
        with pytest.raises(ValueError, match=r"params\[0\] must fit its state, .* on cpu, got "):
            checks.same_places(spec, [odd, None], like, "params")
