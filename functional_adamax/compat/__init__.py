"""The torch.optim side: optimizers as classes, and checkpoints both ways.

Import it by its long name, ``from functional_adamax.compat import Adamax``. The short import
name ``compat`` holds the same objects, but a file ``compat.py`` of your own would hide it.
"""

from ._adamax import Adamax
from ._convert import hyperparameters_from_torch, state_from_torch, state_to_torch
from ._inner import FunctionalModule, InnerOptimizer, hyperparameters_to_torch, inner_loop
from ._lift import TorchState, as_transform
from ._optimizer import Optimizer
from ._wrap import wrap

__all__ = [
    "Adamax",
    "FunctionalModule",
    "InnerOptimizer",
    "Optimizer",
    "TorchState",
    "as_transform",
    "hyperparameters_from_torch",
    "hyperparameters_to_torch",
    "inner_loop",
    "state_from_torch",
    "state_to_torch",
    "wrap",
]
