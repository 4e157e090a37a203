"""Steps as programs that ``torch.export`` saves and AOTInductor packages."""

from __future__ import annotations

import importlib
import io
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pytest
import torch
from recipes import RECIPES, Recipe
from torch.utils import _pytree
from trees import assert_close, assert_equal, grads_like, leaves

import functional_adamax as fa
from functional_adamax import compat
from functional_adamax._core import node

MODULES = [
    importlib.import_module(m.name)
    for m in pkgutil.walk_packages(fa.__path__, fa.__name__ + ".")
    if not m.name.endswith(("__main__", "._native", "._machine"))
]


def is_named_tuple(x: Any) -> bool:
    return isinstance(x, type) and issubclass(x, tuple) and hasattr(x, "_fields")


STATES = {  # whatever is public or calls itself a state, by the module that defines it
    x
    for module in MODULES
    for x in vars(module).values()
    if is_named_tuple(x)
    and (x.__name__.endswith("State") or x.__name__ in {*fa.__all__, *compat.__all__})
} - {fa.GradientTransformation, fa.LeafUpdate}  # which are no states


def test_the_states_are_found() -> None:
    assert {fa.AdamaxState, fa.EmptyState, fa.Unrolled, compat.TorchState} <= STATES
    assert len(STATES) >= 22


@pytest.mark.parametrize("kind", sorted(STATES, key=lambda x: x.__name__))
def test_every_state_has_a_public_name_under_which_torch_saves_it(kind: Any) -> None:
    home = compat if kind is compat.TorchState else fa
    assert getattr(home, kind.__name__) is kind
    assert kind.__module__ == home.__name__, "its module may move"
    tree = kind(*range(len(kind._fields)))
    text = _pytree.treespec_dumps(_pytree.tree_structure(tree))
    assert f'"{home.__name__}.{kind.__name__}"' in text.replace("\\", "")
    assert _pytree.treespec_loads(text) == _pytree.tree_structure(tree)
    assert list(get_type_hints(kind)) == list(kind._fields)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_no_saved_state_names_a_private_module(recipe: Recipe) -> None:
    state = recipe.default().init({"w": torch.ones(2), "n": None, "i": torch.ones(1).int()})
    structure = _pytree.tree_structure(state)
    assert _pytree.treespec_loads(_pytree.treespec_dumps(structure)) == structure
    saved = pickle.dumps(state)
    assert b"functional_adamax._" not in saved
    assert_equal(pickle.loads(saved), state)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert_equal(torch.load(file, weights_only=True), state)


def test_states_of_earlier_pickles_are_found_where_they_name_them() -> None:
    old = b"cfunctional_adamax._adamax\nAdamaxState\n(I1\nI2\nI3\ntR."
    assert pickle.loads(old) == fa.AdamaxState(1, 2, 3)


def test_a_torch_without_names_for_states_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_pytree, "_register_namedtuple")

    class Kept(NamedTuple):
        x: Any

    assert node.public_node(Kept) is Kept
    assert leaves(Kept(torch.ones(1)))[0] == 1


class Step(torch.nn.Module):
    def __init__(self, tx: fa.GradientTransformation) -> None:
        super().__init__()
        self.tx = tx

    def forward(self, params: Any, state: Any, grads: Any) -> Any:
        return fa.step(self.tx, grads, state, params)


class Update(Step):
    def forward(self, params: Any, state: Any, grads: Any) -> Any:
        return self.tx.update(grads, state, params)


TRANSFORMS = {
    "adamax": fa.adamax(0.1),
    "adam": fa.adam(0.1),
    "schedule": fa.adamax(fa.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10)),
    "chain": fa.chain(fa.clip_by_global_norm(1.0), fa.scale_by_adamax(), fa.scale(-0.1)),
    "partition": fa.partition(
        {"w": fa.named_chain(("method", fa.adamaxw(0.1))), "b": fa.set_to_zero()},
        {"w": "w", "b": "b"},
    ),
    "injected": fa.inject_hyperparams(fa.adamw)(0.1),
}


def given(tx: fa.GradientTransformation) -> tuple[Any, Any, Any]:
    """Parameters and state after a step, and gradients."""
    tree = {"w": torch.randn(4, 3), "b": torch.randn(4)}
    return *fa.step(tx, grads_like(tree), tx.init(tree), tree), grads_like(tree)


def loaded(module: torch.nn.Module, args: tuple[Any, ...], strict: bool) -> Any:
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, args, strict=strict), file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.parametrize(("kind", "strict"), [(Step, False), (Step, True), (Update, True)])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_saved_program_takes_the_step(
    name: str, kind: type[Step], strict: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    module = kind(TRANSFORMS[name])
    tree, state, grads = given(module.tx)
    program = loaded(module, (tree, state, grads), strict)
    for _ in range(3):
        got, want = program(tree, state, grads), module(tree, state, grads)
        assert type(got[1]) is type(want[1])
        assert_equal(got, want)
        state, grads = got[1], grads_like(tree)
    assert "Weights only load failed" not in capfd.readouterr().err


def test_a_program_is_loaded_by_a_process_that_names_its_states(tmp_path: Path) -> None:
    module = Step(TRANSFORMS["schedule"])
    args = given(module.tx)
    torch.export.save(torch.export.export(module, args), tmp_path / "step.pt2")
    torch.save((args, module(*args)), tmp_path / "values.pt")
    code = """
import sys, torch
from functional_adamax import AdamaxState, ScheduledState
program = torch.export.load(f"{sys.argv[1]}/step.pt2").module()
args, (params, state) = torch.load(f"{sys.argv[1]}/values.pt")
new, after = program(*args)
assert torch.equal(new["w"], params["w"]), (new, params)
assert torch.equal(after.inner.exp_inf["b"], state.inner.exp_inf["b"])
assert type(after) is ScheduledState and type(after.inner) is AdamaxState
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("failed")) == (0, 0), done.stderr


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_a_packaged_step_is_the_step(tmp_path: Path) -> None:
    module = Step(TRANSFORMS["schedule"])
    tree, state, grads = given(module.tx)
    program = torch.export.export(module, (tree, state, grads))
    file = str(tmp_path / "step.pt2")
    package = torch._inductor.aoti_load_package(
        torch._inductor.aoti_compile_and_package(program, package_path=file)
    )
    for _ in range(3):
        got, want = package(tree, state, grads), module(tree, state, grads)
        assert type(got[1]) is fa.ScheduledState
        assert type(got[1].inner) is fa.AdamaxState
        assert_close(got, want, (tree, state, grads))
        tree, state = got
