"""Inner loops written with modules: a functional view of one, and an optimizer that steps it.

For those who know ``higher`` or torchopt's meta-optimizers. The module and its optimizer are not
touched; what the loop learns is in the view, and gradients of it reach the module's parameters.
For loops without code between the steps, ``functional_adamax.unroll`` is shorter and can save
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.optimizer import Optimizer

from .. import _step
from .._core import checks, context, pytree
from .._core.links import checked_link
from .._core.transform import GradientTransformation
from .._methods import adamax
from ._convert import hyperparameters_from_torch, state_from_torch


class FunctionalModule:
    """A module called with parameters and buffers of its own.

    ``params`` and ``buffers`` are dicts by name and may be assigned. Calls that write buffers,
    as batch normalization does, write these. A parameter that the module has in several places
    has one name, the first, as in ``named_parameters``.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        params, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        lazy = [name for name, x in {**params, **buffers}.items() if nn.parameter.is_lazy(x)]
        if lazy:
            raise ValueError(
                f"the module must know its shapes, but {lazy[0]} is not initialized: run the "
                "module once before, outside of the loop"
            )
        self.params: dict[str, Tensor] = {k: p.view_as(p) for k, p in params.items()}
        self.buffers: dict[str, Tensor] = {k: b.clone() for k, b in buffers.items()}
        self._places = _places(module, {**params, **buffers})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = {**self.params, **self.buffers}
        tensors = {place: given[name] for place, name in self._places.items() if name in given}
        # torch would find what is tied by name, and swap a place that has two names twice.
        result = functional_call(self.module, tensors, args, kwargs, tie_weights=False)
        for place, tensor in tensors.items():
            name = self._places[place]
            if name in self.buffers and tensor is not given[name]:  # the module replaced it
                self.buffers[name] = tensor
        return result


