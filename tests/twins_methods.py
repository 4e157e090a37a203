"""A method of ours beside the class of ``torch.optim``, driven with the same gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trees import assert_equal

import functional_adamax as fa

SHAPES = {"wide": (257, 3), "scalar": (), "short": (5,), "empty": (0, 2), "matrix": (33, 7)}
EXACT = [torch.float32, torch.float64]
COMPLEX = [torch.complex64, torch.complex128]


def parameters(dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.randn(shape, dtype=dtype) for name, shape in SHAPES.items()}


def real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def assert_twins(
    theirs: type[torch.optim.Optimizer],
    options: dict[str, Any],
    tx: fa.GradientTransformation,
    dtype: torch.dtype,
    *,
    ulps: int = 0,
    steps: int = 30,
) -> None:
    """Hold a transform to torch's class over ``steps`` steps; a gradient in five is None.

    The state is the same to the bit. So are the parameters if ``ulps`` is 0; if not, they are
    within so many roundings of the larger of the old and the new after every step, which
    starts from torch's.
    """
    ours = parameters(dtype)
    twins = {name: torch.nn.Parameter(p.clone()) for name, p in ours.items()}
    optimizer = theirs(list(twins.values()), **options)
    state = tx.init(ours)
    for _ in range(steps):
        grads = {}
        for name, twin in twins.items():
            grads[name] = torch.randn_like(twin) * 3 if torch.rand(()) > 0.2 else None
            twin.grad = None if grads[name] is None else grads[name].clone()
        before = ours
        ours, state = fa.step(tx, grads, state, ours)
        optimizer.step()
        values = {name: twin.detach().clone() for name, twin in twins.items()}
        for name, p in values.items():
            old, new, got = real(before[name]), real(p), real(ours[name])
            unit = torch.finfo(dtype).eps * torch.maximum(old.abs(), new.abs())
            assert ((got - new).abs() <= ulps * unit).all(), (name, got, new)
        ours = values
        assert_same_state(optimizer, twins, state)


def assert_same_state(
    optimizer: torch.optim.Optimizer, twins: dict[str, torch.nn.Parameter], state: Any
) -> None:
    for name, twin in twins.items():
        for field, value in optimizer.state.get(twin, {}).items():
            if value is not None:
                assert_equal(getattr(state, field)[name].to(value.dtype), value)


def run(tx: fa.GradientTransformation, p: Tensor, grads: list[Any]) -> Tensor:
    state = tx.init(p)
    for g in grads:
        p, state = fa.step(tx, g, state, p)
    return p
