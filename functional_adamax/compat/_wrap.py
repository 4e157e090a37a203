"""Optimizer classes made of factories, with the factory's signature."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from torch.optim.optimizer import ParamsT

from .._transforms.arguments import arguments
from ._factory import Factory, check_factory
from ._optimizer import Optimizer


def wrap(factory: Factory, name: str | None = None) -> type[Optimizer]:
    """Return an optimizer class whose constructor has the hyperparameters of ``factory``.

        AdamaxW = wrap(functional_adamax.adamaxw)
        optimizer = AdamaxW(model.parameters(), lr=1e-3)

    Args:
        factory: a function from hyperparameters to a transform, one of the library or your own.
        name: of the class. Default: that of ``factory`` in camel case. Assign the class to this
            name in the module that calls ``wrap``, and its instances pickle.

    Returns:
        A subclass of ``Optimizer`` that is called as ``cls(params, ..., couple="group")``.

    Example:
        >>> import functional_adamax as fa
        >>> Lion = wrap(fa.lion)
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> Lion([w], lr=0.5).param_groups[0]["lr"]
        0.5
    """
    if isinstance(factory, tuple):
        raise TypeError(
            "factory must be a function that makes a transform, got a transform: give the "
            "function itself, or make the optimizer by Optimizer(params, transform)"
        )
    check_factory(factory)
    words = getattr(factory, "__name__", "transform").split("_")
    title = name or "".join(word[:1].upper() + word[1:] for word in words)
    signature = inspect.signature(factory)

    def construct(
        self: Any, params: ParamsT, *args: Any, couple: str = "group", **kwargs: Any
    ) -> None:
        given = arguments(factory, args, kwargs)[1]
        Optimizer.__init__(self, params, factory, couple=couple, **given)

    construct.__qualname__ = f"{title}.__init__"  # which errors of Python name
    kinds = inspect.Parameter
    first = kinds("params", kinds.POSITIONAL_OR_KEYWORD)
    last = kinds("couple", kinds.KEYWORD_ONLY, default="group")
    every = [first.replace(name="self"), first, *signature.parameters.values(), last]
    construct.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        sorted(every, key=lambda parameter: parameter.kind)
    )
    module = sys._getframe(1).f_globals.get("__name__", __name__)
    body = {"__init__": construct, "__doc__": factory.__doc__, "__module__": module}
    return type(title, (Optimizer,), body)
