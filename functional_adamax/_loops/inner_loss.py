"""The loss of an inner loop: its value, its gradients, and the buffers that it writes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from .._core import checks, context, pytree
from .._core.pytree import EmptyState, Tree
from . import affine


@dataclass(frozen=True)
class Hinting:
    """A loss whose errors tell what ``batches`` were, if they look like one batch."""

    loss: Callable[..., Tensor]
    batches: str

    def __call__(self, *args: Any) -> Tensor:
        try:
            return self.loss(*args)
        except Exception as error:
            error.add_note(
                f"batches were {self.batches}, each of them taken for the batch of one step. For "
                "K steps on one batch, give itertools.repeat(batch, K)"
            )
            raise


def gradients(
    loss: Callable[..., Tensor], first_order: bool, params: Tree, buffers: Tree, batch: Any
) -> tuple[Tree, Tensor, Tree]:
    """Return gradients, value, and the buffers as the loss left its copies."""
    leaves, spec = pytree.flatten(params)
    where = [i for i, x in enumerate(leaves) if checks.trainable(x)]
    layout, written = pytree.split(buffers)

    def function(points: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        tree = pytree.unflatten(spec, pytree.placed(leaves, where, points))
        copies = [x.clone() for x in written]
        with affine.exact_norms():
            value = loss(tree, *given_buffers(layout.build(copies)), batch)
        return _scalar(value), copies

    points = [leaves[i] for i in where]
    if _by_transform():
        found, (value, copies) = grad_and_value(function, has_aux=True)(points)
    else:
        found, value, copies = _autograd(function, points, keep=not first_order)
    if first_order:
        found = [x.detach() for x in found]
    grads = pytree.unflatten(spec, pytree.placed([None] * len(leaves), where, found))
    return grads, value, layout.build(x.detach() for x in copies)


def _by_transform() -> bool:
    """Whether ``torch.func.grad`` differentiates, as where autograd is off; see that it can."""
    if context.transforming():  # first: a compiler does not follow what is asked of the mode
        return True
    inference = torch.is_inference_mode_enabled()
    if inference and not context.differentiates_in_inference_mode():
        raise NotImplementedError(
            f"torch {torch.__version__} computes no gradients in inference mode: take "
            "torch.no_grad(), or a newer version of torch"
        )
    return inference


def given_buffers(buffers: Tree) -> tuple[Tree, ...]:
    """The arguments that the loss takes between parameters and batch."""
    return () if isinstance(buffers, EmptyState) else (buffers,)


def copied(tree: Tree) -> Tree:
    """Return ``tree`` with copies of its tensors."""
    return pytree.map_tensors(torch.clone, tree)


def _autograd(
    function: Callable[[list[Tensor]], tuple[Tensor, list[Tensor]]],
    points: list[Tensor],
    keep: bool,
) -> tuple[Any, Tensor, list[Tensor]]:
    """``grad_and_value`` without the machinery of transforms, for small loops."""
    recording = torch.is_grad_enabled()
    with nullcontext() if recording else torch.enable_grad():
        points = [x if recording and x.requires_grad else _followed(x) for x in points]
        value, buffers = function(points)
        if not (points and value.requires_grad):  # the loss uses no parameter
            return [torch.zeros_like(x) for x in points], value, buffers
        found = torch.autograd.grad(
            value,
            points,
            retain_graph=recording,
            create_graph=recording and keep,
            materialize_grads=True,
        )
    if not recording:
        return found, value.detach(), buffers
    return found, value, buffers


def _followed(x: Tensor) -> Tensor:
    """``x`` for autograd to follow, but not to where it is from; a tangent, if any, stays."""
    with torch.no_grad():
        x = x.view_as(x)
    return x.requires_grad_()


def _scalar(value: Any) -> Tensor:
    if not (isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()):
        raise ValueError(f"loss must return a real scalar tensor, got {checks.describe(value)}")
    return value
