"""The table of transforms that the laws run over.

A recipe makes its transform from named hyperparameters, so that a law can hand them over as numbers
or as tensors that are batched, traced or differentiated. The file is longer than others: it is one
table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from trees import leaves, tree_map

import functional_adamax as fa
from functional_adamax._core.transform import Transform

RMS = {"lr": 0.1, "alpha": 0.7, "eps": 1e-2, "weight_decay": 0.1}
RATES = {"lr": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-2, "weight_decay": 0.1}


@dataclass(frozen=True)
class Recipe:
    name: str
    make: Callable[..., fa.GradientTransformation]
    hyper: dict[str, float] = field(default_factory=dict)
    excused: dict[str, str] = field(default_factory=dict)  # law: reason

    def __str__(self) -> str:
        return self.name

    def default(self) -> fa.GradientTransformation:
        return self.make(**self.hyper)

    def tensors(self, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(value, dtype=dtype) for name, value in self.hyper.items()}


def decaying(base: Any, count: torch.Tensor) -> Any:
    return base * 0.5**count


def adamax(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any, make=fa.adamax, **options: Any):
    return make(lr, (b1, b2), eps, weight_decay, **options)


def adamax_scheduled(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any, make=fa.adamax):
    return make(partial(decaying, lr), (b1, b2), eps, weight_decay)


def direction(b1: Any, b2: Any, eps: Any):
    return fa.scale_by_adamax((b1, b2), eps)


def coupled(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any):
    return fa.chain(
        fa.add_decayed_weights(weight_decay),
        fa.scale_by_adamax((b1, b2), eps),
        fa.scale_by_learning_rate(lr),
    )


def decoupled(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any):
    return fa.chain(
        fa.scale_by_adamax((b1, b2), eps),
        fa.add_decayed_weights(weight_decay),
        fa.scale_by_learning_rate(partial(decaying, lr)),
    )


def nested(lr: Any, b1: Any, b2: Any, eps: Any):
    return fa.chain(fa.chain(direction(b1, b2, eps), fa.identity()), fa.scale(lr), fa.chain())


def scheduled_rate(lr: Any):
    return fa.scale_by_learning_rate(partial(decaying, lr))


def noise(eta: Any, gamma: Any):
    return fa.add_noise(eta, gamma, seed=3)


def guarded(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any):
    return fa.apply_if_finite(adamax(lr, b1, b2, eps, weight_decay), 2)


def two_at_a_time(gradient_step: torch.Tensor) -> int:
    return 2


def accumulated(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any, every_k=2, **options: Any):
    return fa.multi_steps(adamax(lr, b1, b2, eps, weight_decay), every_k, **options)


def adam_direction(b1: Any, b2: Any, eps: Any):
    return fa.scale_by_adam((b1, b2), eps)


def nadamax_direction(b1: Any, b2: Any, eps: Any):
    return fa.scale_by_nadamax((b1, b2), eps)


def lion(lr: Any, b1: Any, b2: Any, weight_decay: Any):
    return fa.lion(lr, (b1, b2), weight_decay)


def lion_direction(b1: Any, b2: Any):
    return fa.scale_by_lion((b1, b2))


def sgd_scheduled(lr: Any, momentum: Any):
    return fa.sgd(partial(decaying, lr), momentum)


def cautious_momentum(lr: Any, momentum: Any):
    return fa.cautious(fa.sgd(lr, momentum))


def cautious_amsmax(lr: Any, beta: Any, eps: Any):
    direction = fa.scale_by_amsmax(beta, eps)
    return fa.chain(fa.cautious(direction, ascending=True), fa.scale_by_learning_rate(lr))


def sign_adamax(lr: Any, b1: Any, b2: Any, eps: Any):
    return fa.chain(fa.scale_by_sign(), direction(b1, b2, eps), fa.scale_by_learning_rate(lr))


def weights_only(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any):
    return fa.chain(
        fa.masked(fa.add_decayed_weights(weight_decay), fa.by_path(is_a_weight)),
        fa.masked(fa.chain(direction(b1, b2, eps), fa.scale(-1.0)), fa.by_path(is_a_layer)),
        fa.scale(lr),
    )


def is_a_weight(name: str) -> bool:
    return not name.endswith(("right", "b"))


def is_a_layer(name: str) -> bool:
    return "layers" in name or name in ("w", "")


def layer_or_not(name: str) -> str:
    return "layer" if is_a_layer(name) else "other"


def by_label(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any):
    return fa.partition(
        {
            "layer": adamax(lr, b1, b2, eps, weight_decay),
            "other": fa.named_chain(("one", direction(b1, b2, eps)), ("two", fa.scale(lr))),
        },
        fa.by_path(layer_or_not),
    )


def frozen(lr: Any):
    return fa.chain(fa.scale_by_learning_rate(lr), fa.freeze(fa.by_path(is_a_layer)))


def on_odd(count: torch.Tensor) -> torch.Tensor:
    return count % 2 == 1


def sometimes(lr: Any, b1: Any, b2: Any, eps: Any):
    return fa.conditionally(fa.chain(direction(b1, b2, eps), fa.scale(lr)), on_odd, "zero")


def injected(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any):
    return fa.inject_hyperparams(fa.adamaxw)(lr, (b1, b2), eps, weight_decay)


def injected_schedule(lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any):
    return fa.inject_hyperparams(fa.adamax)(partial(decaying, lr), (b1, b2), eps, weight_decay)


@dataclass(frozen=True, eq=False, repr=False)
class Watching(Transform):
    """Feed a transform the size of the updates as its ``value``."""

    name: ClassVar[str] = "watching"

    tx: fa.GradientTransformation

    def init(self, params: Any) -> Any:
        return self.tx.init(params)

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        given = [u for u in leaves(updates) if isinstance(u, torch.Tensor)]
        value = sum(u.abs().double().sum() for u in given)
        return self.tx.update(updates, state, params, value=value)


def plateau(**hyper: Any):
    return Watching(fa.reduce_on_plateau(patience=1, **hyper)).pair()


def warmed_up(lr: Any, eps: Any, **options: Any):
    return fa.adamax(fa.warmup_cosine_decay_schedule(lr / 4, lr, 2, 30), eps=eps, **options)


def averaging(make: Any, lr: Any, decay: Any, **options: Any):
    """Averages as the last link; ``ema`` lets the updates depend on the state, for gradcheck."""
    hyper = {"decay": decay} if make is fa.params_ema else {}
    return fa.chain(fa.ema(decay), fa.scale_by_learning_rate(lr), make(**hyper, **options))


def looking_ahead(slow_step_size: Any, lr: Any, b1: Any, b2: Any, eps: Any, **options: Any):
    inner = fa.adamax(lr, (b1, b2), eps)
    return fa.lookahead(inner, 2, slow_step_size, **options)


def averaged_sgd(lr: Any, beta: Any, weight_lr_power: Any, **options: Any):
    return fa.schedule_free(fa.sgd(lr), lr, beta, weight_lr_power, **options)


def averaged_scheduled(lr: Any, beta: Any, b2: Any, eps: Any):
    rate = partial(decaying, lr)
    return fa.schedule_free(fa.adamax(rate, (0.0, b2), eps), rate, beta)


@dataclass(frozen=True, eq=False, repr=False)
class Elsewhere(Transform):
    """Give a transform a function that takes gradients."""

    name: ClassVar[str] = "elsewhere"

    tx: fa.GradientTransformation

    def init(self, params: Any) -> Any:
        return self.tx.init(params)

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return self.tx.update(updates, state, params, grad_fn=sines)


def sines(params: Any) -> Any:
    return tree_map(lambda p: p.sin() if p.is_floating_point() or p.is_complex() else p, params)


def sharpness_aware(rho: Any, lr: Any, b1: Any, b2: Any, eps: Any, adaptive: bool = False):
    return Elsewhere(fa.sam(fa.adamax(lr, (b1, b2), eps), rho, adaptive)).pair()


def _only(*names: str) -> dict[str, float]:
    return {name: RATES[name] for name in names}


RECIPES = [
    Recipe("adamax", adamax, RATES),
    Recipe("adamax-maximize", partial(adamax, maximize=True), RATES),
    Recipe("adamax-float64-state", partial(adamax, state_dtype=torch.float64), RATES),
    Recipe("adamax-bounded", partial(adamax, derivative_floor=1e-3), RATES),
    Recipe("adamax-schedule", adamax_scheduled, RATES),
    Recipe("adamaxw", partial(adamax, make=fa.adamaxw), RATES),
    Recipe("adamaxw-schedule", partial(adamax_scheduled, make=fa.adamaxw), RATES),
    Recipe("scale_by_adamax", direction, _only("b1", "b2", "eps")),
    Recipe("add_decayed_weights", fa.add_decayed_weights, _only("weight_decay")),
    Recipe("scale", fa.scale, {"factor": -0.3}),
    Recipe("scale_by_learning_rate", fa.scale_by_learning_rate, _only("lr")),
    Recipe("scale_by_learning_rate-schedule", scheduled_rate, _only("lr")),
    Recipe("identity", fa.identity),
    Recipe("chain-coupled", coupled, RATES),
    Recipe("chain-decoupled", decoupled, RATES),
    Recipe("chain-nested", nested, _only("lr", "b1", "b2", "eps")),
    Recipe("set_to_zero", fa.set_to_zero),
    Recipe("masked", weights_only, RATES),
    Recipe("partition", by_label, RATES),
    Recipe("freeze", frozen, _only("lr")),
    Recipe("conditionally", sometimes, _only("lr", "b1", "b2", "eps")),
    Recipe("inject_hyperparams", injected, RATES),
    Recipe("inject_hyperparams-schedule", injected_schedule, RATES),
    Recipe("clip", fa.clip, {"max_value": 0.7}),
    Recipe("clip_by_global_norm", fa.clip_by_global_norm, {"max_norm": 1.5}),
    Recipe("clip_by_block_rms", fa.clip_by_block_rms, {"threshold": 0.4}),
    Recipe("adaptive_grad_clip", fa.adaptive_grad_clip, {"clipping": 0.3, "eps": 1e-2}),
    Recipe("centralize", fa.centralize),
    Recipe("add_noise", noise, {"eta": 0.1, "gamma": 0.55}),
    Recipe("zero_nans", fa.zero_nans),
    Recipe("apply_if_finite", guarded, RATES),
    Recipe("multi_steps", accumulated, RATES),
    Recipe(
        "multi_steps-schedule-sum-skip",
        partial(accumulated, every_k=two_at_a_time, use_grad_mean=False, skip=fa.skip_not_finite),
        RATES,
    ),
    Recipe("sgd", fa.sgd, _only("lr", "weight_decay")),
    Recipe("sgd-momentum", fa.sgd, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3}),
    Recipe("sgd-nesterov", partial(fa.sgd, nesterov=True), {"lr": 0.1, "momentum": 0.8}),
    Recipe("sgd-schedule", sgd_scheduled, {"lr": 0.1, "momentum": 0.8}),
    Recipe("adam", partial(adamax, make=fa.adam), RATES),
    Recipe("adam-amsgrad", partial(adamax, make=fa.adam, amsgrad=True), RATES),
    Recipe("adam-float64-state", partial(adamax, make=fa.adam, state_dtype=torch.float64), RATES),
    Recipe("adamw", partial(adamax, make=fa.adamw), RATES),
    Recipe("adamw-schedule", partial(adamax_scheduled, make=fa.adamw), RATES),
    Recipe("scale_by_adam", adam_direction, _only("b1", "b2", "eps")),
    Recipe("rmsprop", fa.rmsprop, RMS),
    Recipe("rmsprop-centered", partial(fa.rmsprop, centered=True), {**RMS, "momentum": 0.7}),
    Recipe("scale_by_rms", fa.scale_by_rms, {"alpha": 0.7, "eps": 1e-2}),
    Recipe("lion", lion, _only("lr", "b1", "b2", "weight_decay")),
    Recipe("scale_by_lion", lion_direction, _only("b1", "b2")),
    Recipe("nadamax", partial(adamax, make=fa.nadamax), RATES),
    Recipe("nadamax-schedule", partial(adamax_scheduled, make=fa.nadamax), RATES),
    Recipe("scale_by_nadamax", nadamax_direction, _only("b1", "b2", "eps")),
    Recipe("scale_by_amsmax", fa.scale_by_amsmax, {"beta": 0.8, "eps": 1e-2}),
    Recipe("scale_by_sign", fa.scale_by_sign),
    Recipe("cautious", cautious_momentum, {"lr": 0.1, "momentum": 0.8}),
    Recipe("cautious-amsmax", cautious_amsmax, {"lr": 0.1, "beta": 0.8, "eps": 1e-2}),
    Recipe("chain-sign-adamax", sign_adamax, _only("lr", "b1", "b2", "eps")),
    Recipe("adamax-warmup", warmed_up, _only("lr", "eps")),
    Recipe(
        "reduce_on_plateau",
        plateau,
        {"factor": 0.5, "rtol": 0.125, "atol": 100.0, "min_scale": 0.01},
    ),
    Recipe("ema", fa.ema, {"decay": 0.7}),
    Recipe("ema-biased", partial(fa.ema, debias=False), {"decay": 0.7}),
    Recipe("trace", fa.trace, {"decay": 0.7}),
    Recipe("trace-nesterov", partial(fa.trace, nesterov=True), {"decay": 0.7}),
    Recipe("params_ema", partial(averaging, fa.params_ema), {"lr": 0.1, "decay": 0.7}),
    Recipe(
        "params_ema-debiased",
        partial(averaging, fa.params_ema, debias=True, every=2),
        {"lr": 0.1, "decay": 0.7},
    ),
    Recipe("params_average", partial(averaging, fa.params_average), {"lr": 0.1, "decay": 0.7}),
    Recipe(
        "params_average-every",
        partial(averaging, fa.params_average, every=2, start=1),
        {"lr": 0.1, "decay": 0.7},
    ),
    Recipe("lookahead", looking_ahead, {"slow_step_size": 0.6, **_only("lr", "b1", "b2", "eps")}),
    Recipe(
        "lookahead-reset",
        partial(looking_ahead, reset_state=True),
        {"slow_step_size": 0.6, **_only("lr", "b1", "b2", "eps")},
    ),
    Recipe("schedule_free", averaged_sgd, {"lr": 0.1, "beta": 0.7, "weight_lr_power": 1.5}),
    Recipe(
        "schedule_free-float64-state",
        partial(averaged_sgd, state_dtype=torch.float64),
        {"lr": 0.1, "beta": 0.7, "weight_lr_power": 1.5},
    ),
    Recipe("schedule_free-schedule", averaged_scheduled, {"beta": 0.7, **_only("lr", "b2", "eps")}),
    Recipe("sam", sharpness_aware, {"rho": 0.3, **_only("lr", "b1", "b2", "eps")}),
    Recipe(
        "sam-adaptive",
        partial(sharpness_aware, adaptive=True),
        {"rho": 0.4, **_only("lr", "b1", "b2", "eps")},
    ),
]
