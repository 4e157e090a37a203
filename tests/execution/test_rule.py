"""What is around any rule: the sign of the gradient, decay of both kinds, complex leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from functional_adamax._execution import rule
from functional_adamax._execution.rule import Leaf, Moments

SEEN: list[Any] = []


def momentum(t: Tensor, g: Tensor, moments: Moments, h: dict[str, Any]) -> Any:
    """A rule in which everything can be told: m <- b m + g, update = -lr m."""
    SEEN.append((t, g, moments, h))
    m = h["b"] * moments["m"] + g
    return -h["lr"] * m, {"m": m}


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()


def leaf(p: Tensor, g: Tensor, decay: Any = 0.0, **how: Any) -> Leaf:
    hyper = {"lr": 0.5, "b": 2.0, "weight_decay": decay}
    fields = {"dtype": p.dtype, "maximize": False, "decoupled": False} | how
    moments = {"m": torch.ones_like(p, dtype=fields["dtype"])}
    return Leaf(p, g, torch.tensor(3.0, dtype=torch.float64), moments, hyper, **fields)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("decay", "decoupled"), [(0.0, False), (0.25, False), (0.25, True)])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_step_is_what_it_says(
    maximize: bool, decay: float, decoupled: bool, as_tensor: bool
) -> None:
    p, g = torch.tensor([4.0, -8.0]), torch.tensor([1.0, 2.0])
    given = torch.tensor(decay) if as_tensor else decay
    x = leaf(p, g, given, maximize=maximize, decoupled=decoupled)
    update, t, moments = rule.step(momentum, x)
    sign, coupled = (-1 if maximize else 1), 0.0 if decoupled else decay
    m = 2 + sign * g + coupled * p
    assert moments["m"].tolist() == m.tolist()
    apart = 0.5 * decay * p if decoupled else 0 * p
    assert update.tolist() == (-0.5 * m - apart).tolist()
    assert t == SEEN[0][0] == 4.0
    assert x.t == 3.0
    assert x.moments["m"].tolist() == [1.0, 1.0]


def test_complex_leaves_go_by_parts_and_their_decay_does_not() -> None:
    p, g = torch.tensor([1 + 2j]), torch.tensor([3 - 4j])
    update, _, moments = rule.step(momentum, leaf(p, g, 0.25))
    ((_, seen, parts, _),) = SEEN
    assert seen.tolist() == [[3.25, -3.5]]
    assert parts["m"].tolist() == [[1.0, 0.0]]
    assert moments["m"].tolist() == [5.25 - 3.5j]
    assert update.tolist() == [-2.625 + 1.75j]


def test_hyperparameters_of_each_element_meet_the_parts_of_it() -> None:
    p = torch.tensor([1 + 1j, 2 + 2j])
    x = leaf(p, p)
    x.hyper["lr"] = torch.tensor([1.0, 10.0])
    update, _, moments = rule.step(momentum, x)
    assert SEEN[0][3]["lr"].shape == (2, 1)
    assert update.tolist() == [-moments["m"][0].item(), -10 * moments["m"][1].item()]


def test_a_gradient_enters_in_the_dtype_of_the_moments() -> None:
    p, g = torch.ones(2), torch.full((2,), 0.1, dtype=torch.bfloat16)
    _, _, moments = rule.step(momentum, leaf(p, g, 0.5, dtype=torch.float64, maximize=True))
    assert moments["m"].dtype == torch.float64
    assert moments["m"].tolist() == [2.5 - float(g[0])] * 2, "and its sign is turned there"


def test_no_decay_needs_no_parameter() -> None:
    x = leaf(torch.ones(2), torch.ones(2))._replace(p=None)
    for decoupled in (False, True):
        update, *_ = rule.step(momentum, x._replace(decoupled=decoupled))
        assert update.tolist() == [-1.5, -1.5]
    assert [rule.decays(x) for x in (0, 0.0, 0.1, torch.tensor(0.0))] == [False, False, True, True]
