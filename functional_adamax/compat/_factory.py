"""What an optimizer is made of: a transform, or a function that makes one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .._core.links import checked_link
from .._core.transform import GradientTransformation

Factory = Callable[..., GradientTransformation]
"""A function from hyperparameters to a transform."""


def check_factory(given: Any) -> Factory:
    """Return a function that makes a transform, also of a transform that is there.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(given, tuple):
        return partial(_itself, checked_link("factory", given))
    if isinstance(given, type) and issubclass(given, torch.optim.Optimizer):
        raise TypeError(
            f"factory must make a transform, got the class {given.__name__}: use it as it is, or "
            "compat.as_transform makes a transform of it"
        )
    if not callable(given) or isinstance(given, torch.nn.Module):
        got = repr(given) if isinstance(given, (int, float, str)) else type(given).__name__
        raise TypeError(
            f"factory must be a transform or make one, got {got}: the order is (params, factory)"
        )
    factory: Factory = given
    return factory


def _itself(transform: GradientTransformation) -> GradientTransformation:
    return transform
