"""``torch.optim.Adamax`` on top of the functional step.

The class owns what torch's optimizers own: the mutation of the parameters, the groups, the
hooks and the checkpoint format. The arithmetic is that of ``functional_adamax.adamax``. A step
collects the tensors of every group, checks and prepares all groups, and only then writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, _to_scalar

from .. import _adamax, _context, _execute, _hyper, _kernel
from .._rule import Leaf
from ._groups import check_group, uses_foreach, warn_about_group
from ._loading import restore, scalar_dtype
from ._shell import Run, Shell


class Adamax(Shell):
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
        foreach: use torch's foreach kernels; None decides as torch does, for plain tensors on
            CUDA. Default: None.
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
        TypeError: ``state_dtype`` is no real floating dtype.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = Adamax([w], lr=0.1)
        >>> (w**2).sum().backward()
        >>> optimizer.step()
        >>> w.data
        tensor([0.9000, 1.9000])

    Source: Kingma & Ba 2015, arXiv 1412.6980, Algorithm 2, as in ``torch.optim.Adamax``.
    """

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
        _hyper.check_state_dtype(state_dtype)
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
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as ``torch.optim.Optimizer.add_param_group`` does."""
        if isinstance(param_group, dict):
            _hyper.check_state_dtype(param_group.get("state_dtype"))
        super().add_param_group(param_group)
        warn_about_group(self.param_groups[-1])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class or of ``torch.optim.Adamax``, of any version.

        As in torch, except that the tensors of ``state_dict`` are copied, never adopted, and
        that moments keep the ``state_dtype`` of their group. A checkpoint without the key
        ``state_dtype`` takes the value the group has.
        """
        super().load_state_dict(state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        for group, old in zip(self.param_groups, before, strict=False):
            if "state_dtype" in old:
                group.setdefault("state_dtype", old["state_dtype"])
        for group in self.param_groups:
            group.setdefault("foreach", None)
            group.setdefault("maximize", False)
            group.setdefault("differentiable", False)
            group.setdefault("capturable", False)
        restore(self.state, self.param_groups)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step. Nothing is written unless all groups pass their checks.

        Args:
            closure: reevaluates the model, under grad mode, and returns the loss.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            RuntimeError: a sparse gradient, a gradient of another dtype than its parameter
                without ``state_dtype``, or ``differentiable=True`` on leaves that require grad.
            AssertionError: ``foreach`` with ``differentiable``, or ``capturable`` on a device
                that has no graphs; torch's words.
        """
        return self._run(closure, {})

    def _prepare(self, closure: Any, loss: Any, extra: dict[str, Any]) -> list[Run]:
        del closure, loss, extra
        ready: list[list[Leaf] | None] = [None] * len(self.param_groups)
        if not torch.compiler.is_compiling():
            ready = [self._ready(group) for group in self.param_groups]
            for group, leaves in zip(self.param_groups, ready, strict=True):
                if leaves is None:
                    check_group(group, self.state, self.defaults["differentiable"])
        return [
            self._prepare_group(group)
            if leaves is None
            else partial(_execute.write, leaves, group["maximize"], False, ready=True)
            for group, leaves in zip(self.param_groups, ready, strict=True)
        ]

    def _ready(self, group: dict[str, Any]) -> list[Leaf] | None:
        """Return the leaves of a group that the kernel can step as it is, else None.

        Of such leaves there is nothing left to check.
        """
        if group["foreach"] or group["capturable"] or group["differentiable"] or _context.traced():
            return None
        rates = (group["lr"], *group["betas"], group["eps"], group["weight_decay"])
        leaves = []
        for p in group["params"]:
            grad = p.grad
            if grad is None:
                continue
            entry = self.state.get(p)
            if not entry or p.is_inference() or entry["exp_avg"].is_inference():
                return None
            leaves.append(Leaf(p, grad, entry["exp_avg"], entry["exp_inf"], entry["step"], *rates))
        return _kernel.ready(leaves)

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_infs: list[Tensor],
        steps: list[Tensor],
    ) -> None:
        """Fill the lists with the tensors of ``group``, making state at a first gradient.

        ``torch.compile`` runs this method eagerly, by this name, on empty lists.
        """
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if len(state) == 0:
                _, exp_avg, exp_inf = _adamax.init_leaf(p, group.get("state_dtype"))
                device = p.device if group["capturable"] else None
                state["step"] = torch.tensor(0.0, dtype=scalar_dtype(), device=device)
                state["exp_avg"] = exp_avg
                state["exp_inf"] = exp_inf
            params.append(p)
            grads.append(p.grad)
            exp_avgs.append(state["exp_avg"])
            exp_infs.append(state["exp_inf"])
            steps.append(state["step"])

    def _prepare_group(self, group: dict[str, Any]) -> Run:
        """Return the step of ``group``, not yet run, or computed and not yet stored."""
        beta1, beta2 = group["betas"]
        eps, weight_decay, maximize = group["eps"], group["weight_decay"], group["maximize"]
        params: list[Tensor] = []
        grads: list[Tensor] = []
        exp_avgs: list[Tensor] = []
        exp_infs: list[Tensor] = []
        steps: list[Tensor] = []
        self._init_group(group, params, grads, exp_avgs, exp_infs, steps)
        foreach = uses_foreach(group, params)
        lr = _to_scalar(group["lr"])
        if foreach and isinstance(lr, Tensor) and not torch.compiler.is_compiling():
            lr = lr.item()  # as torch's foreach form does
        leaves = [
            Leaf(*tensors, lr, beta1, beta2, eps, weight_decay)
            for tensors in zip(params, grads, exp_avgs, exp_infs, steps, strict=True)
        ]
        if not _context.recorded(x for leaf in leaves for x in leaf if isinstance(x, Tensor)):
            return partial(_execute.write, leaves, maximize, False, foreach)
        results = _execute.compute(leaves, None, maximize, decoupled=False, add=True)
        return partial(self._store, leaves, results, group["differentiable"])

    def _store(self, leaves: list[Leaf], results: Sequence[_execute.Row], replace: bool) -> None:
        """Store the results of pure steps.

        State that autograd recorded is to be replaced; written over, it would break the graph.
        """
        for leaf, (p, step, exp_avg, exp_inf) in zip(leaves, results, strict=True):
            leaf.p.copy_(p)
            new = {"step": step, "exp_avg": exp_avg, "exp_inf": exp_inf}
            for name, value in new.items():
                if replace:
                    self.state[leaf.p][name] = value
                else:
                    self.state[leaf.p][name].copy_(value)
