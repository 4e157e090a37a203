"""Leaves for the executors, single ones as the works of which they are part, and their bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from functional_adamax._core import numerics
from functional_adamax._execution import adamax_rule, choice
from functional_adamax._execution import foreach as _foreach
from functional_adamax._execution import inplace as _inplace
from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.native import kernel
from functional_adamax._execution.triton import executor as _triton
from functional_adamax._execution.work import Work
from functional_adamax._methods.adamax import Adamax

RATES = ("lr", "b1", "b2", "eps", "weight_decay")
HALF = (torch.bfloat16, torch.float16)
LEARNING_RATES = (
    0.01,
    3,
    torch.tensor(0.01),
    torch.tensor(0.01, dtype=torch.float64),
    torch.tensor(1),
)
SHAPES = [(), (1,), (3,), (0, 4), (257, 3), (1023,), (64, 129)]
SPECIAL = [0.0, -0.0, 1e-45, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"), 1.0, -1.0]

needs_kernel = pytest.mark.skipif(
    kernel._native is None, reason="the native kernel is not built, or switched off"
)


def leaf(shape: Any, dtype: torch.dtype, lr: Any, weight_decay: float, special: bool) -> AdamaxLeaf:
    p, g, m = (torch.randn(shape, dtype=dtype) for _ in range(3))
    u = torch.complex(*torch.rand(2, *shape)) if dtype.is_complex else torch.rand(shape)
    if special and g.numel() >= len(SPECIAL):
        g.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL).to(dtype)
        m.view(-1)[2 : len(SPECIAL)] = torch.tensor(SPECIAL[2:]).to(dtype)
    t = torch.tensor(float(torch.randint(0, 3000, ())), dtype=torch.float64)
    return AdamaxLeaf(p, g, m, u.to(dtype), t, lr, 0.9, 0.999, 1e-8, weight_decay)


def by_the_rule(leaf: AdamaxLeaf, maximize: bool, decoupled: bool = False) -> list[torch.Tensor]:
    update, t, m, u = rule_step(leaf, maximize, decoupled)
    return [numerics.add(leaf.p, update), m, u, t]


def bits(x: torch.Tensor) -> torch.Tensor:
    x = torch.view_as_real(x) if x.is_complex() else x
    x = x.contiguous()
    return torch.where(x.isnan(), torch.full_like(x, float("nan")), x).view(
        {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    )


def copy(leaf: AdamaxLeaf) -> AdamaxLeaf:
    return AdamaxLeaf(*(x.clone() if isinstance(x, torch.Tensor) else x for x in leaf))


def kernel_takes(
    value: torch.dtype, moment: torch.dtype, weight_decay: float, lr: Any, maximize: bool
) -> bool:
    """Whether the kernel is to take such leaves."""
    if isinstance(lr, torch.Tensor) and not lr.is_floating_point():
        return False
    if value.is_complex or (value in HALF and moment == value):
        return not weight_decay and not (value.is_complex and maximize)
    return True


class Sub(torch.Tensor):
    @staticmethod
    def __new__(cls, x: torch.Tensor) -> Sub:
        return torch.Tensor._make_subclass(cls, x)


def strange(x: AdamaxLeaf) -> dict[str, AdamaxLeaf]:
    """Leaves whose tensors are not plain memory in one order."""
    wide = {name: torch.stack([getattr(x, name)] * 2, -1) for name in ("p", "g", "m", "u")}
    turned = {name: getattr(x, name).t().contiguous().t() for name in ("p", "g", "m", "u")}
    return {
        "gradient in another order": x._replace(g=turned["g"]),
        "all in another order": x._replace(**turned),
        "moments in another order": x._replace(m=turned["m"], u=turned["u"]),
        "every other element": x._replace(**{k: v[..., 0] for k, v in wide.items()}),
        "one gradient for all": x._replace(g=x.g[:1, :1].expand(4, 3)),
        "negative view": x._replace(p=torch._neg_view(x.p)),
        "gradient in half precision": x._replace(g=x.g.bfloat16()),
        "counter on its side": x._replace(t=torch.stack([x.t, x.t])[1]),
        "half counter": x._replace(t=x.t.bfloat16()),
        "subclass": x._replace(p=Sub(x.p)),
    }


def work_of(
    leaves: Sequence[AdamaxLeaf],
    maximize: bool = False,
    decoupled: bool = False,
    foreach: bool | None = None,
) -> Work:
    """The work of a method that steps ``leaves``, in turn where they share memory."""
    kind = {"decoupled": decoupled, "foreach": foreach, "in_turn": True}
    columns = {name: [getattr(x, name) for x in leaves] for name in RATES}
    given = {name: x[0] if all(y is x[0] for y in x) else x for name, x in columns.items()}
    method: Any = type("Adamax", (Adamax,), kind)(
        given["lr"],
        (given["b1"], given["b2"]),
        given["eps"],
        given["weight_decay"],
        maximize,
        derivative_floor=leaves[0].floor,
    )
    p, g, m, u, t = (list(column) for column in zip(*(x[:5] for x in leaves), strict=True))
    hyper = columns | {"derivative_floor": [x.floor for x in leaves]}
    moments = {"exp_avg": m, "exp_inf": u}
    state = method.state(t, m, u)
    with_params = any(x is not None for x in p)
    work: Work = method.work(g, state, p if with_params else None)
    assert work.moments == moments
    work.hyper = hyper
    return work


def of(leaves: Sequence[AdamaxLeaf], maximize: bool, decoupled: bool) -> list[AdamaxLeaf]:
    return [x._replace(maximize=maximize, decoupled=decoupled) for x in leaves]


def rule_step(leaf: AdamaxLeaf, maximize: bool, decoupled: bool = False) -> Any:
    (leaf,) = of([leaf], maximize, decoupled)
    return adamax_rule.step(leaf)


def ready(leaves: Sequence[AdamaxLeaf], maximize: bool, decoupled: bool) -> Any:
    return kernel.as_read(of(leaves, maximize, decoupled))


def write(leaves: Sequence[AdamaxLeaf], maximize: bool, decoupled: bool) -> bool:
    run = kernel.planned(of(leaves, maximize, decoupled))
    return run is not None and run()


def compute(leaves: Sequence[AdamaxLeaf], maximize: bool, decoupled: bool, add: bool) -> Any:
    """The rows of all leaves."""
    columns = choice.compute(work_of(leaves, maximize, decoupled), add)
    return [list(row) for row in zip(*columns, strict=True)]


def plan(
    leaves: Sequence[AdamaxLeaf], maximize: bool, decoupled: bool, foreach: bool | None = None
) -> Callable[[], None]:
    work = work_of(leaves, maximize, decoupled, foreach)
    write, problem = choice.plan(work, (None, None, None))
    assert problem is None
    assert write is not None
    return write


def inplace(leaves: Sequence[AdamaxLeaf], maximize: bool) -> None:
    for write in _inplace.part(work_of(leaves, maximize), range(len(leaves))).values():
        write()


def foreach(leaves: Sequence[AdamaxLeaf], maximize: bool) -> None:
    _foreach.part(work_of(leaves, maximize), range(len(leaves)))[1]()


def triton(leaves: Sequence[AdamaxLeaf], maximize: bool, decoupled: bool) -> bool:
    found = _triton.part(work_of(leaves, maximize, decoupled), list(range(len(leaves))))
    return len(found) == len(leaves) and _triton.write(list(found.values()))
