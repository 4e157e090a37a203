"""Numbers of NumPy as hyperparameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from trees import assert_equal

import functional_adamax as fa
from functional_adamax.compat import Adamax, Optimizer


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64])
def test_numbers_of_numpy_are_numbers(kind: Any) -> None:
    value = kind(2) / kind(4) if kind is not np.int64 else kind(1)
    params, grads = {"a": torch.ones(3), "b": torch.ones(2)}, {"a": torch.ones(3), "b": None}
    makers: list[Callable[[Any], Any]] = [
        fa.adamax,
        lambda x: fa.adamaxw(0.1, weight_decay=x),
        lambda x: fa.adamax({"a": x, "b": 0.1}),
        lambda x: fa.adamax(lambda count: x),
        fa.sgd,
        lambda x: fa.chain(fa.clip(x), fa.adam(fa.linear_schedule(x, 0.0, 2))),
    ]
    for make in makers:
        for donate in (False, True):
            runs = []
            for tx in (make(value), make(value.item())):
                p = {name: x.clone() for name, x in params.items()}
                runs.append(fa.step(tx, grads, tx.init(p), p, donate=donate))
            assert_equal(*runs)
    classic = torch.nn.Parameter(torch.ones(3))
    for foreach in (None, True):
        classic.grad = torch.ones(3)
        Adamax([classic], lr=value, foreach=foreach).step()
    assert classic.tolist() == [1 - 2 * value.item()] * 3
    if kind is not np.int64:  # of which none is injected
        state = fa.inject_hyperparams(fa.adamax)(lr=value).init(classic.detach())
        assert fa.get_hyperparams(state)["lr"] == value.item()
    pair = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (value, 0.1)]
    for group in pair:
        group["params"][0].grad = torch.ones(1)
    Optimizer(pair, fa.sgd, couple="all", lr=1.0).step()
    assert pair[0]["params"][0].item() == 1 - value.item()
