"""What is made of a record: each operation once, nothing that nobody reads, several in one.

The file is longer than others: all passes of one module are in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from functional_adamax._core.numerics import root, sign
from functional_adamax._execution.program import machine, proof
from functional_adamax._execution.program.graph import Declined
from functional_adamax._execution.program.lower import Layout, Program, lower
from functional_adamax._execution.program.record import Input, record

Rule = Callable[[dict[str, Tensor]], dict[str, Tensor]]

INPUTS = {name: Input(True, torch.float32) for name in ("g", "p", "m")}
INPUTS |= {"t": Input(False, torch.float64), "lr": Input(False, torch.float64)}


def layout(*outputs: str) -> Layout:
    return Layout(("g", "p", "m"), [(f"new {x}", x) for x in outputs], [("t", "new t")], ["lr"])


def program(rule: Rule, *outputs: str, dtype: torch.dtype = torch.float32) -> Program:
    inputs = {
        name: given._replace(dtype=dtype) if given.vector else given
        for name, given in INPUTS.items()
    }
    return lower(record(rule, inputs, torch.ones(3)), layout(*outputs))


def counted(x: dict[str, Tensor], **outputs: Tensor) -> dict[str, Tensor]:
    return {f"new {name}": value for name, value in outputs.items()} | {"new t": x["t"] + 1}


def ops(found: Program) -> list[str]:
    return [x.op for x in found.vector]


def run(found: Program, x: dict[str, Tensor], in_place: bool) -> dict[str, Tensor]:
    """The columns and the counter after a step."""
    x = {name: value.clone() for name, value in x.items()}
    columns = tuple([x[name]] for name in ("g", "p", "m"))
    part = machine.Part(proof.made(found), columns, ([x["t"]],))
    numbers: machine.Numbers = [float(x["lr"])]
    if in_place:
        assert machine.overwrite([machine.Step([part], [], numbers)])
        return x
    names = [("g", "p", "m")[k] for k in found.of] + ["t"]
    results = [[x[name]] for name in names]
    assert machine.into_new(part, numbers, results)
    return x | {name: column[0] for name, column in zip(names, results, strict=True)}


def assert_right(rule: Rule, *outputs: str) -> Program:
    """The program has the bits of the rule, in place and not."""
    found = program(rule, *outputs)
    if machine.is_there():
        x = {
            name: torch.randn(1000 if y.vector else (), dtype=y.dtype) for name, y in INPUTS.items()
        }
        wanted = rule(x)
        for in_place in (False, True):
            got = run(found, x, in_place)
            for name in (*outputs, "t"):
                assert proof.same_bits(got[name], wanted[f"new {name}"]), name
    return found


def test_an_operation_is_done_once_and_only_if_it_is_read() -> None:
    def rule(x: Any) -> Any:
        x["g"].abs()
        return counted(x, p=(x["g"] - x["m"]) * (x["g"] - x["m"]))

    assert ops(assert_right(rule, "p")) == ["SUBTRACT", "MULTIPLY"]


def test_uniforms_are_computed_once_for_a_leaf() -> None:
    def rule(x: Any) -> Any:
        return counted(x, p=x["g"] * (x["lr"] / (1 - 0.9 ** x["t"])).float())

    found = assert_right(rule, "p")
    assert ops(found) == ["MULTIPLY"]
    assert [x.op for x in found.uniform] == ["POWER", "SUBTRACT", "DIVIDE", "TO_FLOAT", "ADD"]
    assert len(found.sources) == 1


FUSED: dict[str, Rule] = {
    "ROOT": lambda x: counted(x, p=root(x["g"])),
    "SIGN_OR_NAN": lambda x: counted(x, p=sign(x["g"])),
    "ABS_ADD": lambda x: counted(x, p=x["g"].abs() + x["lr"]),
    "MULTIPLY_ADD": lambda x: counted(x, p=x["p"] + x["g"] * x["lr"]),
    "DIVIDE_ADD": lambda x: counted(x, p=x["p"] / x["g"] + x["lr"]),
    "MULTIPLY_DIVIDE": lambda x: counted(x, p=x["p"] * x["lr"] / x["g"]),
    "MULTIPLY_MAXIMUM": lambda x: counted(x, p=torch.maximum(x["p"] * x["lr"], x["g"])),
    "MULTIPLY_DIVIDE_ADD": lambda x: counted(x, p=x["p"] + x["m"] * x["lr"] / x["g"]),
    "ADD_PRODUCT_ADD": lambda x: counted(x, p=x["p"] + torch.addcmul(x["m"], x["p"], x["g"])),
    "AVERAGE_SQUARE": lambda x: counted(
        x, m=torch.addcmul(x["m"] * x["lr"], x["g"] * (1 - x["lr"]), x["g"])
    ),
    "SUM_OF_PRODUCTS": lambda x: counted(x, p=x["p"] * x["lr"] + x["g"] * x["m"]),
}


@pytest.mark.parametrize("name", FUSED)
def test_several_operations_become_one(name: str) -> None:
    found = assert_right(FUSED[name], "m" if name == "AVERAGE_SQUARE" else "p")
    assert ops(found) == [name]


def test_what_somebody_else_reads_is_not_hidden() -> None:
    def rule(x: Any) -> Any:
        size = x["g"].abs()
        return counted(x, p=size + x["lr"], m=size)

    assert ops(assert_right(rule, "p", "m"))[:2] == ["ABS", "ADD"]


def test_results_wait_for_those_who_read_what_was_there() -> None:
    def rule(x: Any) -> Any:
        p = x["p"] * 2
        return counted(x, p=p, m=x["m"] - x["p"], g=p - x["p"])

    found = assert_right(rule, "p", "m", "g")
    assert ops(found).count("MOVE") == 1


def test_columns_that_change_places() -> None:
    def rule(x: Any) -> Any:
        return counted(x, p=x["m"], m=x["p"], g=x["g"])

    assert_right(rule, "p", "m", "g")


def test_one_result_in_two_columns() -> None:
    def rule(x: Any) -> Any:
        y = x["g"] + x["m"]
        return counted(x, p=y, m=y)

    assert_right(rule, "p", "m")


def test_a_result_that_is_a_number() -> None:
    def rule(x: Any) -> Any:
        return counted(x, p=torch.full_like(x["g"], 0.1), m=torch.zeros_like(x["m"]))

    assert_right(rule, "p", "m")


def test_registers_are_used_again() -> None:
    def rule(x: Any) -> Any:
        y = x["g"]
        for _ in range(40):
            y = torch.maximum(y - x["m"], y)
        return counted(x, p=y)

    assert assert_right(rule, "p").registers <= 3


def test_a_record_that_is_too_long_declines() -> None:
    def rule(x: Any) -> Any:
        kept = [x["g"] * (i + 2.0) for i in range(50)]
        y = x["g"]
        for z in kept:
            y = torch.maximum(y, z)
        for z in kept:
            y = torch.minimum(y, z)
        return counted(x, p=y)

    if machine.is_there():
        with pytest.raises(Declined, match="not so many registers"):
            proof.made(program(rule, "p"))


def test_a_root_in_double_is_one_in_single() -> None:
    def rule(x: Any) -> Any:
        return counted(x, p=x["g"].double().sqrt().float(), m=x["m"].double().float())

    assert ops(program(rule, "p", "m")) == ["SQRT", "MOVE"]


def test_other_arithmetic_in_double_is_done_in_double() -> None:
    def rule(x: Any) -> Any:
        return counted(x, p=torch.addcmul(*[x["g"].double()] * 3).float())

    found = program(rule, "p")
    assert found.dtype == torch.float64
    assert ops(found) == ["LOAD_F32", "ADD_PRODUCT", "STORE_F32"]


def test_arithmetic_in_float32_and_in_float64_declines() -> None:
    def rule(x: Any) -> Any:
        single = torch.addcmul(x["m"], x["g"], x["g"])
        return counted(x, p=torch.addcmul(*[x["g"].double()] * 3).float(), m=single)

    with pytest.raises(Declined, match="in float32, and in float64"):
        program(rule, "p", "m")


def typed(rule: Rule, *outputs: str, **dtypes: torch.dtype) -> Program:
    """The program for columns of several dtypes."""
    inputs = INPUTS | {name: Input(True, dtype) for name, dtype in dtypes.items()}
    return lower(record(rule, inputs, torch.ones(3)), layout(*outputs))


def test_columns_of_several_dtypes_are_loaded_and_stored() -> None:
    def rule(x: Any) -> Any:
        m = torch.lerp(x["m"], x["g"].float(), 0.1)
        return counted(x, p=(x["p"] + m).to(x["p"].dtype), m=m)

    found = typed(rule, "p", "m", g=torch.bfloat16, p=torch.float16)
    assert ops(found) == ["LOAD_BF16", "LOAD_F16", "LERP", "ADD", "STORE_F16"]
    assert found.types == [
        *(torch.bfloat16, torch.float16, torch.float32),
        *(torch.float16, torch.float32),
    ]


def test_an_operation_in_halves_is_rounded_unless_it_need_not() -> None:
    half = torch.bfloat16

    def rule(x: Any) -> Any:
        return counted(x, p=(x["p"] * x["lr"] - x["g"].abs()).float(), m=-x["m"])

    found = typed(rule, "p", "m", g=half, p=half, m=half)
    assert ops(found).count("ROUND_BF16") == 2
    assert sorted(found.of_halves) == [
        (op, half) for op in ("ABS", "MULTIPLY", "NEGATE", "SUBTRACT")
    ]


def test_halves_are_compared_before_they_are_rounded() -> None:
    half = torch.float16

    def rule(x: Any) -> Any:
        return counted(x, m=torch.maximum(x["m"] * 0.9, x["g"].abs() + x["lr"]))

    found = typed(rule, "m", g=half, m=half)
    assert ops(found)[2:] == ["ABS_ADD", "MULTIPLY_MAXIMUM", "STORE_F16"]


def test_a_result_that_is_a_truth_value_declines() -> None:
    with pytest.raises(Declined, match=r"a result in torch\.bool"):
        program(lambda x: counted(x, p=x["g"] > 0), "p")


def test_numbers_round_as_torch_rounds_them() -> None:
    """In float64 between uniforms, once to float32 where they meet elements."""

    def rule(x: Any) -> Any:
        third = x["lr"].float() / 3
        return counted(x, p=(x["g"] + 0.1) * third + third * x["lr"], m=x["m"] * (x["lr"] / 3))

    assert_right(rule, "p", "m")
