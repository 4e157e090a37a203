"""Optimizers whose rates are schedules."""

from __future__ import annotations

from typing import Any

import torch

import functional_adamax as fa

HALF = fa.exponential_decay(0.5, transition_steps=1, decay_rate=0.5)
FALLING = fa.linear_schedule(0.1, 0.0, 100)


def stepped(optimizer: Any, times: int = 1) -> Any:
    for _ in range(times):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, 0.3)
        optimizer.step()
    return optimizer


def rates(optimizer: Any) -> list[Any]:
    return [group["lr"] for group in optimizer.param_groups]
