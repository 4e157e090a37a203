"""``torch.optim.Adamax`` on top of the functional step.

It is the ``Optimizer`` of a transform that keeps torch's conventions, see ``_conventions.py``; here
are its signature, the words in which it raises, and its checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core import hyper
from .._core.numerics import moment_dtype
from .._core.spelling import explains_misfits
from .._core.transform import GradientTransformation
from .._methods.adamax import AdamaxState
from .._schedules.scheduled import is_schedule
from ._conventions import AdamaxUnit, TorchAdamax, rate
from ._groups import warn_about_group
from ._loading import Place
from ._optimizer import Optimizer

_ADDED = {"foreach": None, "maximize": False, "differentiable": False, "capturable": False}
"""What groups of older checkpoints of torch lack."""


def _factory(**options: Any) -> GradientTransformation:
    return TorchAdamax(**options).pair()


class Adamax(Optimizer):
    """Drop-in for ``torch.optim.Adamax``: same signature, same bits, same checkpoints.

        g   <- -g                                       if maximize
        g   <- g + weight_decay * p
        m_t  = b1 m_{t-1} + (1 - b1) g
        u_t  = max(b2 u_{t-1}, |g| + eps)
        p    = p - lr / (1 - b1^t) * m_t / u_t

    Args:
        params: an iterable of parameters, of (name, parameter) pairs, or of dicts that define
            parameter groups.
        lr: learning rate, a number or a tensor with one element, at least 0. Default: 2e-3.
        betas: decay rates of the first moment and of the infinity norm, each in [0, 1).
            Default: (0.9, 0.999).
        eps: added to |g| inside the maximum, at least 0. Default: 1e-8.
        weight_decay: L2 penalty, at least 0. Default: 0.
        foreach: use torch's foreach kernels, or with False none; None is the fastest way, on
            CUDA Triton's kernel where it runs and torch's foreach kernels elsewhere. Default: None.
        maximize: ascend instead of descend. Default: False.
        differentiable: let autograd record the step. Parameters must not be leaves that require
            grad; for those, differentiate through ``functional_adamax.adamax``. Default: False.
        capturable: keep ``step`` on the device, so that the step can be captured in a graph; the
            devices are torch's. Default: False.
        state_dtype: dtype of the moments and of the arithmetic, torch.float32 for float16 and
            bfloat16 parameters; None is the dtype of the parameter, with torch's bits. It is a
            key of the parameter groups, and of checkpoints, where it is given. Default: None.

    Raises:
        ValueError: a hyperparameter out of its range, in torch's words.
        TypeError: ``state_dtype`` is no real floating dtype, or ``lr`` is a schedule.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = Adamax([w], lr=0.1)
        >>> (w**2).sum().backward()
        >>> optimizer.step()
        >>> w.data
        tensor([0.9000, 1.9000])

    Source: Kingma & Ba 2015, arXiv 1412.6980, Algorithm 2, as in ``torch.optim.Adamax``.
    """

    _unit = AdamaxUnit

    @explains_misfits
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        _reject_schedule(lr)
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not eps >= 0.0:
            raise ValueError(f"Invalid epsilon value: {eps}")
        for i in range(2):
            if not 0.0 <= betas[i] < 1.0:
                raise ValueError(f"Invalid beta parameter at index {i}: {betas[i]}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        hyper.check_dtype("state_dtype", state_dtype)
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        if state_dtype is not None:  # without it, groups and checkpoints are torch's to the key
            defaults["state_dtype"] = state_dtype
        self._warned: set[int] = set()  # of groups with numbers out of range
        super().__init__(params, _factory, **defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as ``torch.optim.Optimizer.add_param_group`` does."""
        if isinstance(param_group, dict):
            _reject_schedule(param_group.get("lr"))
            hyper.check_dtype("state_dtype", param_group.get("state_dtype"))
        super().add_param_group(param_group)
        warn_about_group(self.param_groups[-1])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class or of ``torch.optim.Adamax``, of any version.

        As in torch, except that the tensors of ``state_dict`` are copied, never adopted, that
        moments keep the ``state_dtype`` of their group, and that parameters are paired by name
        where both sides have names. A checkpoint without the key ``state_dtype`` takes the value
        the group has.

        Raises:
            ValueError: groups, names or entries do not fit. Then nothing has changed.
        """
        super().load_state_dict(state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", [])
        for group, old in zip(state["param_groups"], before, strict=False):
            if "state_dtype" in old:
                group.setdefault("state_dtype", old["state_dtype"])
        self._warned = set()
        super().__setstate__(state)

    def _complete_groups(self) -> None:
        for i, group in enumerate(self.param_groups):
            for name, value in _ADDED.items():
                group.setdefault(name, value)
            missing = [name for name in ("lr", "betas", "eps", "weight_decay") if name not in group]
            if missing:
                raise ValueError(
                    f"param_groups[{i}] of the state dict must have the hyperparameters of Adamax, "
                    f"missing {missing}: load the state dict of an Adamax"
                )

    @staticmethod
    def _place(x: Tensor, name: Any, p: Tensor, group: dict[str, Any]) -> Place:
        """As torch casts, but moments stay in the ``state_dtype`` of their group."""
        if name == "step":
            return (p.device, torch.float32) if group["capturable"] else (x.device, x.dtype)
        if name in ("exp_avg", "exp_inf") and group.get("state_dtype") is not None:
            return p.device, moment_dtype(p, group["state_dtype"])
        return p.device, p.dtype if p.is_floating_point() else x.dtype

    def step(  # type: ignore[override]  # as in torch, no arguments for the transform
        self, closure: Callable[[], Any] | None = None
    ) -> Any:
        """Take one step. Nothing is written unless all groups pass their checks.

        Args:
            closure: reevaluates the model, under grad mode, and returns the loss.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            RuntimeError: a sparse gradient, a gradient of another dtype than its parameter
                without ``state_dtype``, a gradient or a moment of another shape, memory that was
                expanded, a learning rate or decay that the dtype cannot hold, or
                ``differentiable=True`` on leaves that require grad.
            NotImplementedError: a parameter that is neither floating nor complex.
            AssertionError: ``foreach`` with ``differentiable``, or ``capturable`` on a device
                that has no graphs; torch's words.
        """
        return self._run(closure, {})

    @staticmethod
    def plain(value: Any) -> Any:
        """Return a hyperparameter with Python's numbers for those of NumPy that have their bits."""
        return value if isinstance(rate(value), Tensor) else hyper.plain(value)

    def _values(self, group: dict[str, Any]) -> dict[str, Any]:
        values = super()._values(group)
        if "state_dtype" in group:  # it may be, where other groups have none
            values["state_dtype"] = group["state_dtype"]
        return values

    def _make_state(self) -> None:
        """Make the state of all parameters with a first gradient, as torch lays it out.

        Once for all groups: what a compiler traces after it finds the state there, and tensors that
        stay where they are.
        """
        for group in self.param_groups:
            transform = TorchAdamax(**self._values(group))
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state.get(p):
                    entry = zip(AdamaxState._fields, transform.start(p), strict=True)
                    self.state[p] = dict(entry)
                missing = [x for x in AdamaxState._fields if x not in self.state[p]]
                if missing:  # loaded from the checkpoint of another optimizer, perhaps
                    raise KeyError(missing[0])


def _reject_schedule(lr: Any) -> None:
    if is_schedule(lr):
        raise TypeError(
            f"lr must be a number or a tensor, as in torch, got {lr!r}: "
            "compat.Optimizer(params, functional_adamax.adamax, lr=...) takes schedules"
        )
