"""Single leaves for the executors, as the works of which they are part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from functional_adamax._execution import adamax_rule, choice
from functional_adamax._execution import foreach as _foreach
from functional_adamax._execution import inplace as _inplace
from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.native import kernel
from functional_adamax._execution.triton import executor as _triton
from functional_adamax._execution.work import Work
from functional_adamax._methods.adamax import Adamax

RATES = ("lr", "b1", "b2", "eps", "weight_decay")


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
    return _triton.write(of(leaves, maximize, decoupled))
