"""Calls that do not fit: the answer names what a function takes, and changes nothing else."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax import compat
from functional_adamax._core.spelling import answer, explains_misfits, suggestion


def tree() -> dict[str, torch.Tensor]:
    return {"w": torch.ones(3), "b": torch.zeros(())}


def weights() -> Any:
    return torch.nn.Linear(3, 1).parameters()


TX = fa.adamax(0.1)
INJECTED = fa.inject_hyperparams(fa.adamax)(lr=0.1)
WORDS: list[tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = [
    (
        lambda: fa.adamax(learning_rate=0.1),
        TypeError,
        ("adamax()", "'learning_rate'", "it takes lr, betas, eps", "learning_rate is lr here"),
    ),
    (lambda: fa.adamax(b1=0.9), TypeError, ("'b1'", "b1 is betas[0] here")),
    (lambda: fa.lion(0.1, b2=0.9), TypeError, ("'b2'", "b2 is betas[1] here")),
    (lambda: fa.adamax(momentum=0.9), TypeError, ("momentum is betas[0] here",)),
    (lambda: fa.rmsprop(0.1, decay=0.9), TypeError, ("decay is alpha here",)),
    (lambda: fa.adam(0.1, mu_dtype=None), TypeError, ("mu_dtype is state_dtype here",)),
    (lambda: fa.clip(max_delta=1.0), TypeError, ("max_delta is max_value here",)),
    (lambda: fa.scale(step_size=1.0), TypeError, ("step_size is factor here",)),
    (lambda: fa.lookahead(fast_optimizer=TX), TypeError, ("fast_optimizer is inner here",)),
    (lambda: fa.multi_steps(TX, every_k_schedule=2), TypeError, ("is every_k here",)),
    (lambda: fa.partition({}, param_labels={}), TypeError, ("is labels here",)),
    (lambda: fa.adamw(0.1, mask={}), TypeError, ("masked(tx, mask) takes a mask",)),
    (lambda: fa.adamax(foreach=True), TypeError, ("an option of compat.Adamax",)),
    (lambda: fa.adamax(weigth_decay=0.1), TypeError, ("did you mean weight_decay?",)),
    (
        lambda: fa.cosine_decay_schedule(0.1),
        TypeError,
        ("'decay_steps'", "it takes init_value"),
    ),
    (lambda: fa.centralize(TX), TypeError, ("it takes nothing",)),
    (
        lambda: compat.Adamax(weights(), learning_rate=0.1),
        TypeError,
        ("Adamax.__init__() got an unexpected", "learning_rate is lr here"),
    ),
    (
        lambda: compat.Optimizer(weights(), fa.adamaxw, learning_rate=0.1),
        TypeError,
        ("adamaxw", "'learning_rate'", "it takes lr", "learning_rate is lr here"),
    ),
    (
        lambda: compat.wrap(fa.adamaxw)(weights(), learning_rate=0.1),
        TypeError,
        ("adamaxw", "learning_rate is lr here"),
    ),
    (
        lambda: fa.inject_hyperparams(fa.adamax)(learning_rate=0.1),
        TypeError,
        ("adamax", "learning_rate is lr here"),
    ),
    (
        lambda: fa.set_hyperparams(INJECTED.init(tree()), learning_rate=0.1),
        KeyError,
        ("'learning_rate'", "'lr'", "learning_rate is lr here"),
    ),
]


@pytest.mark.parametrize(("make", "error", "words"), WORDS)
def test_the_words_of_other_libraries_are_answered(
    make: Callable[[], Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)


FACTORIES = {
    name: value
    for name in fa.__all__
    if inspect.isfunction(value := getattr(fa, name))
    and inspect.signature(value).return_annotation
    in ("GradientTransformation", "Curve", "Callable[..., GradientTransformation]")
}


def test_the_factories_are_found() -> None:
    assert len(FACTORIES) >= 61
    assert {"adamax", "chain", "linear_schedule", "inject_hyperparams", "clip"} <= set(FACTORIES)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_factory_says_what_it_takes_and_stays_a_function(name: str) -> None:
    factory = FACTORIES[name]
    with pytest.raises(TypeError) as caught:
        factory(not_an_argument=1)
    taken = list(inspect.signature(factory).parameters)
    assert f"it takes {', '.join(taken) or 'nothing'}" in str(caught.value)
    assert pickle.loads(pickle.dumps(factory)) is factory
    assert factory.__name__ == name
    assert factory.__doc__


def test_an_error_from_inside_passes_as_it_is() -> None:
    error = TypeError("from inside")

    @explains_misfits
    def raising(x: int) -> None:
        raise error

    with pytest.raises(TypeError) as caught:
        raising(1)
    assert caught.value is error


def test_factories_are_called_in_one_graph() -> None:
    def once(lr: Any, grads: Any, state: Any, params: Any) -> Any:
        tx = fa.chain(fa.clip(max_value=1.0), fa.adamax(lr=lr, betas=(0.9, 0.99)))
        return fa.step(tx, grads, state, params)

    state = fa.chain(fa.clip(1.0), fa.adamax()).init(tree())
    args = torch.tensor(0.1), tree(), state, tree()
    torch._dynamo.reset()
    got = torch.compile(once, fullgraph=True, backend="eager")(*args)
    assert torch.equal(got[0]["w"], once(*args)[0]["w"])


def taking(lr: float, betas: Any = (0.9, 0.999), *, eps: float = 1e-8) -> None:
    """A function of hyperparameters."""


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("learning_rate", ["lr"], "; learning_rate is lr here"),
        ("beta1", ["b1", "betas"], "; beta1 is betas[0] here"),
        ("beta1", ["b1"], "; beta1 is b1 here"),
        ("beta1", ["lr"], ""),
        ("mask", ["lr"], "; masked(tx, mask) takes a mask"),
        ("weigth_decay", ["lr", "weight_decay"], "; did you mean weight_decay?"),
        ("nothing", ["lr"], ""),
    ],
)
def test_what_is_suggested_for_a_word(word: str, known: list[str], said: str) -> None:
    assert suggestion(word, iter(known)) == said


def test_an_answer_lists_what_is_taken() -> None:
    assert answer(taking, (), {}) == "; it takes lr, betas, eps"
    assert (
        answer(taking, (), {"b1": 1, "lr": 2}) == "; it takes lr, betas, eps; b1 is betas[0] here"
    )
    advice = "; parameters go to init(params), or to an optimizer of compat"
    assert answer(taking, (weights(),), {}).endswith(f"eps{advice}")
    assert answer(taking, (torch.nn.Linear(1, 1), 0.1), {}).count(advice) == 1


def test_a_function_keeps_its_name_its_words_and_its_signature() -> None:
    explained = explains_misfits(taking)
    assert explained.__name__ == "taking"
    assert explained.__doc__ == taking.__doc__
    assert inspect.signature(explained) == inspect.signature(taking)
    assert explained(0.1) is None
    with pytest.raises(
        TypeError, match=r"^taking\(\) missing 1 required .*; it takes lr, betas, eps"
    ):
        explained()
