"""What ``torch.optim.Adamax`` does that the functional Adamax does not.

Where it keeps ``step``, what it makes of hyperparameters that are tensors, and when it uses its
foreach form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from .._core import pytree
from .._core.plans import Plan
from .._core.pytree import Tree
from .._core.transform import GradientTransformation, Transform
from .._execution.native.kernel import Group
from .._methods import adamax
from ._groups import check_group, uses_foreach, warn_if_out_of_range
from ._loading import scalar_dtype
from ._shown import Said
from ._unit import Owner, Unit


@dataclass(frozen=True, eq=False, repr=False)
class TorchAdamax(adamax.Adamax):
    """Adamax with the options of a parameter group; ``step`` is kept as torch keeps it."""

    name: ClassVar[str] = "adamax"

    foreach: bool | None = None
    differentiable: bool = False
    capturable: bool = False

    in_turn: ClassVar[bool] = True

    def init(self, params: Tree) -> Any:
        leaves, spec = pytree.flatten(params)
        return self.fresh(spec, leaves)

    def start(self, p: Tensor) -> list[Tensor]:
        device = p.device if self.capturable else "cpu"
        _, *moments = super().start(p)
        return [torch.zeros((), dtype=scalar_dtype(), device=device), *moments]

    def rates(self) -> dict[str, Any]:
        rates = super().rates()
        given = {**rates, "lr": rate(self.lr), "weight_decay": _decay(self.weight_decay)}
        return {name: x if x is None else _scalar(x) for name, x in given.items()}


class AdamaxOwner(Owner, Protocol):
    """An optimizer that remembers which of its groups it warned of."""

    _warned: set[int]


class AdamaxUnit(Unit):
    """A group that is stepped in torch's conventions."""

    owner: AdamaxOwner

    def offered(self, said: Said) -> list[Group] | None:
        del said
        (group,) = self.groups
        if group["foreach"] or group["differentiable"] or group["capturable"]:
            return None
        b1, b2 = group["betas"]
        rates = (rate(group["lr"]), b1, b2, group["eps"], _decay(group["weight_decay"]))
        return [Group(group["params"], *rates, group["maximize"], False)]

    def _whole(self, said: Said) -> Transform | None:
        del said
        (group,) = self.groups
        if group["foreach"] or group["differentiable"]:
            return None
        form = {"lr": rate(group["lr"]), "foreach": False}
        return TorchAdamax(**self.owner._values(group) | form)

    def _plan(
        self, tx: GradientTransformation, trees: tuple[Tree, Any, Tree], extra: dict[str, Any]
    ) -> Plan:
        del tx  # made anew, of the form that torch would take
        (group,), owner = self.groups, self.owner
        if not torch.compiler.is_compiling():
            check_group(group, owner.state, owner.defaults["differentiable"])
            if self.first not in owner._warned and warn_if_out_of_range(group, self.first):
                owner._warned.add(self.first)
        used = [p for p in pytree.tensors(trees[2]) if p.grad is not None]
        lr, foreach = rate(group["lr"]), uses_foreach(group, used)
        is_read = isinstance(lr, Tensor) and not torch.compiler.is_compiling()
        if is_read and (lr.is_cpu if group["capturable"] else foreach):
            lr = lr.item()  # as torch's foreach form does; a graph cannot wait for the device
        fastest = group["foreach"] is None and any(p.is_cuda for p in used)
        form = {"lr": lr, "foreach": None if fastest else foreach}
        return super()._plan(TorchAdamax(**owner._values(group) | form).pair(), trees, extra)


def _decay(decay: Any) -> Any:
    """The weight decay, of a tensor its number, which torch takes for ``alpha``."""
    if isinstance(decay, Tensor) and not (torch.compiler.is_compiling() or decay.requires_grad):
        return decay.item()
    return decay


def rate(lr: Any) -> Any:
    """A learning rate; NumPy's float32 divides as such, like a tensor of it."""
    if isinstance(lr, (int, float, Tensor)) or not hasattr(lr, "dtype"):
        return lr
    rate = torch.as_tensor(lr)
    return rate if rate.is_floating_point() else lr


def _scalar(value: Any) -> Any:
    """A tensor of one element as one of shape (); a number as one of Python."""
    if isinstance(value, Tensor):
        return value.reshape(())
    return value if isinstance(value, (int, float)) else float(value)
