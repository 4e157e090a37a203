"""The proof that holds the native kernel to the rule finds one wrong bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from executors import needs_kernel

from functional_adamax._core import numerics
from functional_adamax._execution import adamax_rule
from functional_adamax._execution.native import kernel, proof


@needs_kernel
def test_a_kernel_that_differs_in_one_bit_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_in_m(*args: Any, **kwargs: Any) -> Any:
        rows = step(*args, **kwargs)
        last = rows[0][2].view(-1)[-1:]
        last.copy_(torch.nextafter(last, torch.tensor(torch.inf)))
        return rows

    def holds() -> bool:
        kernel.is_active.cache_clear()
        return kernel.is_active(torch.float32, torch.float32, 1)

    step = kernel.step
    assert holds()
    monkeypatch.setattr(kernel, "step", wrong_in_m)
    assert not holds()
    monkeypatch.undo()
    assert holds()


def by_the_rule(leaves: Any, add: bool) -> Any:
    (x,) = leaves
    update, *state = adamax_rule.step(x)
    return [[numerics.add(x.p, update) if add else update, *state]]


@pytest.mark.parametrize("kind", kernel._KINDS, ids=str)
def test_the_rule_itself_holds(kind: tuple[torch.dtype, torch.dtype]) -> None:
    for mode in kernel._KINDS[kind]:
        decay = 0.0 if mode == kernel._NO_DECAY else 0.1
        assert proof.holds(*kind, decay, mode == kernel._DECOUPLED, by_the_rule)


WRONG = {
    "a sign of zero": lambda x: torch.where(x == 0, -x, x),
    "a dtype": lambda x: x.double(),
    "a nan": lambda x: x.nan_to_num(0.0),
    "a denormal number": lambda x: torch.where(x.abs() < 1e-38, 0.0 * x, x),
    "an ulp": lambda x: x.nextafter(torch.tensor(0.0)),
}
PLACES = {"p": 0, "m": 2, "u": 3}
NOT_IN_U = ("a sign of zero", "a denormal number")  # which is eps at least


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wrong", WRONG)
def test_one_odd_result_is_found(wrong: str, place: str) -> None:
    def step(leaves: Any, add: bool) -> Any:
        (row,) = by_the_rule(leaves, add)
        row[PLACES[place]] = WRONG[wrong](row[PLACES[place]])
        return [row]

    fine = place == "u" and wrong in NOT_IN_U
    assert proof.holds(torch.float32, torch.float32, 0.0, False, step) == fine


def test_a_counter_that_stands_still_is_found() -> None:
    def step(leaves: Any, add: bool) -> Any:
        (row,) = by_the_rule(leaves, add)
        return [[row[0], row[1] - 1, *row[2:]]]

    assert not proof.holds(torch.float32, torch.float32, 0.0, False, step)
