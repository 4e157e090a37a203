"""Optimizers as pure functions over trees of tensors, for PyTorch.

A transform is a pair ``(init, update)``; ``functional_adamax.compat`` turns it into a
``torch.optim.Optimizer``. The way a gradient takes through the files: ``_decay`` conditions
it, ``_adamax`` finds the direction, ``_scale`` gives the step its length, ``_apply`` adds it
to the parameters; ``_chain`` joins the stages and ``_step`` runs them all.
"""

from ._adamax import AdamaxState, adamax, adamaxw, scale_by_adamax
from ._apply import apply_updates
from ._chain import chain, identity
from ._checkpoint import from_state_dict, to_state_dict
from ._decay import add_decayed_weights
from ._implicit import implicit
from ._scale import scale, scale_by_learning_rate
from ._schedule import ScheduledState
from ._step import step
from ._transform import GradientTransformation
from ._tree import EmptyState
from ._unroll import Unrolled, detach, unroll

__version__ = "0.1.0"

__all__ = [
    "AdamaxState",
    "EmptyState",
    "GradientTransformation",
    "ScheduledState",
    "Unrolled",
    "adamax",
    "adamaxw",
    "add_decayed_weights",
    "apply_updates",
    "chain",
    "detach",
    "from_state_dict",
    "identity",
    "implicit",
    "scale",
    "scale_by_adamax",
    "scale_by_learning_rate",
    "step",
    "to_state_dict",
    "unroll",
]
