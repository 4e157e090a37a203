"""The first step of a process, where torch batches, differentiates or traces it, and the next one.

A process keeps what the first call found out: whether there is a program, or why not. That must not
depend on who follows the call. Each case is a process of its own, and is held against one in which
the machine is switched off.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from executors import bits

from functional_adamax._execution.program import machine

CASES = "batched", "differentiated", "compiled", "exported"
CODE = """
import sys
import torch
from torch.func import grad, vmap
from torch.utils import _pytree
import functional_adamax as fa

CLIP, RATE = fa.clip_by_global_norm(1.0), fa.scale_by_learning_rate(0.1)
TX = fa.chain(CLIP, fa.scale_by_adam(), fa.scale_by_adamax(), RATE)
torch.manual_seed(0)
GRADS, TREE = ({"w": torch.randn(30, 40), "b": torch.randn(40)} for _ in range(2))

def step(grads):
    return fa.step(TX, grads, TX.init(TREE), TREE)

class Step(torch.nn.Module):
    def forward(self, grads):
        return step(grads)

def batched():
    return vmap(step)({name: torch.stack([g, 3 * g]) for name, g in GRADS.items()})

def differentiated():
    return grad(lambda grads: sum(x.pow(3).sum() for x in step(grads)[0].values()))(GRADS)

def compiled():
    return torch.compile(step, backend="eager", fullgraph=True)(GRADS)

def exported():
    return torch.export.export(Step(), (GRADS,)).module()(GRADS)

folder, *names = sys.argv[1:]
for name in names:
    first, later = globals()[name](), step(GRADS)
    taken = [x.executor for x in fa.explain(TX, TREE).leaves]
    torch.save((*map(_pytree.tree_leaves, (first, later)), taken), f"{folder}/{name}.pt")
"""


def found(folder: Path, switch: str, *names: str) -> dict[str, Any]:
    """What a process finds: tensors of the first step and of the next, and who takes a step."""
    command = [sys.executable, "-W", "ignore", "-c", CODE, str(folder), *names]
    env = os.environ | {"FUNCTIONAL_ADAMAX_NATIVE": switch}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: torch.load(folder / f"{name}.pt") for name in names}


@pytest.fixture(scope="module")
def by_rule(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return found(tmp_path_factory.mktemp("by_rule"), "0", *CASES)


@pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")
@pytest.mark.parametrize("name", CASES)
def test_a_first_call_and_the_step_after_it(
    name: str, by_rule: dict[str, Any], tmp_path: Path
) -> None:
    first, later, taken = found(tmp_path, "1", name)[name]
    want, want_later, others = by_rule[name]
    assert (taken, others) == (["program"] * 2, ["as written"] * 2)
    for x, y in zip([*first, *later], [*want, *want_later], strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(bits(x), bits(y))
