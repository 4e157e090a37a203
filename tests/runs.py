"""Parameters about to be stepped, and what can be spoiled of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

import functional_adamax as fa

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
