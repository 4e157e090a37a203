"""Programs for the uniforms of a row: what those decide is left out, and the bits stay."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import functional_adamax as fa
from functional_adamax._execution.program import machine, proof
from functional_adamax._execution.program.lower import Layout, Program, lower
from functional_adamax._execution.program.record import Input, record

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")

Rule = Callable[[dict[str, Any]], dict[str, Tensor]]

COLUMNS, NUMBERS = ("g", "p", "m"), ("a", "b", "c")
VALUES = (0.0, 1.0, -1.0, 2.5, float("nan"))
SIZE = 2 * 65536 + 300  # three blocks, the last of which is short


def program(rule: Rule, dtype: torch.dtype, outputs: tuple[str, ...]) -> Program:
    inputs = {name: Input(True, dtype) for name in COLUMNS}
    inputs |= {name: Input(False, dtype) for name in NUMBERS}
    layout = Layout(COLUMNS, [(f"new {x}", x) for x in outputs], [], NUMBERS)
    return lower(record(rule, inputs, torch.ones(3)), layout)


def assert_right(
    rule: Rule, dtype: torch.dtype, outputs: tuple[str, ...], numbers: dict[str, float], size: int
) -> None:
    """A program has the bits of the rule with these numbers, in place and not."""
    found = program(rule, dtype, outputs)
    signed = not {x.op for x in found.vector} & set(proof.ZEROS)
    x = {name: torch.randn(size, dtype=dtype) for name in COLUMNS}
    uniforms = {name: torch.tensor(value, dtype=dtype) for name, value in numbers.items()}
    wanted = rule(x | uniforms)
    given = [float(uniforms[name]) for name in NUMBERS]
    for in_place in (False, True):
        new = {name: value.clone() for name, value in x.items()}
        part = machine.Part(proof.made(found), tuple([new[name]] for name in COLUMNS), ())
        if in_place:
            assert machine.overwrite([machine.Step([part], [], [*given])])
        else:
            results: list[list[Any]] = [[None] for _ in outputs]
            assert machine.into_new(part, [*given], results)
            assert all(torch.equal(new[name], x[name]) for name in COLUMNS)
            new |= {name: column[0] for name, column in zip(outputs, results, strict=True)}
        for name in outputs:
            assert proof.same_bits(new[name], wanted[f"new {name}"], signed), (name, in_place)


def made(seed: int) -> Rule:
    """A rule of random operations, many of which a uniform decides."""

    def rule(x: dict[str, Any]) -> dict[str, Tensor]:
        draw = random.Random(seed)
        known = [x[name] for name in COLUMNS]
        for _ in range(draw.randrange(2, 14)):
            y, z = draw.choice(known), draw.choice(known)
            number = x[draw.choice(NUMBERS)]
            known.append(
                draw.choice(
                    (
                        lambda y=y, z=z, n=number: torch.where(n != 0, y, z),
                        lambda y=y, z=z, n=number: torch.where(n > 0, y, z),
                        lambda y=y, n=number: y * n,
                        lambda y=y, n=number: n * y,
                        lambda y=y, n=number: y / n,
                        lambda y=y, z=z: y + z,
                        lambda y=y, z=z: y - z,
                        lambda y=y, z=z: torch.maximum(y, z),
                        lambda y=y, z=z: torch.where(y < z, y, z),
                        lambda y=y: y.abs(),
                    )
                )()
            )
        return {f"new {name}": draw.choice(known[-6:]) for name in COLUMNS}

    return rule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", range(150))
def test_random_rules(seed: int, dtype: torch.dtype) -> None:
    draw = random.Random(seed)
    rule = made(seed)
    for _ in range(4):
        numbers = {name: draw.choice(VALUES) for name in NUMBERS}
        assert_right(rule, dtype, COLUMNS, numbers, draw.choice((1, 70, 1000)))


def test_blocks_and_threads() -> None:
    numbers = {"a": 1.0, "b": 0.0, "c": 2.5}
    for seed in range(5):
        assert_right(made(seed), torch.float32, COLUMNS, numbers, SIZE)


def test_a_column_that_is_written_before_what_it_was_is_read_elsewhere() -> None:
    def rule(x: dict[str, Any]) -> dict[str, Tensor]:
        kept = torch.where(x["a"] != 0, x["p"], x["g"])
        p = x["p"] * x["g"]
        return {"new p": p, "new m": kept * p}

    for a in (0.0, 1.0):
        assert_right(rule, torch.float32, ("p", "m"), {"a": a, "b": 1.0, "c": 1.0}, 1000)


@pytest.fixture
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor keeps denormal numbers")
    yield
    torch.set_flush_denormal(False)


def test_products_with_one_flush_denormals_where_torch_does(flushing: Any) -> None:
    x = torch.full((3,), 1e-40)
    found = program(lambda x: {"new p": x["p"] * x["a"]}, torch.float32, ("p",))
    columns = tuple([x.clone()] for _ in COLUMNS)
    results: list[list[Any]] = [[None]]
    part = machine.Part(machine.assembled(found), columns, ())
    assert machine.into_new(part, [1.0, 0.0, 0.0], results)
    wanted = x * torch.tensor(1.0)
    assert torch.equal(results[0][0].view(torch.int32), wanted.view(torch.int32))


def test_memory_that_a_condition_leaves_alone_is_not_written() -> None:
    rule: Rule = lambda x: {"new p": torch.where(x["a"] != 0, x["p"] * x["g"], x["p"])}  # noqa: E731
    found = machine.assembled(program(rule, torch.float32, ("p",)))
    p = torch.tensor([1.0, float("nan")])
    p.view(torch.int32)[1] = 0x7FA00000  # which any arithmetic would make quiet
    part = machine.Part(found, ([p.clone()], [p], [p.clone()]), ())
    assert machine.overwrite([machine.Step([part], [], [0.0, 0.0, 0.0])])
    assert p.view(torch.int32).tolist() == [0x3F800000, 0x7FA00000]


def test_a_norm_of_what_is_multiplied_by_one() -> None:
    tx = fa.chain(fa.scale(1.0), fa.clip_by_global_norm(1.0))
    g, p = [torch.randn(300)], [torch.randn(300)]
    wanted = p[0] + g[0] * (1.0 / g[0].double().norm()).float()
    new, _ = fa.step(tx, g, tx.init(p), p, donate=True)
    torch.testing.assert_close(new[0], wanted)
