"""Optimizers as pure functions over trees of tensors, for PyTorch.

A transform is a pair ``(init, update)``; ``functional_adamax.compat`` turns it into a
``torch.optim.Optimizer``. The way a gradient takes through the files: ``_decay`` conditions
it, ``_adamax`` finds the direction, ``_scale`` gives the step its length, ``_apply`` adds it
to the parameters; ``_chain`` joins the stages and ``_step`` runs them all.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "_accumulate": ("MultiStepsState", "multi_steps", "skip_large_updates", "skip_not_finite"),
    "_adam": ("AdamState", "adam", "adamw", "scale_by_adam"),
    "_adamax": ("AdamaxState", "adamax", "adamaxw", "scale_by_adamax"),
    "_adaptive_clip": ("adaptive_grad_clip",),
    "_apply": ("apply_updates",),
    "_averaging": ("AverageState", "averaged", "params_average", "params_ema"),
    "_centralize": ("centralize",),
    "_chain": ("chain", "identity", "named_chain", "set_to_zero", "stateless"),
    "_checkpoint": ("from_state_dict", "to_state_dict"),
    "_clip": ("clip", "clip_by_block_rms", "clip_by_global_norm"),
    "_conditional": ("ConditionalState", "conditionally"),
    "_decay": ("add_decayed_weights",),
    "_finite": ("ApplyIfFiniteState", "ZeroNansState", "apply_if_finite", "zero_nans"),
    "_implicit": ("implicit",),
    "_inject": ("InjectState", "inject_hyperparams"),
    "_join": ("join_schedules", "sgdr_schedule", "warmup_exponential_decay_schedule"),
    "_lion": ("LionState", "lion", "scale_by_lion"),
    "_lookahead": ("LookaheadState", "lookahead"),
    "_masked": ("by_path", "freeze", "masked", "partition"),
    "_momentum": ("EmaState", "TraceState", "ema", "trace"),
    "_nadamax": ("NadamaxState", "nadamax", "scale_by_nadamax"),
    "_noise": ("NoiseState", "add_noise"),
    "_norm": ("global_norm",),
    "_piecewise": (
        "cosine_onecycle_schedule",
        "linear_onecycle_schedule",
        "piecewise_constant_schedule",
        "piecewise_interpolate_schedule",
    ),
    "_plateau": ("ReduceOnPlateauState", "reduce_on_plateau"),
    "_rmsprop": ("RmspropState", "rmsprop", "scale_by_rms"),
    "_sam": ("sam",),
    "_scale": ("scale", "scale_by_learning_rate"),
    "_schedule": ("ScheduledState",),
    "_schedule_free": ("ScheduleFreeState", "schedule_free", "schedule_free_eval_params"),
    "_schedules": (
        "constant_schedule",
        "cosine_decay_schedule",
        "exponential_decay",
        "linear_schedule",
        "polynomial_schedule",
    ),
    "_sgd": ("SgdState", "sgd"),
    "_state": (
        "get_hyperparams",
        "reset",
        "set_hyperparams",
        "tree_get",
        "tree_get_all",
        "tree_map_params",
        "tree_set",
    ),
    "_step": ("step",),
    "_transform": ("GradientTransformation",),
    "_tree": ("EmptyState",),
    "_unroll": ("Unrolled", "detach", "unroll"),
    "_variants": ("cautious", "scale_by_amsmax", "scale_by_sign"),
    "_warmup": (
        "warmup_constant_schedule",
        "warmup_cosine_decay_schedule",
        "warmup_stable_decay_schedule",
    ),
}
"""Where the public names live. A module is imported when one of its names is first used."""

_HOME = {name: module for module, names in _HOMES.items() for name in names}

_IN_COMPAT = ("Adamax", "Optimizer", "as_transform", "inner_loop", "wrap")
"""What is looked for here by mistake."""

__all__ = sorted(_HOME)  # type checkers read __init__.pyi


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        missing = f"module {__name__!r} has no attribute {name!r}"
        if name in ("compat", *_IN_COMPAT):
            missing += f": import {__name__}.compat, which has the optimizers with step()"
        raise AttributeError(missing)
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
