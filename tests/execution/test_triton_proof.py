"""The proof that holds Triton's kernels to the rule: what is wrong, or raises, stays off."""

from __future__ import annotations

from typing import Any

import executors
import pytest
import torch
from executors import bits, by_the_rule, copy
from tritons import interpreted, leaf, results

from functional_adamax._execution.triton import executor as triton

WRONG = ("b1", "b2", "eps", "lr", "scale", "decay")


@interpreted
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("on_device", [False, True], ids=["t at hand", "t on the device"])
def test_a_kernel_that_does_not_match_stays_off(
    wrong: str, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = triton._launch

    def off(common: Any, *rest: Any) -> None:
        launch(common._replace(**{wrong: getattr(common, wrong) * (1 + 1e-5)}), *rest)

    monkeypatch.setattr(triton, "_is_at_hand", lambda t: not on_device)
    monkeypatch.setattr(triton, "_proven", {})
    monkeypatch.setattr(triton, "_launch", off)
    x = leaf((4, 3), weight_decay=0.1)
    before = copy(x)
    matters = wrong != ("scale" if on_device else "lr")
    assert executors.triton([x], False, False) != matters
    if matters:
        assert all(torch.equal(a, b) for a, b in zip(x[:5], before[:5], strict=True))
        monkeypatch.setattr(triton, "_launch", launch)
        assert not executors.triton([x], False, False), "once is enough"


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_a_kernel_that_raises_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(triton, "_proven", {})
    monkeypatch.setattr(triton, "_launch", broken)
    x = leaf((4, 3))
    want = by_the_rule(x, False)
    assert not executors.triton([x], False, False)
    executors.plan([x], False, False)()
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(results(x), want, strict=True))


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_nothing_is_proven_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_proven", {})
    common = triton._common(leaf((4, 3)), {})
    assert not triton._is_proven(common, False, capturing=True)
    assert triton._is_proven(common, False, capturing=False)
    assert triton._is_proven(common, False, capturing=True)
