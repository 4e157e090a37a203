"""The short name of ``functional_adamax.compat``: the same objects."""

from functional_adamax.compat import (
    Adamax,
    FunctionalModule,
    InnerOptimizer,
    hyperparameters_from_torch,
    hyperparameters_to_torch,
    inner_loop,
    state_from_torch,
    state_to_torch,
)

__all__ = [
    "Adamax",
    "FunctionalModule",
    "InnerOptimizer",
    "hyperparameters_from_torch",
    "hyperparameters_to_torch",
    "inner_loop",
    "state_from_torch",
    "state_to_torch",
]
