"""Inner loops: K steps of any transform over a loss, as one differentiable function.

The loop is plain: gradient of the loss, step, next batch. What makes it differentiable is that
every part of it is pure. The options decide how much of it autograd keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial, reduce
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _step
from .._core import checks, context, pytree
from .._core.links import checked_link
from .._core.node import public_node
from .._core.pytree import EmptyState, Tree
from .._core.transform import GradientTransformation
from . import inner_loss, remat


@public_node
class Unrolled(NamedTuple):
    """What an inner loop returns."""

    params: Tree  # after the last step, like the params given
    state: Any  # of the transform, after the last step
    values: Tensor  # (K,): the loss before each step
    buffers: Tree  # after the last step, like the buffers given; EmptyState() without


def detach(tree: Tree) -> Tree:
    """Return ``tree`` with every tensor detached: the values go on, the graph ends.

    Args:
        tree: any tree; what is no tensor stays as it is. Inputs are not changed.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> detach({"a": x * 2})["a"].requires_grad
        False
    """
    return pytree.map_tensors(torch.detach, tree)


def unroll(
    loss: Callable[..., Tensor],
    tx: GradientTransformation,
    params: Tree,
    batches: Iterable[Any],
    *,
    state: Any = None,
    buffers: Tree = None,
    checkpoint: bool | int = False,
    truncate: int | None = None,
    detach_first: int = 0,
    first_order: bool = False,
) -> Unrolled:
    """Take one step of ``tx`` on ``loss`` for each batch, differentiably.

        values[k] = loss(params, batches[k])
        params, state = step(tx, d values[k] / d params, state, params)

    The result can be differentiated by the initial ``params`` and ``state``, by the batches, by
    hyperparameters that are tensors, and by whatever else ``loss`` uses; in reverse and forward
    mode, repeatedly, and under ``vmap``, for example over tasks. Nothing given is written.

    The transform is also given ``value``, the loss, as ``reduce_on_plateau`` needs it, and
    ``grad_fn``, which returns the gradients at other parameters, as ``sam`` needs it.

    Args:
        loss: ``loss(params, batch)``, or ``loss(params, buffers, batch)`` where ``buffers`` are
            given; returns a scalar tensor. For a module, call it through
            ``torch.func.functional_call``.
        tx: any transform.
        params: a tree of tensors. A leaf that is None or not floating has no gradient. A leaf
            that the loss does not use has the gradient zero, as in ``torch.func.grad``.
        batches: one batch for each step: trees of tensors, or whatever ``loss`` takes;
            ``itertools.repeat(batch, K)`` for K steps on one. Without any, no step is taken.
        state: the state to go on from. Default: ``tx.init(params)``.
        buffers: a tree of tensors that ``loss`` may write in place, such as the buffers of a
            module. It is given copies, which come out again; they are data, through which
            nothing is differentiated. Default: None, as is the ``EmptyState()`` of a loop
            without buffers.
        checkpoint: do not keep the tensors of each step, but recompute them when
            differentiating: a number is the steps in a segment, True takes about sqrt(K).
            First gradients have the bits of the plain loop, except that sums over a batch
            dimension, or with uses of a tensor outside of the loop, may be taken in another
            order. Forward-mode differentiation runs the plain loop. Default: False.
        truncate: detach parameters and state every so many steps, so that gradients go back that
            far at most. Default: None, never.
        detach_first: run so many steps without recording them; gradients go through the rest.
            Default: 0.
        first_order: take the inner gradients as constants. Gradients still reach the initial
            ``params``, by the sums ``p + update`` (and the weight decay). Default: False.

    Returns:
        ``Unrolled(params, state, values, buffers)``.

    Raises:
        ValueError: a loss that is no scalar, or an option out of its range.
        TypeError: ``tx`` is no transform, or ``batches`` cannot be iterated or is a mapping.
        RuntimeError: with ``checkpoint``, a later step uses a tensor that may be differentiated
            and that is neither in its batch nor used by the first step.

    Example:
        >>> def loss(p, batch):
        ...     return (p**2).sum()
        >>> p0 = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> p3 = unroll(loss, adamax(0.1), p0, range(3)).params
        >>> torch.autograd.grad(loss(p3, None), p0)
        (tensor([1.4087, 3.4018]),)
    """
    _check_options(checkpoint, truncate, detach_first)
    loss, batches = _hinting(loss, batches), batches_of(batches)
    tx = checked_link("tx", tx)
    state = tx.init(params) if state is None else state
    buffers = EmptyState() if buffers is None else buffers
    run = context.uncompiled(_run) if checkpoint else _run
    take = partial(_take, loss, tx, first_order)
    return run(take, params, state, buffers, batches, checkpoint, truncate, detach_first)


def _run(
    take: remat.Step,
    params: Tree,
    state: Any,
    buffers: Tree,
    batches: list[Any],
    checkpoint: bool | int,
    truncate: int | None,
    detach_first: int,
) -> Unrolled:
    recording = torch.is_grad_enabled()
    if recording and not context.transforming():
        # A gradient by one leaf must not pass through another, nor through what the loss uses.
        params = pytree.tree_map(lambda x: x.view_as(x) if checks.trainable(x) else x, params)
    carry, buffers = (params, state), detach(inner_loss.copied(buffers))
    carry = detach(carry) if detach_first else carry
    values: list[Tensor] = []
    for start, stop in _stretches(len(batches), truncate, detach_first):
        follow = start >= detach_first
        carry = detach(carry) if start else carry
        with torch.set_grad_enabled(recording and follow):
            part = batches[start:stop]
            if checkpoint and torch.is_grad_enabled() and not context.forward_mode():
                length = math.isqrt(len(part)) if checkpoint is True else checkpoint
                carry, buffers, value = remat.loop(take, carry, buffers, part, length)
                values.extend(value.unbind())
            else:
                for batch in part:
                    after = take(carry, buffers, batch)
                    carry, buffers, value = after if follow else detach(after)  # from tangents
                    values.append(value)
    return Unrolled(*carry, torch.stack(values) if values else _no_values(params), buffers)


def _no_values(params: Tree) -> Tensor:
    """The losses of no steps, of the dtype and the device of the parameters."""
    kinds = [x.real.dtype for x in pytree.tensors(params) if checks.trainable(x)]
    device = next((x.device for x in pytree.tensors(params)), None)
    dtype = reduce(torch.promote_types, kinds) if kinds else None
    return torch.zeros(0, dtype=dtype, device=device)


def _hinting(loss: Callable[..., Tensor], batches: Any) -> Callable[..., Tensor]:
    """``loss``, whose errors tell what ``batches`` were if they look like one batch."""
    if torch.compiler.is_compiling():
        return loss
    if isinstance(batches, Tensor):
        return inner_loss.Hinting(loss, f"the rows of {checks.describe(batches)}")
    if isinstance(batches, (tuple, list)) and all(isinstance(x, Tensor) for x in batches):
        return inner_loss.Hinting(loss, f"{len(batches)} tensors")
    return loss


def batches_of(given: Iterable[Any]) -> list[Any]:
    """Return the batches as a list."""
    if isinstance(given, Mapping):
        raise TypeError(
            "batches must be iterable, with a batch for each step, got a "
            f"{type(given).__name__}, of which the keys would be the batches: for K steps on one "
            "batch, give itertools.repeat(batch, K)"
        )
    try:
        iterator = iter(given)
    except TypeError:
        raise TypeError(
            f"batches must be iterable, with a batch for each step, got {given!r}"
        ) from None
    return list(iterator)


def _check_options(checkpoint: Any, truncate: Any, detach_first: Any) -> None:
    if not isinstance(checkpoint, int) or checkpoint < 0:
        raise ValueError(f"checkpoint must be True, False or a number of steps, got {checkpoint!r}")
    if truncate is not None and (type(truncate) is not int or truncate < 1):
        raise ValueError(f"truncate must be None or a number of steps >= 1, got {truncate!r}")
    if type(detach_first) is not int or detach_first < 0:
        raise ValueError(f"detach_first must be a number of steps >= 0, got {detach_first!r}")


def _stretches(count: int, truncate: int | None, detach_first: int) -> list[tuple[int, int]]:
    """The ranges of steps between which the graph is cut."""
    cuts = {0, min(detach_first, count), count}
    if truncate is not None:
        cuts.update(range(detach_first, count, truncate))
    ordered = sorted(cuts)
    return list(pairwise(ordered))


def _take(
    loss: Callable[..., Tensor],
    tx: GradientTransformation,
    first_order: bool,
    carry: tuple[Tree, Any],
    buffers: Tree,
    batch: Any,
) -> tuple[tuple[Tree, Any], Tree, Tensor]:
    params, state = carry

    def grad_fn(point: Tree) -> Tree:
        return inner_loss.gradients(loss, first_order, point, buffers, batch)[0]

    grads, value, after = inner_loss.gradients(loss, first_order, params, buffers, batch)
    step = _step.plan(tx, grads, state, params, value=value, grad_fn=grad_fn)
    return step(), after, value
