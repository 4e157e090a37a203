"""Closures as functions: the gradients at other parameters than the model has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core import pytree
from .._core.pytree import Tree


class Gradients(NamedTuple):
    """``grad_fn(params)``: what a closure says at other parameters. Nothing of it remains."""

    closure: Callable[[], Any]
    params: list[Tensor | None]
    everyone: list[Tensor]  # all whose gradients the closure may change

    def __call__(self, values: Tree) -> Tree:
        leaves, spec = pytree.flatten(values)
        rows = [(p, x) for p, x in zip(self.params, leaves, strict=True) if p is not None]
        kept = [p.detach().clone() for p, _ in rows]
        grads = [p.grad for p in self.everyone]
        with torch.no_grad():
            for p, x in rows:
                p.copy_(x)
        try:
            for p in self.everyone:
                p.grad = None
            with torch.enable_grad():
                self.closure()
            found = [None if p is None else p.grad for p in self.params]
        finally:
            with torch.no_grad():
                for (p, _), value in zip(rows, kept, strict=True):
                    p.copy_(value)
            for p, grad in zip(self.everyone, grads, strict=True):
                p.grad = grad
        return pytree.unflatten(spec, found)
