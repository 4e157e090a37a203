"""Run the rule over the storage of its inputs, each leaf by the fastest executor that fits.

An executor is another spelling of ``_rule.step`` that writes its results over the
parameter and its state. It takes only what it can do bit-equally on a CPU
(``tests/test_executors.py``); the rule itself, and a copy, takes the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import _apply, _foreach, _inplace, _rule
from ._rule import Leaf


def write(
    leaves: Sequence[Leaf], maximize: bool, decoupled: bool, foreach: bool | None = None
) -> None:
    """Step ``leaves``, each of which has a gradient; p, m, u and t receive the results.

    ``foreach`` asks for torch's foreach kernels; None means where ``torch.optim`` would use
    them, for plain tensors on CUDA devices.
    """
    if foreach is None:
        foreach = all(_plain_cuda(leaf.p) for leaf in leaves)
    together = []
    for leaf in leaves:
        if not _inplace.takes(leaf, decoupled):
            _copy(leaf, maximize, decoupled)
        elif foreach:
            together.append(leaf)
        else:
            _inplace.write(leaf, maximize)
    _foreach.write(together, maximize)


def _plain_cuda(p: torch.Tensor) -> bool:
    return type(p) in (torch.Tensor, torch.nn.Parameter) and p.is_cuda


def _copy(leaf: Leaf, maximize: bool, decoupled: bool) -> None:
    update, t, m, u = _rule.step(leaf, maximize, decoupled)
    leaf.p.copy_(_apply.add(leaf.p, update))
    leaf.t.copy_(t)
    leaf.m.copy_(m)
    leaf.u.copy_(u)
