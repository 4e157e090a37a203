"""The short name of ``functional_adamax.compat``: the same objects."""

from functional_adamax.compat import (
    Adamax,
    hyperparameters_from_torch,
    state_from_torch,
    state_to_torch,
)

__all__ = ["Adamax", "hyperparameters_from_torch", "state_from_torch", "state_to_torch"]
