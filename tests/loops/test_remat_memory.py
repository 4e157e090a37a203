"""The memory of checkpointed inner loops."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import pytest
import torch
from peaks import peak_of
from torch.func import functional_call

import functional_adamax as fa
from functional_adamax._execution.native import kernel


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("width", [64, 512])
def test_checkpointed_memory_of_fifty_steps(
    width: int, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(kernel, "_native", None)
    module = torch.nn.Sequential(
        torch.nn.Linear(64, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, 5),
    )
    params = dict(module.named_parameters())
    x, y = torch.randn(25, 64), torch.randint(0, 5, (25,))

    def loss(tree: Any, batch: Any) -> torch.Tensor:
        x, y = batch
        return torch.nn.functional.cross_entropy(functional_call(module, tree, (x,)), y)

    gradients = []

    def run(checkpoint: bool, steps: int = 50) -> None:
        tx = fa.adamax(1e-3)
        end = fa.unroll(loss, tx, params, repeat((x, y), steps), checkpoint=checkpoint)
        gradients.append(torch.autograd.grad(loss(end.params, (x, y)), list(params.values())))

    run(True, 2)  # in which what is kept, such as a program, is made
    gradients.clear()
    peaks = [peak_of(lambda: run(False)), peak_of(lambda: run(True))]
    assert peaks[1] <= 0.35 * peaks[0]
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))
