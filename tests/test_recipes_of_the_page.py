"""The recipes of ``docs/layout.md`` for a stage, a method, an executor, followed to the letter."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import grad, vmap
from trees import assert_equal, grads_like, params

import functional_adamax as fa
from functional_adamax._execution import choice
from functional_adamax.compat import Optimizer

PAGE = Path(__file__).parents[1] / "docs/layout.md"


def block(word: str) -> str:
    """The code block of the page with a word in it."""
    parts = PAGE.read_text().split("```")[1::2]
    (found,) = (part.removeprefix("python\n") for part in parts if word in part)
    return found


def of(block: str, cut: str) -> str:
    """What of a block would be the file: all before its trial."""
    return block[: block.index(cut)].strip()


CODE = {
    "stage": of(block("class Sign(Stage)"), "signed = "),
    "method": of(block("class Signum(Method)"), "method = "),
}


@pytest.fixture(params=list(CODE))
def made(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The transform of a recipe, from a module of its own."""
    module: Any = types.ModuleType(f"made_{request.param}")
    sys.modules[module.__name__] = module
    exec(compile(CODE[request.param], str(PAGE), "exec"), module.__dict__)
    yield module.sign if request.param == "stage" else lambda: module.signum(0.1, weight_decay=0.1)
    del sys.modules[module.__name__]


@pytest.mark.parametrize(("name", "most"), [("stage", 25), ("method", 60)])
def test_a_recipe_is_short(name: str, most: int) -> None:
    lines = [line for line in CODE[name].splitlines() if line.strip() and line.strip()[0] != "#"]
    assert len(lines) <= most


def test_a_recipe_does_what_it_says(made: Any) -> None:
    """The sign of the gradient, or of its average, which begins at zero."""
    tx, g = made(), torch.tensor([2.0, -0.5, 0.0])
    updates, _ = tx.update(g, tx.init(torch.zeros(3)), torch.zeros(3))
    stage = tx.init(torch.zeros(3)) == fa.EmptyState()
    assert torch.equal(updates, g.sign() if stage else -0.1 * g.sign())


def test_a_recipe_steps_in_every_way(made: Any) -> None:
    tx, p = made(), params()
    g, state = grads_like(p), tx.init(p)
    new = fa.step(tx, g, state, p)
    assert_equal(fa.step(tx, g, state, p), new)
    three = torch.utils._pytree.tree_map(lambda x: torch.stack([x] * 3), (g, state, p))
    members = vmap(lambda g, s, p: fa.step(tx, g, s, p))(*three)
    assert_equal(torch.utils._pytree.tree_map(lambda x: x[1], members), new)
    donated = torch.utils._pytree.tree_map(torch.clone, (state, p))
    assert_equal(fa.step(tx, g, *donated, donate=True), new)
    assert pickle.loads(pickle.dumps(tx.update)) == tx.update


def test_a_recipe_is_differentiable(made: Any) -> None:
    tx, p = made(), {"w": torch.randn(3, dtype=torch.float64)}

    def after(p: Any) -> Any:
        return fa.step(tx, {"w": p["w"] ** 2}, tx.init(p), p)[0]["w"].sum()

    assert grad(after)(p)["w"].isfinite().all()


def test_a_recipe_is_an_optimizer(made: Any) -> None:
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    w.grad = torch.tensor([0.5, -3.0])
    optimizer, tx = Optimizer([w], made), made()
    wanted = fa.step(tx, w.grad, tx.init(w.detach()), w.detach())[0]
    optimizer.step()
    assert torch.equal(w.detach(), wanted)


@pytest.mark.parametrize("method", [fa.adamax(0.1), fa.adam(0.1, maximize=True), fa.lion(0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recipe_is_an_executor(
    method: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = types.ModuleType("made_executor")
    exec(compile(block("def part(work"), str(PAGE), "exec"), module.__dict__)
    taken: list[int] = []

    def part(*arguments: Any) -> Any:
        rows = module.part(*arguments)
        taken.extend(rows)
        return rows

    p = {"a": torch.ones(2, dtype=dtype), "b": torch.ones(0, 3, dtype=dtype)}
    g, state = grads_like(p), method.init(p)
    wanted = method.update(g, state, p), fa.step(method, g, state, p)
    executor = types.SimpleNamespace(part=part, compute=lambda work, add: None)
    monkeypatch.setattr(choice, "_order", lambda work: (executor, (executor,)))
    assert_equal((method.update(g, state, p), fa.step(method, g, state, p)), wanted)
    assert taken == [1, 1]
