"""Ways to take a step, and faults that stop one: what the grid of failures is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import functional_adamax as fa
from functional_adamax._execution import by_rule, inplace
from functional_adamax._execution import foreach as _foreach
from functional_adamax._execution import recorded as _recorded
from functional_adamax._execution.native import kernel
from functional_adamax._execution.program import machine
from functional_adamax.compat import Adamax, Optimizer

SIZES = (3, 4, 5)


class Run:
    """Some parameters about to be stepped; ``step`` takes the step."""

    params: list[Any]

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.params = [torch.randn(n) for n in SIZES]

    def gradient(self, i: int) -> Any:
        raise NotImplementedError

    def set_gradient(self, i: int, g: Any) -> None:
        raise NotImplementedError

    def set_parameter(self, i: int, p: Tensor) -> None:
        raise NotImplementedError

    def exchange(self, i: int, p: Tensor) -> None:
        """Put another tensor in the place of a parameter."""
        self.set_parameter(i, p)

    def state(self, i: int) -> dict[str, Any]:
        """The tensors kept of a parameter."""
        raise NotImplementedError

    def set_state(self, i: int, name: str, value: Any) -> None:
        raise NotImplementedError

    def step(self) -> Any:
        raise NotImplementedError

    def settings(self) -> Any:
        return None

    def spoil_decay(self, i: int) -> None:
        """Let a leaf be of half precision, and its decay larger than a half."""
        raise NotImplementedError

    def snapshot(self) -> list[Any]:
        """Everything that a failed step must leave as it was."""
        kept: list[Any] = [self.settings()]
        for i, p in enumerate(self.params):
            for x in (p, self.gradient(i), *self.state(i).values()):
                kept.append(seen(x))
            kept.append(list(self.state(i)))
        return kept


def seen(x: Any) -> Any:
    """Identity, version, form and bytes of a tensor; anything else as it is."""
    if not isinstance(x, Tensor):
        return x
    if x.layout != torch.strided:
        return id(x), x._version, x.to_dense().tolist()
    form = x.dtype, tuple(x.shape), x.stride(), x.storage_offset()
    version = None if x.is_inference() else x._version
    return id(x), version, form, bytes(x.untyped_storage().tolist())


class Functional(Run):
    """``fa.step`` on a list."""

    def __init__(self, make: Any, donate: bool, recorded: bool = False) -> None:
        super().__init__()
        self.make, self.donate, self.recorded = make, donate, recorded
        self.tx = make()
        self.grads: list[Any] = [torch.randn(n) for n in SIZES]
        state = self.tx.init(self.params)
        self.params, self.kept = fa.step(self.tx, self.grads, state, self.params)
        self.grads = [g.requires_grad_(recorded) for g in self.grads]

    def gradient(self, i: int) -> Any:
        return self.grads[i]

    def set_gradient(self, i: int, g: Any) -> None:
        self.grads[i] = g

    def set_parameter(self, i: int, p: Tensor) -> None:
        self.params[i] = p

    def state(self, i: int) -> dict[str, Any]:
        found = {name: fa.tree_get_all(self.kept, name) for name in (*MOMENTS, "count")}
        return {k: x[0][1][i] if k in MOMENTS else x[0][1] for k, x in found.items() if x}

    def set_state(self, i: int, name: str, value: Any) -> None:
        self.kept = replaced(self.kept, name, i, value)

    def step(self) -> Any:
        return fa.step(self.tx, self.grads, self.kept, self.params, donate=self.donate)

    def spoil_decay(self, i: int) -> None:
        self.tx = self.make(weight_decay=1e5)
        self.set_parameter(i, torch.ones(SIZES[i], dtype=torch.float16))
        self.grads[i] = torch.ones(SIZES[i], dtype=torch.float16)
        for name in names_of(self.kept):
            if name != "step":
                self.set_state(i, name, torch.ones(SIZES[i], dtype=torch.float16))


def names_of(state: Any) -> list[str]:
    """The fields of the method's state within ``state``."""
    return [name for name in MOMENTS if fa.tree_get_all(state, name)]


MOMENTS = ("step", "exp_avg", "exp_inf", "exp_avg_sq")


def replaced(state: Any, name: str, i: int, value: Any) -> Any:
    """``state`` with another leaf ``i`` in its field ``name``, wherever that is."""
    if hasattr(state, "_fields"):
        parts = {
            k: [*x[:i], value, *x[i + 1 :]] if k == name else replaced(x, name, i, value)
            for k, x in state._asdict().items()
        }
        return state._replace(**parts)
    return tuple(replaced(x, name, i, value) for x in state) if isinstance(state, tuple) else state


class Classic(Run):
    """An optimizer: one group, or one for each parameter."""

    def __init__(self, make: Any, several: bool) -> None:
        super().__init__()
        self.params = [torch.nn.Parameter(p) for p in self.params]
        groups = [{"params": [p]} for p in self.params]
        self.optimizer = make(groups if several else self.params)
        for p in self.params:
            p.grad = torch.randn_like(p)
        self.optimizer.step()

    def gradient(self, i: int) -> Any:
        return self.params[i].grad

    def set_gradient(self, i: int, g: Any) -> None:
        p = self.params[i]
        p.grad = None
        p.grad_dtype = None
        p.grad = g

    def set_parameter(self, i: int, p: Tensor) -> None:
        self.params[i].data = p

    def exchange(self, i: int, p: Tensor) -> None:
        old, params = self.params[i], self.group_of(i)["params"]
        (place,) = [j for j, x in enumerate(params) if x is old]
        params[place] = self.params[i] = p
        self.optimizer.state[p] = self.optimizer.state.pop(old)

    def state(self, i: int) -> dict[str, Any]:
        return dict(self.optimizer.state.get(self.params[i], {}))

    def set_state(self, i: int, name: str, value: Any) -> None:
        entry = self.optimizer.state[self.params[i]]
        (key,) = [k for k in entry if k.split(".")[-1] == name]
        entry[key] = value

    def step(self) -> Any:
        return self.optimizer.step()

    def group_of(self, i: int) -> dict[str, Any]:
        groups = self.optimizer.param_groups
        return groups[i if len(groups) > 1 else 0]

    def settings(self) -> Any:
        groups = self.optimizer.param_groups
        plain = [{k: copy.copy(v) for k, v in g.items() if k != "params"} for g in groups]
        return plain, [list(map(id, g["params"])) for g in groups], len(self.optimizer.state)

    def spoil_decay(self, i: int) -> None:
        p = self.params[i]
        p.grad = None
        p.data = p.data.half()
        p.grad = torch.ones_like(p)
        del self.optimizer.state[p]
        for group in [self.group_of(i)]:
            group["weight_decay"] = 1e5


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
    yield Way("recorded adamax", recorded, "native", frozenset({"recorded", "native"}))

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
            (_recorded, "step", "recorded"),
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
