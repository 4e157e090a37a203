"""The derivative of each operation that a record may have, and of what has none here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from functional_adamax._core.numerics import root
from functional_adamax._execution.program import derivative as derivatives
from functional_adamax._execution.program import machine, proof, pulled
from functional_adamax._execution.program.graph import Declined
from functional_adamax._execution.program.lower import Layout, lower
from functional_adamax._execution.program.pulled import Source
from functional_adamax._execution.program.record import Input, context, record

Values = dict[str, Any]
pytestmark = pytest.mark.skipif(not machine.is_there(), reason="the machine is not built")

FLOAT, DOUBLE = torch.float32, torch.float64
SPECIAL = [0.0, -0.0, 1.0, 1.0, -1.0, 1e-30, torch.inf, -torch.inf, torch.nan, 0.5, 2.0, -3.0]


def source(rule: Callable[[Values], Tensor], dtype: torch.dtype, like: str = "g") -> Source:
    """The record of a rule of two vectors, a number of the leaf, a tensor of one, and a number."""
    inputs = {
        "g": Input(True, dtype),
        "m": Input(True, dtype),
        "t": Input(False, DOUBLE),
        "rate c": Input(False, dtype),
        "rate n": Input(False, None),
    }

    def whole(x: Values) -> dict[str, Tensor]:
        return {"y": rule(x)}

    return Source(whole, record(whole, inputs, torch.ones(3, dtype=dtype)), inputs, context())


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return 2 * x

    @staticmethod
    def backward(ctx: Any, by: Tensor) -> Tensor:
        del ctx
        return by


def without_grad(x: Values) -> Tensor:
    with torch.no_grad():
        y = x["m"] * 2
    return x["g"] + y


RULES: dict[str, Callable[[Values], Tensor]] = {
    "add": lambda x: x["g"] + x["m"],
    "add a multiple": lambda x: torch.add(x["g"], x["m"], alpha=x["rate n"]),
    "add a number": lambda x: x["g"] + x["rate n"],
    "add a learned number": lambda x: x["g"] + x["rate c"],
    "sub": lambda x: x["g"] - x["m"],
    "sub a multiple": lambda x: torch.sub(x["g"], x["m"], alpha=3.0),
    "rsub": lambda x: x["rate n"] - x["g"],
    "mul": lambda x: x["g"] * x["m"],
    "mul by a learned number": lambda x: x["g"] * x["rate c"],
    "square": lambda x: x["g"] * x["g"],
    "div": lambda x: x["g"] / x["m"],
    "div by a learned number": lambda x: x["g"] / x["rate c"],
    "a number over": lambda x: x["rate n"] / x["g"] * x["m"],
    "neg": lambda x: -x["g"] + x["m"],
    "abs": lambda x: x["g"].abs() * x["m"],
    "sign": lambda x: x["g"].sign() * x["m"],
    "sqrt": lambda x: root(x["g"]) * x["m"],
    "lerp": lambda x: torch.lerp(x["g"], x["m"], x["rate n"]),
    "lerp by a learned number": lambda x: torch.lerp(x["g"], x["m"], x["rate c"]),
    "addcmul": lambda x: torch.addcmul(x["g"], x["m"], x["m"]),
    "addcmul of a learned number": lambda x: torch.addcmul(x["g"], x["m"], x["rate c"]),
    "maximum": lambda x: torch.maximum(x["g"], x["m"]),
    "minimum": lambda x: torch.minimum(x["g"], x["m"]),
    "where": lambda x: torch.where(x["g"] > x["m"], x["g"] * x["m"], x["m"]),
    "masked": lambda x: x["g"].masked_fill(x["m"] > 0, 0.5) * x["m"],
    "clamp": lambda x: x["g"].clamp(-0.5, 1.0) * x["m"],
    "clamp below": lambda x: x["g"].clamp_min(0.5) * x["m"],
    "clone": lambda x: x["g"].clone() * x["m"],
    "learned by way of the count": lambda x: (
        x["g"] * (x["rate c"].double() ** x["t"]).to(x["g"].dtype)
    ),
    "used three times": lambda x: x["g"] * x["m"] + x["g"].abs() + x["g"] / 3,
}
OF_LIBRARY = ("sqrt",)  # of which torch's in float64 may not be IEEE's


@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_it_is_that_of_autograd(name: str, dtype: torch.dtype) -> None:
    if dtype == DOUBLE and name in OF_LIBRARY and not proof.is_proven("SQRT", DOUBLE):
        pytest.skip("torch's root in float64 is not IEEE's here")
    given = source(RULES[name], dtype)
    depends = [x for x in ("g", "m", "rate c") if _enters(given, x)]
    found = pulled.found_for(given, ("y",), tuple(depends))
    assert not isinstance(found, str), found
    a, b = torch.meshgrid(*[torch.tensor(SPECIAL, dtype=dtype)] * 2, indexing="ij")
    x: Values = {"g": a.flatten().clone(), "m": b.flatten().clone(), "rate n": 0.3}
    x |= {"t": torch.tensor(3.0, dtype=DOUBLE), "rate c": torch.tensor(0.7, dtype=dtype)}
    inputs = [x[key].requires_grad_() for key in depends]
    y = given.rule(x)["y"]
    by = torch.randn(len(y), dtype=dtype)
    wanted = torch.autograd.grad(y, inputs, by)
    values = {key: [z.detach() if isinstance(z, Tensor) else z] for key, z in x.items()}
    made = found.run(values | {"cotangent of y": [by]})
    assert made is not None
    for key, z in zip(depends, wanted, strict=True):
        (got,) = made.get(key, [torch.zeros_like(z)])
        assert proof.same_bits(got, z), key


@pytest.mark.parametrize(
    "rule",
    [
        lambda x: x["g"].clamp(-0.5, 1.0) * x["m"],
        lambda x: x["m"].clamp_min(0.25) * x["g"],
        lambda x: x["g"].clamp_max(-x["rate n"]),
    ],
    ids=["two", "one", "of a rate"],
)
def test_what_clamp_does_at_its_bounds_is_seen(
    rule: Callable[[Values], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where versions of torch differ."""
    assert not isinstance(pulled.found_for(source(rule, FLOAT), ("y",), ("g",)), str)
    other = {"LESS": "LESS_EQUAL", "LESS_EQUAL": "LESS"}[derivatives._within_bound()]
    monkeypatch.setattr(derivatives, "_within_bound", lambda: other)
    assert isinstance(pulled.found_for(source(rule, FLOAT), ("y",), ("g", "m")), str)


