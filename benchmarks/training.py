"""Whole training steps of two networks, with optimizers of torch and with ours."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from timing import Trained
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from trees import ADAM, BETAS, EPS, LR, TORCH

from functional_adamax.compat import Adamax

FORMS = {
    f"{TORCH}(foreach={form})": partial(torch.optim.Adamax, foreach=form) for form in (False, True)
}
OPTIMIZERS = FORMS | {ADAM: partial(torch.optim.Adam, fused=True), "compat.Adamax": Adamax}
NONE = "forward and backward only"


class Block(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            projection = nn.Conv2d(before, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.norms[0](self.first(x)))
        return relu(self.norms[1](self.second(y)) + self.shortcut(x))


def resnet() -> nn.Module:
    """ResNet-18 for images of 32x32."""
    widths = (64, 64, 128, 256, 512)
    stem = (nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    blocks = [
        Block(width if i else before, width, 2 if i == 0 and width != before else 1)
        for before, width in pairwise(widths)
        for i in range(2)
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class Transformer(nn.Module):
    """A causal language model in the manner of GPT, without dropout."""

    def __init__(self, words: int, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        layer = partial(nn.TransformerEncoderLayer, batch_first=True, norm_first=True, dropout=0.0)
        heads, inner = width // 64, 4 * width
        self.layers = nn.ModuleList(
            layer(width, heads, inner, activation="gelu") for _ in range(layers)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, words, bias=False))
        self.mask: Tensor
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places.weight
        for layer in self.layers:
            x = layer(x, src_mask=self.mask, is_causal=True)
        return self.head(x).flatten(0, 1)


def image_task() -> tuple[nn.Module, Tensor, Tensor]:
    return resnet(), torch.randn(16, 3, 32, 32), torch.randint(10, (16,))


def text_task() -> tuple[nn.Module, Tensor, Tensor]:
    tokens = torch.randint(8192, (4, 65))
    x, y = tokens[:, :-1], tokens[:, 1:].flatten()
    return Transformer(8192, 256, 4, 64), x, y


TASKS = {
    "ResNet-18, 16 images of 32x32": image_task,
    "transformer of 4 layers of 256, 4 texts of 64 of 8192 words": text_task,
}


def trainings(task: Callable[[], tuple[nn.Module, Tensor, Tensor]]) -> dict[str, Trained]:
    """A training step with each optimizer, over copies of one network, and one without."""
    model, x, y = task()

    def trained(make: Callable[..., Any] | None) -> Trained:
        net = deepcopy(model)
        params = list(net.parameters())
        optimizer = make(params, lr=LR, betas=BETAS, eps=EPS) if make else None

        def step() -> None:
            net.zero_grad()
            cross_entropy(net(x), y).backward()
            if optimizer:
                optimizer.step()

        return Trained(step, lambda: [p.detach() for p in params])

    return {name: trained(make) for name, make in (OPTIMIZERS | {NONE: None}).items()}
