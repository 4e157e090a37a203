"""A network, its training, and a recipe, for the tests of wrapped transforms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import functional_adamax as fa


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


BATCHES = torch.randn(20, 8, 4, generator=torch.Generator().manual_seed(0))


def loss(model: Callable[[Tensor], Tensor], i: int) -> Tensor:
    return (model(BATCHES[i]) - 1).square().mean()


def train(model: nn.Module, optimizer: Any, steps: range, scheduler: Any = None) -> list[Tensor]:
    for i in steps:
        optimizer.zero_grad()
        loss(model, i).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return [p.detach().clone() for p in model.parameters()]


def is_weight(name: str) -> bool:
    return name.endswith("weight")


def recipe(lr: Any = 0.1, max_norm: Any = 0.5, weight_decay: Any = 0.1) -> Any:
    return fa.chain(
        fa.clip_by_global_norm(max_norm),
        fa.masked(fa.add_decayed_weights(weight_decay), fa.by_path(is_weight)),
        fa.scale_by_nadamax(),
        fa.scale_by_learning_rate(lr),
    )


RATE = fa.warmup_cosine_decay_schedule(0.0, 0.1, 3, 12)


def parameters(*sizes: int) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.ones(n)) for n in sizes]
    for p in made:
        p.grad = torch.ones_like(p)
    return made


def trained() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The state dict of an optimizer after a step, and its parameters as a tree."""
    net = network()
    optimizer = torch.optim.Adamax(net.parameters(), lr=0.1)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    params = {name: p.detach().clone() for name, p in net.named_parameters()}
    return copy.deepcopy(optimizer.state_dict()), params
