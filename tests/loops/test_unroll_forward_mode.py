"""Unrolled loops in forward mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from inner_loops import D
from torch.func import jacfwd, jvp

import functional_adamax as fa

OPTIONS: list[dict[str, Any]] = [{}, {"first_order": True}, {"detach_first": 2}, {"truncate": 2}]


@pytest.mark.parametrize("options", [*OPTIONS, {"checkpoint": True}], ids=str)
@pytest.mark.parametrize("tx", [fa.sgd(0.01), fa.adamax(0.1)])
def test_forward_mode_of_both_kinds(tx: Any, options: dict[str, Any]) -> None:
    """By the start, and by a rate, of parameters and values."""
    jacobian = torch.autograd.functional.jacobian
    forward = {"vectorize": True, "strategy": "forward-mode"}
    start, rate = torch.tensor([1.0, 2.0], dtype=D), torch.tensor(0.01, dtype=D)

    def by_start(p: torch.Tensor) -> Any:
        return fa.unroll(lambda p, _: (p**4).sum(), tx, p, range(4), **options)

    def by_rate(lr: torch.Tensor) -> Any:
        return fa.unroll(lambda p, _: (p**4).sum(), fa.sgd(lr), start, range(4), **options)

    for function, x in ((by_start, start), (by_rate, rate)):
        for which in ("params", "values"):
            one: Any = lambda x, f=function, w=which: getattr(f(x), w)  # noqa: E731
            wanted = jacobian(one, x)
            torch.testing.assert_close(jacobian(one, x, **forward), wanted)
            torch.testing.assert_close(jacfwd(one)(x), wanted)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("recording", [False, True])
def test_tangents_without_grad_mode(recorded: bool, recording: bool) -> None:
    start, tangent = torch.tensor([1.0, 2.0], dtype=D), torch.tensor([1.0, 0.5], dtype=D)

    def trained(p: torch.Tensor) -> torch.Tensor:
        return fa.unroll(lambda p, _: (p**4).sum(), fa.sgd(0.01), p, range(4)).params

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(start.clone().requires_grad_(recorded), tangent)
        with torch.set_grad_enabled(recording):
            found = forward_ad.unpack_dual(trained(dual)).tangent
    torch.testing.assert_close(found, jvp(trained, (start,), (tangent,))[1])
