"""Small networks, each with its own learning rate: one vmap, or a loop over modules of torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import Trained
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy
from training import FORMS
from trees import BETAS, EPS

import functional_adamax as fa

MEMBERS, ROWS = 64, 32
COMPILES = any(map(shutil.which, ("g++", "clang++", "c++")))

Tree = dict[str, Tensor]


def network() -> nn.Module:
    layers = [nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)]
    return nn.Sequential(*layers)


SHAPE = network()  # the parameters of the members are passed to it


def loss(params: Tree, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(functional_call(SHAPE, params, (x,)), y)


def step_of_one(params: Tree, state: Any, lr: Tensor, grads: Tree) -> tuple[Tree, Any]:
    return fa.step(fa.adamax(lr, BETAS, EPS), grads, state, params)


def train_one(params: Tree, state: Any, lr: Tensor, x: Tensor, y: Tensor) -> tuple[Tree, Any]:
    return step_of_one(params, state, lr, grad(loss)(params, x, y))


def stacked(advance: Callable[..., Any], params: Tree, *inputs: Any) -> Trained:
    """All members as one tree, whose parameters and state ``advance`` takes a step further."""
    now = [params, vmap(fa.adamax().init)(params)]

    def step() -> None:
        now[:] = advance(*now, *inputs)

    return Trained(step, lambda: list(now[0].values()))


def looped(optimizers: list[Any], nets: list[nn.Module], inputs: tuple[Tensor, ...]) -> Trained:
    """Networks trained on ``inputs``, or if there are none stepped with the gradients they have."""

    def step() -> None:
        for net in nets if inputs else []:
            net.zero_grad()
            x, y = inputs
            cross_entropy(net(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()

    def params() -> list[Tensor]:
        return [p.detach() for p in stack_module_state(nets)[0].values()]

    return Trained(step, params)


def contenders(training: bool) -> dict[str, Trained]:
    """Ways to take the steps of all members: whole training steps, or the optimizer's alone."""
    x, y = torch.randn(ROWS, 16), torch.randint(4, (ROWS,))
    lrs = torch.logspace(-4, -2, MEMBERS)
    first = [network() for _ in range(MEMBERS)]
    params = {name: p.detach() for name, p in stack_module_state(first)[0].items()}
    grads = {name: torch.randn_like(p) for name, p in params.items()}

    def copies() -> list[nn.Module]:
        nets = [network() for _ in range(MEMBERS)]
        for i, net in enumerate(nets):
            net.load_state_dict(first[i].state_dict())
            for name, p in net.named_parameters():
                p.grad = grads[name][i]
        return nets

    one, inputs = (train_one, (x, y)) if training else (step_of_one, (grads,))
    dims = (0, 0, 0, None, None) if training else (0, 0, 0, 0)
    advance = vmap(one, in_dims=dims)
    what = "grad and fa.step" if training else "fa.step"
    found = {}
    for name, form in FORMS.items():
        make = partial(form, betas=BETAS, eps=EPS)
        for many, title in ((True, f"{MEMBERS} of them"), (False, f"one of {MEMBERS} groups")):
            nets = copies()
            groups = [
                {"params": [*net.parameters()], "lr": float(lr)}
                for net, lr in zip(nets, lrs, strict=True)
            ]
            optimizers = [make([group]) for group in groups] if many else [make(groups)]
            found[f"{name}, {title}"] = looped(optimizers, nets, (x, y) if training else ())
    found[f"vmap of {what}"] = stacked(advance, params, lrs, *inputs)
    if COMPILES:
        compiled = torch.compile(advance, fullgraph=True)
        found[f"torch.compile of vmap of {what}"] = stacked(compiled, params, lrs, *inputs)
    return found
