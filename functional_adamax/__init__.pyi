from ._accumulate import MultiStepsState, multi_steps, skip_large_updates, skip_not_finite
from ._adam import AdamState, adam, adamw, scale_by_adam
from ._adamax import AdamaxState, adamax, adamaxw, scale_by_adamax
from ._adaptive_clip import adaptive_grad_clip
from ._apply import apply_updates
from ._averaging import AverageState, averaged, params_average, params_ema
from ._centralize import centralize
from ._chain import chain, identity, named_chain, set_to_zero, stateless
from ._checkpoint import from_state_dict, to_state_dict
from ._clip import clip, clip_by_block_rms, clip_by_global_norm
from ._conditional import ConditionalState, conditionally
from ._decay import add_decayed_weights
from ._finite import ApplyIfFiniteState, ZeroNansState, apply_if_finite, zero_nans
from ._implicit import implicit
from ._inject import InjectState, inject_hyperparams
from ._join import join_schedules, sgdr_schedule, warmup_exponential_decay_schedule
from ._lion import LionState, lion, scale_by_lion
from ._lookahead import LookaheadState, lookahead
from ._masked import by_path, freeze, masked, partition
from ._momentum import EmaState, TraceState, ema, trace
from ._nadamax import NadamaxState, nadamax, scale_by_nadamax
from ._noise import NoiseState, add_noise
from ._norm import global_norm
from ._piecewise import (
    cosine_onecycle_schedule,
    linear_onecycle_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
)
from ._plateau import ReduceOnPlateauState, reduce_on_plateau
from ._rmsprop import RmspropState, rmsprop, scale_by_rms
from ._sam import sam
from ._scale import scale, scale_by_learning_rate
from ._schedule import ScheduledState
from ._schedule_free import ScheduleFreeState, schedule_free, schedule_free_eval_params
from ._schedules import (
    constant_schedule,
    cosine_decay_schedule,
    exponential_decay,
    linear_schedule,
    polynomial_schedule,
)
from ._sgd import SgdState, sgd
from ._state import (
    get_hyperparams,
    reset,
    set_hyperparams,
    tree_get,
    tree_get_all,
    tree_map_params,
    tree_set,
)
from ._step import step
from ._transform import GradientTransformation
from ._tree import EmptyState
from ._unroll import Unrolled, detach, unroll
from ._variants import cautious, scale_by_amsmax, scale_by_sign
from ._warmup import (
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_stable_decay_schedule,
)

__version__: str

__all__ = [
    "AdamState",
    "AdamaxState",
    "ApplyIfFiniteState",
    "AverageState",
    "ConditionalState",
    "EmaState",
    "EmptyState",
    "GradientTransformation",
    "InjectState",
    "LionState",
    "LookaheadState",
    "MultiStepsState",
    "NadamaxState",
    "NoiseState",
    "ReduceOnPlateauState",
    "RmspropState",
    "ScheduleFreeState",
    "ScheduledState",
    "SgdState",
    "TraceState",
    "Unrolled",
    "ZeroNansState",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adaptive_grad_clip",
    "add_decayed_weights",
    "add_noise",
    "apply_if_finite",
    "apply_updates",
    "averaged",
    "by_path",
    "cautious",
    "centralize",
    "chain",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "conditionally",
    "constant_schedule",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "detach",
    "ema",
    "exponential_decay",
    "freeze",
    "from_state_dict",
    "get_hyperparams",
    "global_norm",
    "identity",
    "implicit",
    "inject_hyperparams",
    "join_schedules",
    "linear_onecycle_schedule",
    "linear_schedule",
    "lion",
    "lookahead",
    "masked",
    "multi_steps",
    "nadamax",
    "named_chain",
    "params_average",
    "params_ema",
    "partition",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "polynomial_schedule",
    "reduce_on_plateau",
    "reset",
    "rmsprop",
    "sam",
    "scale",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_amsmax",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_nadamax",
    "scale_by_rms",
    "scale_by_sign",
    "schedule_free",
    "schedule_free_eval_params",
    "set_hyperparams",
    "set_to_zero",
    "sgd",
    "sgdr_schedule",
    "skip_large_updates",
    "skip_not_finite",
    "stateless",
    "step",
    "to_state_dict",
    "trace",
    "tree_get",
    "tree_get_all",
    "tree_map_params",
    "tree_set",
    "unroll",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
    "warmup_stable_decay_schedule",
    "zero_nans",
]