def _places(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Where in the module each of ``tensors`` is: the name of a place to that of its tensor.

    A module that is a child of several is one place for each of its own tensors.
    """
    names = {x: name for name, x in tensors.items()}
    found: dict[str, str] = {}
    for prefix, child in module.named_modules():
        for members in (child.named_parameters, child.named_buffers):
            own = members(prefix, recurse=False, remove_duplicate=False)
            found.update((place, names[x]) for place, x in own)
    return found


@dataclass(eq=False, repr=False)
class InnerOptimizer:
    """Steps a ``FunctionalModule``, differentiably. ``tx`` and ``state`` may be assigned."""

    module: FunctionalModule
    tx: GradientTransformation
    state: Any
    first_order: bool = False

    def step(self, loss: Tensor, **extra: Any) -> None:
        """Take one step down ``loss``, a scalar computed with the module.

        A parameter the loss does not use is left alone. The graph is kept, so that the step can
        be differentiated; with ``first_order`` its gradients are constants. The transform is given
        ``extra``, and the loss as ``value``.

        Raises:
            NotImplementedError: under a transform of ``torch.func``; ``unroll`` runs there.
        """
        _reject_transforms()
        params = self.module.params
        trained = {name: p for name, p in params.items() if p.requires_grad}
        found = torch.autograd.grad(
            loss,
            list(trained.values()),
            retain_graph=True,
            create_graph=not self.first_order,
            allow_unused=True,
        )
        grads = {**dict.fromkeys(params), **dict(zip(trained, found, strict=True))}
        extra = {"value": loss, **extra}
        self.module.params, self.state = _step.plan(self.tx, grads, self.state, params, **extra)()


def _reject_transforms() -> None:
    """Refuse to run where gradients by ``torch.autograd`` do not exist."""
    if context.transforming():
        raise NotImplementedError(
            "inner_loop differentiates by torch.autograd, which does not see through torch.func: "
            "under grad, vmap and other transforms take functional_adamax.unroll"
        )


@contextmanager
def inner_loop(
    module: nn.Module,
    optimizer: GradientTransformation | Optimizer,
    *,
    first_order: bool = False,
    **hyperparameters: Any,
) -> Iterator[tuple[FunctionalModule, InnerOptimizer]]:
    """Give a functional view of ``module`` and a differentiable optimizer for it.

    Args:
        module: its parameters are where the loop starts, and what gradients reach. Neither they
            nor its buffers are written.
        optimizer: a transform; or a ``compat.Adamax`` or ``torch.optim.Adamax`` of the module's
            parameters, whose hyperparameters and state the loop starts from.
        first_order: take the inner gradients as constants. Default: False.
        **hyperparameters: with an optimizer, ``lr``, ``betas``, ``eps``, ``weight_decay`` and
            further arguments of ``functional_adamax.adamax`` in place of its own, for example
            tensors that are to be learned, or trees by parameter name.

    Yields:
        ``(functional, inner)``: call ``functional(x)``, then ``inner.step(loss)``.

    Raises:
        TypeError: ``optimizer`` is neither, nor another Adamax; hyperparameters beside a
            transform, which has its own, or unknown ones.
        ValueError: the optimizer's parameters are not those of the module, or a parameter is not
            initialized.
        NotImplementedError: under a transform of ``torch.func``; ``unroll`` runs there.

    Example:
        >>> module, lr = torch.nn.Linear(2, 1), torch.tensor(0.1, requires_grad=True)
        >>> x, optimizer = torch.randn(4, 2), Adamax(module.parameters())
        >>> with inner_loop(module, optimizer, lr=lr) as (functional, inner):
        ...     for _ in range(3):
        ...         inner.step(functional(x).square().mean())
        ...     functional(x).square().mean().backward()
        >>> lr.grad.shape, module.weight.grad.shape
        (torch.Size([]), torch.Size([1, 2]))
    """
    _reject_transforms()
    with torch.enable_grad():
        functional = FunctionalModule(module)
    if isinstance(optimizer, Optimizer):
        names = {p: name for name, p in module.named_parameters()}
        given = [p for group in optimizer.param_groups for p in group["params"]]
        if set(given) != set(names):
            raise ValueError(
                "the optimizer must have the parameters of the module, all of them and no others"
            )
        order = [names[p] for p in given]
        own = hyperparameters_from_torch(optimizer, functional.params, order=order)
        tx = adamax.adamax(**{**own, **hyperparameters})
        dtype = own["state_dtype"]
        state = state_from_torch(optimizer, functional.params, order=order, state_dtype=dtype)
    elif hyperparameters:
        raise TypeError(
            f"a transform has its hyperparameters, got {sorted(hyperparameters)} beside it: "
            "make the transform with them"
        )
    else:
        tx = checked_link("optimizer", optimizer)
        state = tx.init(functional.params)
    with torch.enable_grad():
        yield functional, InnerOptimizer(functional, tx, state, first_order)


def hyperparameters_to_torch(
    hyperparameters: dict[str, Any], module: nn.Module, optimizer: Optimizer
) -> None:
    """Write hyperparameters, learned ones for example, into the groups of ``optimizer``.

    Args:
        hyperparameters: ``lr``, ``betas``, ``eps``, ``weight_decay``, each a number, a 1-element
            tensor, or a tree by parameter name; some of them or all.
        module: the module whose parameters the optimizer has.
        optimizer: its groups receive numbers; an ``lr`` that is a tensor is replaced by one.

    Raises:
        ValueError: the parameters of one group have different values: give each its own group;
            or a tensor of several elements.
        TypeError: an unknown hyperparameter.

    Example:
        >>> module = torch.nn.Linear(2, 1)
        >>> optimizer = Adamax(module.parameters())
        >>> hyperparameters_to_torch({"lr": torch.tensor(0.5)}, module, optimizer)
        >>> optimizer.param_groups[0]["lr"]
        0.5
    """
    unknown = set(hyperparameters) - {"lr", "betas", "eps", "weight_decay"}
    if unknown:
        raise TypeError(f"unknown hyperparameters {sorted(unknown)}")
    params = dict(module.named_parameters())
    position = {params[name]: i for i, name in enumerate(pytree.names(pytree.flatten(params)[1]))}

    def of_group(name: str, value: Any, group: dict[str, Any]) -> float:
        values = [_number(name, x) for x in pytree.spread(value, params, name)]
        found = {values[position[p]] for p in group["params"]}
        if len(found) != 1:
            raise ValueError(
                f"{name} differs among the parameters of one group, {sorted(found)[:3]}: give each "
                "of them a group of its own"
            )
        return found.pop()

    changes: list[tuple[dict[str, Any], str, Any]] = []
    for group in optimizer.param_groups:
        for name, value in hyperparameters.items():
            if name == "betas":
                pair = tuple(of_group(f"betas[{i}]", value[i], group) for i in range(2))
                changes.append((group, name, pair))
            else:
                changes.append((group, name, of_group(name, value, group)))
    for group, name, new in changes:
        old = group[name]  # a tensor may be that of several groups, so a new one takes its place
        group[name] = torch.full_like(old, new) if isinstance(old, Tensor) else new


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} must have one element, got {checks.describe(value)}")
    return float(value.detach() if isinstance(value, Tensor) else value)