SEVERAL_USES: dict[str, Callable[[Values], Tensor]] = {
    "two casts": lambda x: (
        x["g"] * (1 - x["rate c"].double()).float()
        + x["m"] * (x["rate c"].double() ** x["t"]).float()
    ),
    "two vectors": lambda x: x["g"] * x["rate c"] + x["m"].abs() * x["rate c"],
    "two vectors, and a number between": lambda x: (
        x["g"] * (c := x["rate c"].double()) + x["m"] * (c**2).float() + x["m"].abs() * c
    ),
    "two operands": lambda x: (
        torch.lerp(x["rate c"], x["g"], x["rate c"]) * x["m"] + x["m"].abs() * x["rate c"]
    ),
}


@pytest.mark.parametrize("name", SEVERAL_USES)
def test_a_number_of_several_uses_has_the_bits_of_autograd(name: str) -> None:
    """Each use rounds and sums its cotangent, and they are added in the order of autograd."""
    rule = SEVERAL_USES[name]
    given = source(rule, FLOAT)
    found = pulled.found_for(given, ("y",), ("rate c",))
    assert not isinstance(found, str), found
    for _ in range(50):
        x: Values = {"g": torch.randn(5), "m": torch.randn(5), "rate c": torch.rand(())}
        x |= {"t": torch.tensor(3.0, dtype=DOUBLE), "rate n": 0.3}
        by = torch.randn(5)
        made = found.run({key: [z] for key, z in x.items()} | {"cotangent of y": [by]})
        assert made is not None
        c = x["rate c"].clone().requires_grad_()
        (wanted,) = torch.autograd.grad(rule(x | {"rate c": c}), c, by)
        assert torch.equal(made["rate c"][0], wanted)


def test_what_a_rule_computes_twice_is_computed_once() -> None:
    """In the program, while the record has it twice."""
    given = source(lambda x: (x["g"] * x["m"]) / 3 + (x["g"] * x["m"]) * 5, FLOAT)
    assert [x.op for x in given.graph.nodes].count("MULTIPLY") == 3
    layout = Layout(["g", "m"], [("y", "g")], [], ["t", "rate c", "rate n"])
    program = lower(given.graph, layout)
    assert sum("MULTIPLY" in x.op for x in program.vector) == 2, program.vector


def _enters(given: Source, name: str) -> bool:
    graph = given.graph
    return name in derivatives.inputs_of(graph.outputs.values())


@pytest.mark.parametrize("op", derivatives._PULLS)
def test_a_wrong_formula_is_noticed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is held against autograd before it is used."""

    def twice(make: Any, x: Any, ct: Any) -> Any:
        return make("ADD", ct, ct)

    rules = [x for x in RULES.values() if op in {y.op for y in source(x, FLOAT).graph.nodes}]
    rule = source(rules[0], FLOAT)
    wanted = tuple(x for x in ("g", "m") if _enters(rule, x))
    count = len(derivatives._PULLS[op])
    assert not isinstance(pulled.found_for(rule, ("y",), wanted), str)
    monkeypatch.setitem(derivatives._PULLS, op, (twice,) * count)
    found = pulled.found_for(source(rules[0], FLOAT), ("y",), wanted)
    assert isinstance(found, str)


UNFOLLOWED: dict[str, Callable[[Values], Tensor]] = {
    "detach": lambda x: x["g"] * x["m"].detach(),
    "no_grad": without_grad,
    "a function of autograd": lambda x: Doubled.apply(x["g"]) + x["m"],
}


@pytest.mark.parametrize("name", UNFOLLOWED)
def test_what_autograd_does_not_follow_declines(name: str) -> None:
    rule = source(UNFOLLOWED[name], FLOAT)
    found = pulled.found_for(rule, ("y",), ("g", "m"))
    assert found == "it keeps autograd from following it"


def test_an_operation_without_a_formula_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(derivatives._PULLS, "ABS")
    with pytest.raises(Declined, match="not known here how to differentiate abs"):
        derivatives.derivative(source(RULES["abs"], FLOAT).graph, ["y"], ["g"])
