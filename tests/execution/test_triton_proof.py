"""The proof that holds Triton's kernels to the rule: what is wrong, or raises, stays off."""

from __future__ import annotations

from typing import Any

import executors
import pytest
import torch
from executors import bits, by_the_rule, copy
from tritons import interpreted, leaf, results, taken

from functional_adamax._execution.triton import executor as triton
from functional_adamax._execution.triton import source


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proof is known."""
    monkeypatch.setattr(triton, "_proven", {})


@interpreted
@pytest.mark.usefixtures("interpreter", "fresh")
@pytest.mark.parametrize("on_device", [False, True], ids=["t at hand", "t on the device"])
@pytest.mark.parametrize("wrong", range(4))
def test_a_number_that_does_not_match_keeps_it_off(
    wrong: int, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = triton._launch

    def off(common: Any, *rest: Any) -> None:
        numbers = list(common.numbers)
        numbers[wrong] *= 1 + 1e-5
        launch(common._replace(numbers=tuple(numbers)), *rest)

    monkeypatch.setattr(triton, "_is_at_hand", lambda t: not on_device)
    monkeypatch.setattr(triton, "_launch", off)
    x = leaf((4, 3), weight_decay=0.1)
    before, leaves = copy(x), taken([x])
    assert not triton.write(leaves)
    assert all(torch.equal(a, b) for a, b in zip(x[:5], before[:5], strict=True))
    monkeypatch.setattr(triton, "_launch", launch)
    assert not triton.write(leaves), "once is enough"
    triton._proven.clear()
    assert triton.write(leaves)


@interpreted
@pytest.mark.usefixtures("interpreter", "fresh")
@pytest.mark.parametrize("op", ["LERP", "ABS_ADD", "MULTIPLY_MAXIMUM", "MULTIPLY_DIVIDE_ADD"])
def test_an_instruction_that_does_not_match_keeps_it_off(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(source.INSTRUCTIONS, op, f"({source.INSTRUCTIONS[op]}) * 1.0001")
    assert not executors.triton([leaf((4, 3))], False, False)


@interpreted
@pytest.mark.usefixtures("interpreter", "fresh")
def test_a_counter_that_does_not_match_keeps_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = triton._launch
    monkeypatch.setattr(triton, "_is_at_hand", lambda t: False)
    monkeypatch.setattr(
        triton, "_launch", lambda x, *rest: launch(x._replace(counted=False), *rest)
    )
    assert not executors.triton([leaf((4, 3))], False, False)


@interpreted
@pytest.mark.usefixtures("interpreter", "fresh")
def test_a_kernel_that_raises_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(triton, "_launch", broken)
    x = leaf((4, 3))
    want = by_the_rule(x, False)
    assert not executors.triton([x], False, False)
    executors.plan([x], False, False)()
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(results(x), want, strict=True))


@interpreted
@pytest.mark.usefixtures("interpreter", "fresh")
def test_nothing_is_proven_in_a_capture() -> None:
    (common,) = triton._grouped(taken([leaf((4, 3))]))
    assert not triton._is_proven(common, capturing=True)
    assert triton._is_proven(common, capturing=False)
    assert triton._is_proven(common, capturing=True)
