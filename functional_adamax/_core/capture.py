"""What a function closes over: find its tensors while it runs, and put others in their place.

A function handed to this library may use tensors that are not its arguments: a learned rate, the
weights of another network. Code that runs the function again later has to know them, or their
gradients would be lost without a word. Every call of torch passes a function mode, which sees the
arguments and may replace them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp
from torch.overrides import TorchFunctionMode

from . import context
from .private import modes, transforms, trees

Unknown = Callable[[Tensor, Callable[..., Any]], None]
"""What to do about a tensor from outside, and the function that was given it."""


_QUESTIONS = {
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf")
    ),
    *(
        getattr(Tensor, name)
        for name in ("size", "dim", "numel", "stride", "is_floating_point", "is_complex")
    ),
}
"""What asks about a tensor and computes nothing; most calls of a mode are these."""


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _tensors(item)
    elif tree is not None and not isinstance(tree, (int, float, str)):
        yield from (x for x in trees.leaves(tree) if isinstance(x, Tensor))


class Closure(TorchFunctionMode):
    """A context in which the tensors ``new`` stand for the closed-over tensors ``old``.

    Any other tensor that is followed up to level ``at``, and is neither in ``arguments`` nor
    computed in the context, is handed to ``unknown``.
    """

    def __init__(
        self,
        at: int,
        arguments: Sequence[Tensor],
        old: Sequence[Tensor],
        new: Sequence[Tensor],
        unknown: Unknown,
    ) -> None:
        super().__init__()
        self.at = at
        self.table = {id(x): y for x, y in zip(old, new, strict=True)}
        self.unknown = unknown
        around = reversed(modes.function_mode_stack())
        self.around = [mode for mode in around if isinstance(mode, Closure)]
        self.start = context.node_number(None)
        self.inside: dict[int, weakref.ref[Tensor]] = {}
        self._enter(arguments)
        self._enter([context.followed_outside(x, at) for x in arguments])

    def _enter(self, tree: Any) -> None:
        for x in _tensors(tree):
            self.inside[id(x)] = weakref.ref(x)

    def _here(self, x: Tensor) -> Tensor:
        """What stands for ``x`` around this context: its level is one that is running."""
        for closure in self.around:
            x = closure.table.get(id(x), x)
        return x

    def _is_inside(self, x: Tensor) -> bool:
        known = self.inside.get(id(x))
        return (known is not None and known() is x) or context.node_number(x) >= self.start

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = args, kwargs or {}
        if func in _QUESTIONS:
            return func(*given[0], **given[1])
        for x in _tensors(given):
            if id(x) in self.table:
                continue
            here = self._here(x)
            root = context.followed_outside(here, self.at)
            if root is None and here is not x:  # closed over around this context, so in it, too
                root = here
            if root is None or self._is_inside(x) or self._is_inside(root):
                continue
            if root is here:
                self.unknown(x, func)
            else:
                _refuse_transformed(root)
        if any(id(x) in self.table for x in _tensors(given)):
            given = trees.mapped(lambda x: self.table.get(id(x), x), given)
        result = func(*given[0], **given[1])
        self._enter(result)
        return result


def closed_over(
    function: Callable[..., Any],
    arguments: Sequence[Tensor],
    refuse_applied: Callable[[Tensor], None] | None = None,
) -> list[Tensor]:
    """Run ``function`` and return the tensors it used besides ``arguments``.

    Those that may be differentiated, and those of a transform, which cannot be used when it has
    ended. It runs in a transform, whose tensors are told from those outside by their level. There,
    and not elsewhere, a mode sees what an autograd function is given: ``refuse_applied`` is called.
    """
    found: dict[int, Tensor] = {}

    def note(x: Tensor, func: Callable[..., Any]) -> None:
        if refuse_applied is not None and modes.applies(func):
            refuse_applied(x)
        found[id(x)] = x

    with Closure(context.level(), arguments, (), (), note):
        vjp(function, *arguments)
    return list(found.values())


def refuse(x: Tensor, func: Callable[..., Any]) -> None:
    """Raise for a tensor that a function uses now and did not use when ``closed_over`` ran it."""
    if not context.tracked(x):
        return
    raise RuntimeError(
        f"{getattr(func, '__name__', func)} was given a tensor of shape {tuple(x.shape)} that may "
        "be differentiated and that the first step did not use; its gradient would be lost. Pass "
        "it to the loss in the batch, or do not ask for checkpoint"
    )


def _refuse_transformed(x: Tensor) -> None:
    if not context.tracked(x):
        return
    raise RuntimeError(
        f"the loss closes over a tensor of shape {tuple(x.shape)} that may be differentiated and "
        "hands it to a transform of torch.func as an argument; checkpoint cannot follow it there. "
        "Pass it to the loss in the batch, or do not ask for checkpoint"
    )


def refuse_applied(x: Tensor) -> None:
    """Raise for a tensor that only a run inside of a transform would see again."""
    raise RuntimeError(
        f"the loss closes over a tensor of shape {tuple(x.shape)} that may be differentiated and "
        "hands it to a torch.autograd.Function; checkpoint cannot follow it there. Pass it to the "
        "loss in the batch, or do not ask for checkpoint"
    )


def apply(function: Any, *inputs: Any) -> Any:
    """Apply an autograd function, to which a mode would not see its tensors go."""
    if modes.function_modes():
        return function.apply(*(x.view_as(x) if isinstance(x, Tensor) else x for x in inputs))
    return transforms.applied(function, inputs)


def batched_alike(inputs: Iterable[Tensor | None], outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return ``outputs`` with the batch dimensions that any of ``inputs`` has under ``vmap``.

    The generated rule sums gradients of inputs without a batch dimension over the batch. Through
    an output without one, which hands its gradient on unsummed, it would sum twice.
    """
    false = torch.zeros((), dtype=torch.bool)
    for x in (x for x in inputs if x is not None):
        false = torch.logical_or(false.to(x.device), x.new_zeros((), dtype=torch.bool))
    return [torch.where(false.to(y.device), y, y) for y in outputs]


def ignore(x: Tensor, func: Callable[..., Any]) -> None:
    """Do nothing about a tensor from outside."""
    del x, func
