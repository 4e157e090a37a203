"""Typical mistakes: what comes as an answer names what was wanted, what came and what to do.

The file is longer than others: it has a table of mistakes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax import compat


def tree() -> dict[str, torch.Tensor]:
    return {"w": torch.ones(3), "b": torch.zeros(())}


def module() -> torch.nn.Module:
    return torch.nn.Linear(3, 1)


def weights() -> Any:
    return module().parameters()


TX = fa.adamax(0.1)
CHAIN = fa.chain(fa.clip(1.0), TX)
NAMED = fa.named_chain(("direction", fa.scale_by_adamax()), ("rate", fa.scale(-0.1)))
LABELLED = fa.partition({"a": TX, "b": fa.set_to_zero()}, {"w": "a", "b": "b"})
INJECTED = fa.inject_hyperparams(fa.adamax)(lr=0.1)
ORDER = ("update takes (grads, state, params)", "step returns (params, state)")
Mistake = tuple[Callable[[], Any], type[Exception], tuple[str, ...]]


def wrong_state(
    tx: fa.GradientTransformation, error: type[Exception], *words: str
) -> list[Mistake]:
    """Everything that is not the state, in its place."""
    state = tx.init(tree())
    words = (*words, "got", *ORDER)
    return [
        (lambda: tx.update(state, tree(), tree()), error, words),
        (lambda: tx.update(tree(), tree(), state), error, words),
        (lambda: fa.step(tx, tree(), tree(), state), error, words),
        (lambda: fa.step(tx, tree(), *fa.step(tx, tree(), state, tree())), error, words),
    ]


MISTAKES: dict[str, list[Mistake]] = {
    "parameters where a transform has hyperparameters": [
        (lambda: fa.adamax(weights()), TypeError, ("lr must be a real number", "init(params)")),
        (
            lambda: fa.adamax(weights(), lr=0.1),
            TypeError,
            ("multiple values for argument 'lr'", "init(params)", "compat"),
        ),
        (lambda: fa.adamax(betas=0.9), TypeError, ("a pair", "(0.9, 0.999)", "got 0.9")),
    ],
    "what is no tree of tensors": [
        (
            lambda: TX.init(list(module().named_parameters())),
            TypeError,
            ("params[0][0]", "got str", "named_parameters()"),
        ),
        (lambda: TX.init(module().named_parameters()), TypeError, ("got generator", "named_par")),
        (lambda: TX.init(weights()), TypeError, ("got generator", "named_parameters()")),
        (lambda: TX.init(module()), TypeError, ("got Linear", "named_parameters()")),
        (lambda: TX.init({"w": 1.0}), TypeError, ("params['w']", "got float", "torch.as_tensor")),
        (
            lambda: TX.init({"w": torch.ones(2).numpy()}),
            TypeError,
            ("params['w']", "got ndarray", "torch.as_tensor"),
        ),
        (lambda: TX.init(), TypeError, ("init() missing", "'params'")),
    ],
    "what does not fit the parameters": [
        (
            lambda: fa.step(TX, (torch.ones(3), torch.ones(())), TX.init(tree()), tree()),
            ValueError,
            ("grads must be a dict, got tuple", "dict(zip(params, grads))"),
        ),
        (
            lambda: fa.adam(0.1).update({"w": torch.ones(3)}, fa.adam(0.1).init(tree())),
            ValueError,
            ("grads['b'] is missing", "a missing gradient is None"),
        ),
        (
            lambda: fa.step(TX, torch.ones(()), TX.init(tree()), tree()),
            ValueError,
            ("grads must be a dict, got Tensor",),
        ),
        (
            lambda: fa.step(TX, tree(), TX.init(tree()), None),
            ValueError,
            ("params must be given", "got None", "call update(grads, state, params)"),
        ),
        (
            lambda: fa.apply_updates(tree(), TX.update(tree(), TX.init(tree()))),
            ValueError,
            ("updates must be a dict, got tuple", "update returns (updates, state)"),
        ),
        (
            lambda: fa.apply_updates(tree(), TX.update(tree(), TX.init(tree()))[1]),
            ValueError,
            ("updates must be a dict, got AdamaxState", "update returns (updates, state)"),
        ),
    ],
    "a state in another place": [
        *wrong_state(TX, TypeError, "the AdamaxState that init returned"),
        *wrong_state(fa.adam(0.1), TypeError, "the AdamState that init returned"),
        *wrong_state(fa.lookahead(TX, 2, 0.5), TypeError, "the LookaheadState"),
        *wrong_state(CHAIN, ValueError, "the tuple of 2 states"),
        *wrong_state(NAMED, ValueError, "the dict of the states", "'direction', 'rate'"),
        *wrong_state(LABELLED, ValueError, "the dict of the states", "'a', 'b'"),
        (lambda: TX.update(tree(), CHAIN.init(tree())), TypeError, ("AdamaxState", "got tuple")),
        (
            lambda: fa.adam(0.1).update(tree(), TX.init(tree())),
            TypeError,
            ("AdamState that init returned", "got AdamaxState"),
        ),
    ],
    "what is no transform": [
        (lambda: fa.chain(fa.adamax, fa.clip(1.0)), TypeError, ("transforms[0]", "call it")),
        (lambda: fa.masked(fa.adamax, True), TypeError, ("the function adamax: call it",)),
        (lambda: fa.chain([TX, TX]), TypeError, ("got a list", "one by one", "*transforms")),
        (lambda: fa.named_chain({"a": TX}), TypeError, ("links[0]", "a dict", "*links.items()")),
        (
            lambda: fa.chain(TX, torch.optim.SGD),
            TypeError,
            ("transforms[1]", "the optimizer SGD", "compat.as_transform"),
        ),
        (
            lambda: fa.step(compat.Adamax, tree(), None, tree()),
            TypeError,
            ("tx must be a pair", "the optimizer Adamax", "it steps by itself"),
        ),
        (lambda: fa.step(fa.adamax, tree(), None, tree()), TypeError, ("adamax: call it",)),
        (lambda: fa.step(tree(), None, tree(), tree()), TypeError, ("tx must be a pair",)),
        (
            lambda: fa.inject_hyperparams(TX),
            TypeError,
            ("a function that makes a transform", "inject_hyperparams(adamax)(lr=0.1)"),
        ),
        (
            lambda: compat.as_transform(torch.optim.SGD(weights(), 0.1)),
            TypeError,
            ("a class of torch.optim, got a SGD", "as_transform(torch.optim.SGD, lr=0.1)"),
        ),
    ],
    "what torch.optim does not take": [
        (
            lambda: compat.Adamax(module()),
            TypeError,
            ("'Linear' object is not iterable", "module.parameters()"),
        ),
        (
            lambda: compat.Adamax([{"params": module()}]),
            TypeError,
            ("'Linear' object is not iterable", "module.parameters()"),
        ),
        (
            lambda: compat.Adamax(torch.nn.Sequential(module())),
            TypeError,
            ("optimizer can only optimize Tensors", "module.parameters()"),
        ),
        (
            lambda: compat.Adamax(weights()).add_param_group({"params": module()}),
            TypeError,
            ("'Linear' object is not iterable", "module.parameters()"),
        ),
        (
            lambda: compat.Adamax(dict(module().named_parameters())),
            TypeError,
            ("optimizer can only optimize Tensors, but one of the params is str", "params.items()"),
        ),
        (
            lambda: compat.Optimizer(module(), TX),
            TypeError,
            ("not iterable", "module.parameters()"),
        ),
    ],
    "what makes no optimizer": [
        (lambda: compat.Optimizer(weights()), TypeError, ("'factory'", "it takes params, factory")),
        (
            lambda: compat.Optimizer(fa.adamaxw, weights()),
            TypeError,
            ("got generator", "the order is (params, factory)"),
        ),
        (
            lambda: compat.Optimizer(fa.adamaxw, module()),
            TypeError,
            ("got Linear", "the order is (params, factory)"),
        ),
        (
            lambda: compat.Optimizer(weights(), fa.chain),
            TypeError,
            ("transforms of", "give the transform that it makes"),
        ),
        (
            lambda: compat.wrap(TX),
            TypeError,
            ("got a transform", "give the function itself", "Optimizer(params, transform)"),
        ),
        (lambda: compat.wrap(fa.adamaxw)(), TypeError, ("Adamaxw.__init__() missing", "'params'")),
    ],
    "what a state does not have": [
        (
            lambda: fa.set_hyperparams(TX.init(tree()), lr=0.1),
            KeyError,
            ("got AdamaxState", "inject_hyperparams(adamax)(lr=0.1)"),
        ),
        (lambda: fa.get_hyperparams(TX.init(tree())), KeyError, ("inject_hyperparams(adamax)",)),
        (
            lambda: fa.tree_get(TX.init(tree()), "exp_inff"),
            KeyError,
            ("step, exp_avg, exp_inf", "did you mean exp_inf?"),
        ),
        (
            lambda: fa.averaged(TX.init(tree())),
            ValueError,
            ("got 0 of them", "params_ema() the last"),
        ),
    ],
    "what lives elsewhere": [
        (lambda: fa.Adamax, AttributeError, ("'Adamax'", "import functional_adamax.compat")),
        (lambda: fa.wrap, AttributeError, ("'wrap'", "import functional_adamax.compat")),
    ],
}
CASES = [
    pytest.param(*mistake, id=f"{kind}-{i}")
    for kind, mistakes in MISTAKES.items()
    for i, mistake in enumerate(mistakes)
]


@pytest.mark.parametrize(("make", "error", "words"), CASES)
def test_a_mistake_is_answered(
    make: Callable[[], Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert type(caught.value) is error
    text = str(caught.value)
    for word in words:
        assert word in text


@pytest.mark.parametrize("given", [module, lambda: torch.nn.Sequential(module()), dict, tree])
def test_parameters_that_torch_refuses_are_refused_in_its_words(given: Callable[[], Any]) -> None:
    with pytest.raises(Exception) as wanted:  # noqa: PT011
        torch.optim.Adamax(given())
    with pytest.raises(type(wanted.value)) as got:
        compat.Adamax(given())
    words, more = str(got.value), str(got.value).removeprefix(str(wanted.value))
    assert words == str(wanted.value) + more
    assert more.count("give") <= 1, "said twice"


def test_compat_without_its_import_says_what_to_import() -> None:
    code = "import functional_adamax as fa; fa.compat"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "AttributeError" in done.stderr
    assert "import functional_adamax.compat" in done.stderr


def not_a_bias(name: str) -> bool:
    return "bias" not in name


def weights_decay(**hyperparameters: Any) -> fa.GradientTransformation:
    decay = fa.masked(fa.add_decayed_weights(0.1), fa.by_path(not_a_bias))
    return fa.chain(fa.named_chain(("decay", decay)), fa.adamax(**hyperparameters))


def weights_decay_or_not(lr: float = 0.1, decays: bool = False) -> fa.GradientTransformation:
    return weights_decay(lr=lr) if decays else fa.adamax(lr)


BY_NAME = {
    "masked": fa.chain(fa.sgd(0.1), fa.masked(fa.scale(2.0), fa.by_path(not_a_bias))),
    "freeze": fa.lookahead(fa.chain(fa.sgd(0.1), fa.freeze(fa.by_path(not_a_bias))), 2, 0.5),
    "partition": fa.partition({True: TX, False: fa.set_to_zero()}, fa.by_path(not_a_bias)),
    "factory": weights_decay,
}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_mask_by_name_over_parameters_without_names_is_noticed(name: str) -> None:
    with pytest.warns(UserWarning, match="by_path.*give the optimizer model.named_parameters") as w:
        compat.Optimizer(weights(), BY_NAME[name])
    assert w[0].filename == __file__
    compat.Optimizer(module().named_parameters(), BY_NAME[name])  # warnings are errors
    compat.Optimizer(weights(), fa.chain(TX, fa.masked(fa.scale(2.0), [True, False])))


def test_a_group_refused_for_its_missing_names_is_not_added() -> None:
    optimizer = compat.Optimizer(weights(), weights_decay_or_not)
    with pytest.raises(UserWarning, match="by_path"):  # warnings are errors
        optimizer.add_param_group({"params": list(weights()), "decays": True})
    assert len(optimizer.param_groups) == 1
