"""What a first step costs, counted rather than timed: runs of a transform, records and proofs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax._execution.program import entries, machine, programs, proof, trees, whole
from functional_adamax._execution.program import record as records

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")

CHAINS: dict[str, Callable[[], Any]] = {
    "clipped": lambda: fa.chain(
        fa.clip_by_global_norm(1.0),
        fa.scale_by_adamax(),
        fa.add_decayed_weights(0.01),
        fa.scale_by_learning_rate(0.1),
    ),
    "scheduled": lambda: fa.chain(
        fa.clip(1.0),
        fa.scale_by_nadamax(),
        fa.scale_by_learning_rate(fa.cosine_decay_schedule(0.2, 4)),
    ),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often what costs something is called, with no program known."""
    found: Counter[str] = Counter()

    def watch(module: Any, name: str) -> None:
        function = getattr(module, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            found[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    for module, name in (
        (entries, "_agrees"),
        (trees, "record"),
        (records, "_run"),
        (entries, "alone"),
        (programs, "alone"),
        (records, "alone"),
        (programs, "_lowered"),
        (programs, "_made"),
        (proof, "_hold"),
        (proof, "uniform_holds"),
    ):
        watch(module, name)
    whole.forget()
    programs.families.clear()
    yield found
    whole.forget()
    programs.families.clear()


def step(tx: Any) -> None:
    p = {str(n): torch.randn(n + 1) for n in range(6)}
    fa.step(tx, p, tx.init(p), p)


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_recorded_twice_and_run_three_times(name: str, calls: Counter[str]) -> None:
    step(CHAINS[name]())
    whole.forget()
    calls.clear()
    step(CHAINS[name]())
    assert calls == {"record": 2, "_agrees": 3, "alone": 1}
    step(CHAINS[name]())
    assert calls == {"record": 2, "_agrees": 3, "alone": 1}


def test_a_method_is_recorded_twice(calls: Counter[str]) -> None:
    step(fa.nadamax(0.1))
    programs.families.clear()
    calls.clear()
    step(fa.nadamax(0.1))
    assert calls == {"_lowered": 1, "_made": 1, "_run": 2, "alone": 2}


@pytest.mark.parametrize("make", [*CHAINS.values(), lambda: fa.nadamax(0.1)])
def test_the_instructions_of_a_step_are_proven_together(
    make: Any, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_known", {})
    step(make())
    assert calls["_hold"] == 1
    assert len(proof._known) > 3
    assert all(proof._known.values())


@pytest.mark.parametrize("wrong", ["MULTIPLY", "ABS_ADD", "LERP"])
def test_a_wrong_instruction_among_right_ones_is_noticed(wrong: str) -> None:
    """It is told from those that are proven with it."""
    other = {"MULTIPLY": "ADD", "ABS_ADD": "SUBTRACT", "LERP": "MULTIPLY_ADD"}[wrong]
    of_numbers, roots = ("POWER", "TO_FLOAT", "EXACT_ROOT"), ("SQRT", "ROOT", "OVER_TWICE_ROOT")
    ops = [op for op in proof.TORCH if op not in of_numbers + roots]
    pairs = [(other if op == wrong else op, op) for op in ops]
    for dtype in (torch.float32, torch.float64):
        assert proof._hold(pairs, dtype) == [op != wrong for op in ops]
