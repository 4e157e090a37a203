"""The native step of groups under ``torch.compile``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .._execution.native.kernel import Group


def advance_compiled(groups: list[Group], state: Mapping[Tensor, Any]) -> bool:
    """Do what ``_execution.native.kernel.advance`` does, by operators over many parameters.

    False, with nothing written, if the kernel is not to take them all.
    """
    from .._execution import operator

    runs = []
    for group in groups:
        params = [p for p in group.params or () if p.grad is not None]
        if not params:
            continue
        entries = [state.get(p) or {} for p in params]
        if not all(entries):
            return False
        m, u, t = ([entry[name] for entry in entries] for name in ("exp_avg", "exp_inf", "step"))
        run = operator.overwrite(group, (params, [p.grad for p in params], m, u, t))
        if run is None:
            return False
        runs.append(run)
    for run in runs:
        run()
    return True
