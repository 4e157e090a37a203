"""Ways to take a step, and the memory that one may lack: what the grid of failures is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from runs import SIZES, Classic, Functional, Run
from torch.overrides import TorchFunctionMode

import functional_adamax as fa
from functional_adamax._execution import by_rule, inplace
from functional_adamax._execution import foreach as _foreach
from functional_adamax._execution import recorded as _recorded
from functional_adamax._execution.native import kernel
from functional_adamax._execution.program import machine
from functional_adamax.compat import Adamax, Optimizer


@dataclass(frozen=True)
class Way:
    """How steps are taken, by which executors, and which faults do not apply to it."""

    name: str
    make: Callable[[], Run]
    executor: str  # native, machine, torch: the kernel, the machine or neither is there
    ran: frozenset[str]  # what has to step the leaves where nothing is wrong

    def __str__(self) -> str:
        return f"{self.name}-{self.executor}"


class Restless(NamedTuple):
    """Plain gradient descent of a user's, which fails at the parameter of ``SIZES[2]``."""

    fails: bool

    def init(self, params: Any) -> Any:
        return [torch.zeros(())]

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if any(x is not None and x.numel() == SIZES[2] for x in params):
            if self.fails:
                raise ArithmeticError("an update of the user's")
            state = [*state, *state]
        return [None if u is None else -0.1 * u for u in updates], state


def restless(fails: bool) -> fa.GradientTransformation:
    return fa.GradientTransformation(Restless(fails).init, Restless(fails).update)


def chained(lr: Any = 0.1, weight_decay: Any = 0.0) -> fa.GradientTransformation:
    return fa.chain(fa.clip_by_global_norm(10.0), fa.adam(lr, weight_decay=weight_decay))


def scheduled(weight_decay: float = 0.0) -> fa.GradientTransformation:
    return fa.adamax(fa.linear_schedule(0.1, 0.0, 10), weight_decay=weight_decay)


def ways() -> Iterator[Way]:
    functional = [
        ("pure adamax", fa.adamax, False, {"native": "native", "torch": "rule"}),
        ("pure adam", fa.adam, False, {"machine": "machine", "torch": "rule"}),
        ("donated adamax", fa.adamax, True, {"native": "native", "torch": "inplace"}),
        ("donated adamaxw", fa.adamaxw, True, {"native": "native", "torch": "rule"}),
        ("donated schedule", scheduled, True, {"native": "native", "torch": "inplace"}),
        ("donated adam", fa.adam, True, {"machine": "machine", "torch": "rule"}),
        ("donated chain", chained, True, {"machine": "machine", "torch": "rule"}),
    ]
    for name, make, donate, executors in functional:
        for executor, ran in executors.items():
            yield Way(name, partially(Functional, make, donate), executor, frozenset({ran}))
    recorded = partially(Functional, fa.adamax, False, True)
    yield Way("recorded adamax", recorded, "machine", frozenset({"recorded", "machine"}))

    classic = [
        ("Adamax", Adamax, {"native": "native", "torch": "inplace"}),
        ("Adamax foreach", foreach, {"torch": "foreach"}),
        ("Optimizer adamaxw", of(fa.adamaxw), {"native": "native", "torch": "rule"}),
        ("Optimizer adam", of(fa.adam), {"machine": "machine", "torch": "rule"}),
        ("Optimizer chain", of(chained), {"machine": "machine", "torch": "rule"}),
        ("Optimizer coupled", of(chained, couple="all"), {"torch": "rule"}),
        (
            "Optimizer schedule",
            of(fa.adamax, lr=fa.linear_schedule(0.1, 0.0, 10)),
            {"native": "native", "torch": "inplace"},
        ),
    ]
    for name, make, executors in classic:
        for executor, ran in executors.items():
            for several in (False, True):
                yield Way(
                    f"{name} {'groups' if several else 'group'}",
                    partially(Classic, make, several),
                    executor,
                    frozenset({ran}),
                )


def partially(kind: Any, *arguments: Any) -> Callable[[], Run]:
    return lambda: kind(*arguments)


def foreach(params: Any) -> Adamax:
    return Adamax(params, foreach=True)


def of(factory: Any, **options: Any) -> Callable[[Any], Optimizer]:
    return lambda params: Optimizer(params, factory, **options)


class Spy:
    """Stands before code in C, and tells when it has stepped something."""

    def __init__(self, native: Any, ran: set[str], word: str) -> None:
        self.native, self.ran, self.word = native, ran, word

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.native, name)
        if name not in ("step", "stepped", "run", "write", "advance", "overwrite"):
            return real

        def call(*arguments: Any) -> Any:
            found = real(*arguments)
            if found is not None and found is not False and found != []:
                self.ran.add(self.word)
            return found

        return call


@contextmanager
def executors(way: Way, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Force the executor of ``way``, and tell which ones step leaves."""
    ran: set[str] = set()
    with monkeypatch.context() as patch:
        for module, name, word in (
            (kernel, "_native", "native"),
            (machine, "_machine", "machine"),
        ):
            native = getattr(module, name) if way.executor == word else None
            if way.executor == word and native is None:
                pytest.skip(f"{word} is not there")
            patch.setattr(module, name, native and Spy(native, ran, word))
        for module, name, word in (
            (inplace, "_write", "inplace"),
            (_recorded, "_taken", "recorded"),
            (_foreach, "_write", "foreach"),
            (by_rule, "part", "rule"),
        ):
            patch.setattr(module, name, spied(getattr(module, name), word, ran))
        yield ran


def spied(real: Any, word: str, ran: set[str]) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        ran.add(word)
        return real(*arguments, **options)

    return call


class Scarce(TorchFunctionMode):
    """Let the operation fail that would make the ``k``-th tensor."""

    def __init__(self, k: int, error: type[BaseException]) -> None:
        super().__init__()
        self.left, self.error = k, error

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        if function.__name__ in ALLOCATING and "out" not in (keywords or {}):
            self.left -= 1
            if self.left < 0:
                raise self.error("no memory left")
        return function(*arguments, **(keywords or {}))


ALLOCATING = {
    *("abs", "add", "neg", "sub", "mul", "div", "lerp", "maximum", "addcmul", "addcdiv", "clone"),
    *("__add__", "__sub__", "__mul__", "__truediv__", "__neg__", "__pow__", "__rpow__", "sqrt"),
    *("__radd__", "__rsub__", "__rmul__", "__rtruediv__", "__rdiv__", "pow", "to", "float"),
    *("_foreach_abs", "_foreach_add", "_foreach_neg", "where", "square", "sum", "zeros_like"),
    *("empty", "empty_like"),
}
