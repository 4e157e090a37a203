"""Small networks, each with its own learning rate: one vmap, or a loop over modules of torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import chains
import torch
from timing import Trained
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from training import FORMS
from trees import BETAS, EPS

import functional_adamax as fa

MEMBERS, ROWS = 64, 32
CLIPPED = f"torch.optim.Adamax, clipped, {MEMBERS} of them"  # its decay is coupled
COMPILES = any(map(shutil.which, ("g++", "clang++", "c++")))

Tree = dict[str, Tensor]


def network() -> nn.Module:
    layers = [nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)]
    return nn.Sequential(*layers)


SHAPE = network()  # the parameters of the members are passed to it


def loss(params: Tree, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(functional_call(SHAPE, params, (x,)), y)


def adamax(lr: Any) -> fa.GradientTransformation:
    return fa.adamax(lr, BETAS, EPS)


def adam(lr: Any) -> fa.GradientTransformation:
    return fa.adam(lr, BETAS, EPS)


def step_by(
    make: Callable[..., Any], params: Tree, state: Any, lr: Tensor, grads: Tree
) -> tuple[Tree, Any]:
    return fa.step(make(lr), grads, state, params)


step_of_one = partial(step_by, adamax)


def train_one(params: Tree, state: Any, lr: Tensor, x: Tensor, y: Tensor) -> tuple[Tree, Any]:
    return step_of_one(params, state, lr, grad(loss)(params, x, y))


def stacked(
    advance: Callable[..., Any], params: Tree, *inputs: Any, make: Callable[..., Any] = adamax
) -> Trained:
    """All members as one tree, whose parameters and state ``advance`` takes a step further."""
    now = [params, vmap(make(0.1).init)(params)]

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


class Start:
    """The members before the first step, with a rate and gradients for each."""

    def __init__(self) -> None:
        self.lrs = torch.logspace(-4, -2, MEMBERS)
        self._first = [network() for _ in range(MEMBERS)]
        self.params = {name: p.detach() for name, p in stack_module_state(self._first)[0].items()}
        self.grads = {name: torch.randn_like(p) for name, p in self.params.items()}

    def copies(self) -> list[nn.Module]:
        nets = [network() for _ in range(MEMBERS)]
        for i, net in enumerate(nets):
            net.load_state_dict(self._first[i].state_dict())
            for name, p in net.named_parameters():
                p.grad = self.grads[name][i].clone()
        return nets

    def each(self, make: Callable[..., Any]) -> tuple[list[Any], list[nn.Module]]:
        """An optimizer of torch for each member, and the members."""
        nets = self.copies()
        pairs = zip(nets, self.lrs, strict=True)
        return [make(net.parameters(), lr=float(lr), eps=EPS) for net, lr in pairs], nets


def clipped(optimizers: list[Any], nets: list[nn.Module]) -> Trained:
    """Networks stepped with the gradients they have, each clipped by its own norm."""
    advance = looped(optimizers, nets, ())

    def step() -> None:
        for net in nets:
            clip_grad_norm_(net.parameters(), chains.NORM)
        advance.step()

    return Trained(step, advance.params)


def others() -> dict[str, dict[str, Trained]]:
    """The steps of another method and of a chain, by ``vmap`` and by loops."""
    start = Start()

    def ours(make: Callable[..., Any]) -> Trained:
        advance = vmap(partial(step_by, make))
        return stacked(advance, start.params, start.lrs, start.grads, make=make)

    forms = {"foreach=False": {"foreach": False}, "foreach=True": {"foreach": True}}
    forms["fused=True"] = {"fused": True}
    found = {
        f"torch.optim.Adam({name}), {MEMBERS} of them": looped(
            *start.each(partial(torch.optim.Adam, betas=BETAS, **how)), ()
        )
        for name, how in forms.items()
    }
    decay = partial(torch.optim.Adamax, betas=BETAS, weight_decay=chains.DECAY)
    return {
        "Adam": found | {"vmap of fa.step": ours(adam)},
        "The chain": {
            "vmap of fa.step": ours(chains.recipe),
            CLIPPED: clipped(*start.each(decay)),
        },
    }


def contenders(training: bool) -> dict[str, Trained]:
    """Ways to take the steps of all members: whole training steps, or the optimizer's alone."""
    x, y = torch.randn(ROWS, 16), torch.randint(4, (ROWS,))
    start = Start()
    params, lrs = start.params, start.lrs
    one, inputs = (train_one, (x, y)) if training else (step_of_one, (start.grads,))
    dims = (0, 0, 0, None, None) if training else (0, 0, 0, 0)
    advance = vmap(one, in_dims=dims)
    what = "grad and fa.step" if training else "fa.step"
    found = {}
    for name, form in FORMS.items():
        make = partial(form, betas=BETAS, eps=EPS)
        for many, title in ((True, f"{MEMBERS} of them"), (False, f"one of {MEMBERS} groups")):
            nets = start.copies()
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
