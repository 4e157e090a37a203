"""The programs of derivatives are made once for each choice, and only of what they need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_program_derivative import FLOAT, RULES, source

from functional_adamax._execution.program import machine, pulled
from functional_adamax._execution.program.pulled import Pulled

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="the machine is not built")


def made(name: str, wanted: tuple[str, ...]) -> Pulled:
    found = pulled.found_for(source(RULES[name], FLOAT), ("y",), wanted)
    assert isinstance(found, Pulled)
    return found


def test_one_is_made_once_for_each_choice() -> None:
    given = source(RULES["mul"], FLOAT)
    first = pulled.found_for(given, ("y",), ("g",))
    assert pulled.found_for(given, ("y",), ("g",)) is first
    assert pulled.found_for(given, ("y",), ("m",)) is not first


def test_it_reads_what_it_needs() -> None:
    assert made("mul", ("g",)).columns == ("cotangent of y", "m")
    assert made("add", ("g", "m")).columns == ("cotangent of y",)


def test_what_no_result_depends_on_has_no_cotangent() -> None:
    found = made("add a number", ("m",))
    assert found.program is None
    assert found.run({}) == {}


def test_one_that_lacks_a_bit_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Pulled.run

    def wrong(self: Pulled, values: Any) -> Any:
        found = run(self, values)
        assert found is not None
        last = found["g"][0].view(-1)[-1:]
        last.copy_(torch.nextafter(last, torch.tensor(torch.inf)))
        return found

    monkeypatch.setattr(Pulled, "run", wrong)
    found = pulled.found_for(source(RULES["mul"], FLOAT), ("y",), ("g",))
    assert found == "the program of its derivative has not the bits of autograd"


def test_several_leaves_at_once_have_their_own_numbers() -> None:
    found = made("learned by way of the count", ("g", "rate c"))
    by = torch.ones(3)
    values = {
        "g": [torch.arange(3.0), torch.arange(3.0)],
        "m": [torch.zeros(3), torch.zeros(3)],
        "t": [torch.tensor(float(t), dtype=torch.float64) for t in (1, 2)],
        "rate c": [torch.tensor(0.5), torch.tensor(0.25)],
        "rate n": [0.0, 0.0],
        "cotangent of y": [by, by],
    }
    got = found.run(values)
    assert got is not None
    assert [x.tolist() for x in got["g"]] == [[0.5] * 3, [0.0625] * 3]
    assert [x.item() for x in got["rate c"]] == [3.0, 3 * 2 * 0.25]
