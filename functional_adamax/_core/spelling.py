"""Arguments that a function does not take, answered with those that it takes.

Users come with the words of other libraries. What takes hyperparameters goes under
``explains_misfits``, which keeps its signature and changes only the error of a wrong call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_HERE = {  # a word of optax, torch or another library: what it may be here, the first that is taken
    "learning_rate": ("lr",),
    "b1": ("betas[0]",),
    "b2": ("betas[1]",),
    "beta": ("betas[0]", "b1"),
    "beta1": ("betas[0]", "b1"),
    "beta2": ("betas[1]",),
    "momentum": ("betas[0]",),
    "decay": ("alpha",),
    "rho": ("alpha", "betas[1]"),
    "epsilon": ("eps",),
    "wd": ("weight_decay",),
    "l2": ("weight_decay",),
    "mu_dtype": ("state_dtype",),
    "accumulator_dtype": ("state_dtype",),
    "max_delta": ("max_value",),
    "step_size": ("factor",),
    "optimizer": ("inner",),
    "opt": ("inner",),
    "base_optimizer": ("inner",),
    "fast_optimizer": ("inner",),
    "every_k_schedule": ("every_k",),
    "should_skip_update_fn": ("skip",),
    "param_labels": ("labels",),
    "inner_factory": ("factory",),
    "static_args": ("static",),
}
_ELSEWHERE = {
    "params": "parameters go to init(params)",
    "mask": "masked(tx, mask) takes a mask",
    "foreach": "foreach is an option of compat.Adamax",
    "capturable": "capturable is an option of compat.Adamax",
    "differentiable": "update and step are differentiable as they are",
    "fused": "fused steps are taken where they can be",
}


def explains_misfits(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function``, whose ``TypeError`` for a call that does not fit says what does."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            try:
                inspect.signature(function).bind(*args, **kwargs)
            except TypeError:
                problem = f"{error}{answer(function, args, kwargs)}"
            else:
                raise  # it is not about the call
        raise TypeError(problem)

    return called


def answer(function: Callable[..., Any], args: Iterable[Any], kwargs: Iterable[str]) -> str:
    """What ``function`` takes instead of these arguments, as the end of a message."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    hints = [suggestion(word, known) for word in kwargs if word not in known]
    if "params" not in known:
        hints += [about_parameters(value) for value in args]
    return f"; it takes {', '.join(known) or 'nothing'}{''.join(hints)}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """What ``word`` is called among the ``known`` names, as the end of a message."""
    known = list(known)
    for name in _HERE.get(word, ()):
        if name.split("[")[0] in known:
            return f"; {word} is {name} here"
    if word in _ELSEWHERE:
        return f"; {_ELSEWHERE[word]}"
    return "".join(f"; did you mean {name}?" for name in get_close_matches(word, known, 1))


def about_parameters(value: Any) -> str:
    """Where parameters go that were given for something else, as the end of a message."""
    given = isinstance(value, (Iterator, torch.nn.Module))
    return "; parameters go to init(params), or to an optimizer of compat" if given else ""
