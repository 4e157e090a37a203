"""The step uphill of ``sam`` is a program, with the bits of the operations one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from executors import bits
from trees import grads_like

import functional_adamax as fa
from functional_adamax._execution.program import machine, steps
from functional_adamax._transforms.sam import Uphill

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")
SIZES = 1.0, 0.0, -0.0, 1e-30, 1e30, float("inf"), float("nan")


def start(dtype: torch.dtype) -> tuple[Any, Any]:
    """Parameters, two of which are not moved, and gradients."""
    tree = {"w": torch.randn(300, 400, dtype=dtype), "b": torch.randn((), dtype=dtype)}
    tree |= {"missing": torch.ones(2, dtype=dtype), "integer": torch.tensor(3)}
    return tree, grads_like(tree) | {"missing": None}


def uphill(tree: Any, grads: Any, *options: Any) -> Any:
    """Where ``sam`` asks for gradients."""
    seen: list[Any] = []
    pair = fa.GradientTransformation(lambda p: p, lambda g, s, p=None: (g, s))  # no program
    tx = fa.sam(pair, *options)
    tx.update(grads, None, tree, grad_fn=lambda q: seen.append(q) or grads)
    return seen[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rho", [0.3, torch.tensor(0.3)], ids=["number", "tensor"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_step_uphill_is_a_program(
    adaptive: bool, rho: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, grads = start(dtype)
    found = fa.explain(Uphill(rho, adaptive).pair(), tree, grads).leaves
    assert {x.path[8:-2]: x.executor for x in found} == {
        "b": "program",
        "integer": "none",
        "missing": "none",
        "w": "program",
    }
    made: list[bool] = []
    into_new = steps.into_new

    def noted(*given: Any) -> Any:
        new = into_new(*given)
        made.append(new is not None)
        return new

    monkeypatch.setattr(steps, "into_new", noted)
    several = [{k: g if g is None else g * x for k, g in grads.items()} for x in SIZES]
    got = [uphill(tree, gs, rho, adaptive) for gs in several]
    assert made[-len(SIZES) :] == [True] * len(SIZES), "others held the program against the rule"
    count = len(made)
    monkeypatch.setattr(machine, "_machine", None)
    for gs, new in zip(several, got, strict=True):
        want = uphill(tree, gs, rho, adaptive)
        assert all(torch.equal(bits(new[k]), bits(want[k])) for k in ("w", "b"))
        assert new["missing"] is want["missing"] is tree["missing"]
        assert new["integer"] is want["integer"] is tree["integer"]
    assert len(made) == count
