"""The trees that a step is measured on, and the optimizers that take it.

A contender starts from the given parameters and takes every step with the given gradients, which
contenders share and none may write to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import functional_adamax as fa
from functional_adamax.compat import Adamax

LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8
OURS = ("compat.", "fa.")  # how the names of our contenders begin
TORCH, ADAM = "torch.optim.Adamax", "torch.optim.Adam(fused=True)"

Shape = tuple[int, ...]
Advance = Callable[[Any, Any, Any], tuple[Any, Any]]  # grads, params, state to params, state


def resnet18() -> Iterator[Shape]:
    """The shapes of the parameters of ResNet-18 for ImageNet."""

    def convolution(out: int, into: int, size: int) -> Iterator[Shape]:
        yield from ((out, into, size, size), (out,), (out,))  # the last two: batch norm's

    yield from convolution(64, 3, 7)
    before = 64
    for width in (64, 128, 256, 512):
        yield from convolution(width, before, 3)
        yield from convolution(width, width, 3)
        if width != before:
            yield from convolution(width, before, 1)
        yield from convolution(width, width, 3)
        yield from convolution(width, width, 3)
        before = width
    yield from ((1000, 512), (1000,))


def gpt2(layers: int, width: int = 768) -> Iterator[Shape]:
    """The shapes of the parameters of a GPT-2 of ``layers`` blocks, output and input tied."""
    yield from ((50257, width), (1024, width))
    for _ in range(layers):
        for out, into in ((3, 1), (1, 1)):
            yield from ((out * width, into * width), (out * width,))
        for out, into in ((4, 1), (1, 4)):
            yield from ((out * width, into * width), (out * width,))
        yield from [(width,)] * 4
    yield from [(width,)] * 2


TREES: dict[str, list[Shape]] = {
    "6 tensors, 7 k elements": [(64, 64), (64,), (32, 64), (32,), (10, 32), (10,)],
    "1000 tensors of 64": [(64,)] * 1000,
    "ResNet-18, 11 M": list(resnet18()),
    "GPT-2-like, 6 layers, 82 M": list(gpt2(6)),
    "one tensor, 33 M": [(8192, 4096)],
}


def size(shapes: list[Shape]) -> int:
    return sum(map(math.prod, shapes))


class Contender(Protocol):
    """An optimizer with its parameters, state and gradients."""

    def step(self) -> object: ...

    def params(self) -> list[Tensor]:
        """The parameters as they are now."""

    def feed(self, grads: list[Tensor]) -> None:
        """Take these gradients from now on."""


class Classic:
    """An optimizer with the interface of torch.optim, made from its parameters."""

    def __init__(
        self, make: Callable[[Any], Any], start: list[Tensor], grads: list[Tensor]
    ) -> None:
        self.leaves = [nn.Parameter(x.clone()) for x in start]
        self.feed(grads)
        self.step: Callable[[], object] = make(self.leaves).step

    def params(self) -> list[Tensor]:
        return [p.detach() for p in self.leaves]

    def feed(self, grads: list[Tensor]) -> None:
        for p, g in zip(self.leaves, grads, strict=True):
            p.grad = g


class Pure:
    """A pure step, called each time on what it returned before."""

    def __init__(
        self, advance: Advance, init: Callable[[Any], Any], start: Any, grads: Any
    ) -> None:
        self._advance, self._now, self._grads = advance, (start, init(start)), grads

    def step(self) -> None:
        self._now = self._advance(self._grads, *self._now)

    def params(self) -> list[Tensor]:
        return list(self._now[0])

    def feed(self, grads: list[Tensor]) -> None:
        self._grads = type(self._grads)(grads)


class PureInJax(Pure):
    """A pure step over arrays of JAX."""

    def __init__(
        self, advance: Advance, init: Callable[[Any], Any], start: Any, grads: Any
    ) -> None:
        super().__init__(advance, init, jax_arrays(start), jax_arrays(grads))

    def params(self) -> list[Tensor]:
        return [torch.tensor(import_module("numpy").asarray(x)) for x in super().params()]

    def feed(self, grads: list[Tensor]) -> None:
        super().feed(jax_arrays(grads))


def jax_arrays(tensors: list[Tensor]) -> list[Any]:
    return [import_module("jax").numpy.array(x.numpy()) for x in tensors]


Build = Callable[[list[Tensor], list[Tensor]], Contender]  # from the start and the gradients
Algorithms = list[dict[str, Build]]  # contenders by name; those of one dict must agree


def ours(tx: Any, donate: bool, start: list[Tensor], grads: list[Tensor]) -> Contender:
    def advance(grads: Any, params: Any, state: Any) -> tuple[Any, Any]:
        return fa.step(tx, grads, state, params, donate=donate)

    return Pure(advance, tx.init, [x.clone() for x in start], grads)


def torchopt_step(
    make: Callable[[Any], Any], start: list[Tensor], grads: list[Tensor]
) -> Contender:
    """What ``make`` makes of the package, out of place."""
    torchopt: Any = import_module("torchopt")
    tx = make(torchopt)

    def advance(grads: Any, params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params=params, inplace=False)
        return torchopt.apply_updates(params, updates, inplace=False), state

    return Pure(advance, tx.init, tuple(x.clone() for x in start), tuple(grads))


def optax_step(
    make: Callable[[Any], Any], donate: bool, start: list[Tensor], grads: list[Tensor]
) -> Contender:
    """What ``make`` makes of the package, compiled."""
    jax, optax = import_module("jax"), import_module("optax")
    tx = make(optax)

    def update(grads: Any, params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=(1, 2) if donate else ())

    def advance(*trees: Any) -> tuple[Any, Any]:
        return jax.block_until_ready(compiled(*trees))

    return PureInJax(advance, tx.init, start, grads)


def classic(make: Callable[..., Any], **hyper: Any) -> Build:
    return partial(Classic, partial(make, **hyper))


def pytorch_optimizer(name: str) -> Callable[..., Any]:
    """A class of the package, which is imported when it is called."""
    return lambda *args, **hyper: getattr(import_module("pytorch_optimizer"), name)(*args, **hyper)


PACKAGES = {  # what must be installed for contenders whose names begin so
    "pytorch_optimizer": ("pytorch_optimizer",),
    "torchopt": ("torchopt",),
    "optax": ("jax", "optax"),
}


def installed(packages: tuple[str, ...]) -> bool:
    return all(map(find_spec, packages))


def present(builds: dict[str, Build]) -> dict[str, Build]:
    """Those whose packages are installed."""
    absent = tuple(name for name, needs in PACKAGES.items() if not installed(needs))
    return {name: build for name, build in builds.items() if not name.startswith(absent)}


HYPER: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS}


def optax_adamax(optax: Any) -> Any:
    return optax.adamax(LR, *BETAS, EPS)


ADAMAXES = present(
    {
        f"{TORCH}(foreach=False)": classic(torch.optim.Adamax, foreach=False, **HYPER),
        f"{TORCH}(foreach=True)": classic(torch.optim.Adamax, foreach=True, **HYPER),
        "compat.Adamax": classic(Adamax, **HYPER),
        "fa.step, donated": partial(ours, fa.adamax(**HYPER), True),
        "fa.step, pure": partial(ours, fa.adamax(**HYPER), False),
        "pytorch_optimizer.AdaMax": classic(pytorch_optimizer("AdaMax"), **HYPER),
        "torchopt.adamax, inplace=False": partial(torchopt_step, lambda x: x.adamax(**HYPER)),
        "optax.adamax, jit, donated": partial(optax_step, optax_adamax, True),
        "optax.adamax, jit": partial(optax_step, optax_adamax, False),
    }
)
CONTENDERS: Algorithms = [ADAMAXES, {ADAM: classic(torch.optim.Adam, fused=True, **HYPER)}]
