"""A closure as a function of other parameters, of which nothing remains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_adamax.compat._closure import Gradients


def model() -> tuple[nn.Parameter, nn.Parameter, Any]:
    a, b = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))

    def closure() -> Tensor:
        for p in (a, b):
            p.grad = None
        loss = a**2 * b
        loss.backward()
        return loss

    return a, b, closure


def test_gradients_at_other_values() -> None:
    a, b, closure = model()
    a.grad, b.grad = torch.tensor(7.0), None
    kept = a.grad
    found = Gradients(closure, [a, None], [a, b])({"a": torch.tensor(5.0), "b": None})
    assert found == {"a": 30.0, "b": None}
    assert (a.item(), b.item()) == (2.0, 3.0)
    assert a.grad is kept, "the gradient that was there is there again"
    assert b.grad is None


def test_gradients_that_accumulate_begin_at_nothing() -> None:
    a, _, _ = model()
    a.grad = torch.tensor(100.0)
    found = Gradients(lambda: (a**2).backward(), [a], [a])([torch.tensor(4.0)])
    assert found == [8.0]
    assert a.grad == 100.0


def test_it_records_where_it_is_called_without() -> None:
    a, b, closure = model()
    with torch.no_grad():
        assert Gradients(closure, [a, b], [a, b])([a * 0 + 1, b * 0 + 1]) == [2.0, 1.0]


def test_all_is_put_back_where_the_closure_raises() -> None:
    a, b, _ = model()
    a.grad = torch.tensor(7.0)

    def closure() -> Tensor:
        (a * b).backward()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Gradients(closure, [a, b], [a, b])([torch.tensor(torch.nan), torch.tensor(1.0)])
    assert (a.item(), b.item(), a.grad, b.grad) == (2.0, 3.0, 7.0, None)
