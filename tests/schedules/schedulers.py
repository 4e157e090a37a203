"""What the schedulers of torch make of a rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def torch_values(make: Callable[[Any], Any], steps: int, lr: float = 1.0) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, values = make(optimizer), []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(values) < steps:
            scheduler.step()
    return values


def assert_is_the_scheduler(schedule: Any, make: Callable[[Any], Any]) -> None:
    got = [schedule(count) for count in range(41)]
    np.testing.assert_allclose(got, torch_values(make, 41), rtol=1e-9, atol=1e-12)
