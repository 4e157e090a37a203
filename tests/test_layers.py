"""Imports go one way: each module may import only modules of the layers below its own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import functional_adamax

PACKAGE = Path(functional_adamax.__file__).parent

LAYERS = [
    {
        "_context",
        "_memory",
        "_native",
        "_node",
        "_sharded",
        "_spelling",
        "_symbols",
        "_triton_kernel",
    },
    {"_affine", "_bounded", "_capture", "_numerics", "_traced_tree"},
    {"_rule", "_tree"},
    {"_adamax_rule", "_check", "_donation", "_hyper"},
    {
        "_checkpoint",
        "_growth",
        "_kernel_proof",
        "_loss",
        "_norm",
        "_remat",
        "_selection",
        "_triton_table",
        "_work",
    },
    {"_apply", "_by_rule", "_inplace", "_kernel", "_triton_proof"},
    {"_batched", "_foreach", "_operator", "_plan", "_recorded", "_triton"},
    {"_execute", "_transform"},
    {"_curve", "_links", "_noise", "_schedule", "_stage"},
    {
        "_accumulate",
        "_adaptive_clip",
        "_arguments",
        "_centralize",
        "_chain",
        "_clip",
        "_conditional",
        "_decay",
        "_finite",
        "_masked",
        "_method",
        "_momentum",
        "_piecewise",
        "_plateau",
        "_sam",
        "_scale",
        "_schedules",
        "_step",
    },
    {
        "_adam",
        "_adamax",
        "_averaging",
        "_inject",
        "_lion",
        "_lookahead",
        "_nadamax",
        "_rmsprop",
        "_schedule_free",
        "_sgd",
        "_unroll",
        "_warmup",
    },
    {"_implicit", "_join", "_state", "_variants"},
    {"__init__"},
    {"__main__"},
    {
        "compat._closure",
        "compat._compiled",
        "compat._factory",
        "compat._groups",
        "compat._layout",
        "compat._shown",
        "compat._values",
    },
    {"compat._entries"},
    {"compat._loading"},
    {"compat._schedules", "compat._shell"},
    {"compat._optimizer"},
    {"compat._lift", "compat._saved"},
    {"compat._convert"},
    {"compat._adamax", "compat._inner", "compat._wrap"},
    {"compat.__init__"},
]
ABOVE = {name: i for i, layer in enumerate(LAYERS) for name in layer}


def modules() -> dict[str, Path]:
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")]
    return {".".join(f.relative_to(PACKAGE).with_suffix("").parts): f for f in files}


def imported(name: str, path: Path) -> tuple[set[str], set[str]]:
    """The modules of the package that a file imports, and the packages from outside."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            here = name.split(".")[: -node.level]
            module = ".".join([*here, *(node.module or "").split(".")]).strip(".")
            known = [f"{module}.{alias.name}".strip(".") for alias in node.names]
            inside |= {k if k in modules() else module or "__init__" for k in known}
    return inside, outside


def test_every_module_has_a_layer() -> None:
    assert set(modules()) == set(ABOVE)


def test_the_page_names_every_module() -> None:
    page = (PACKAGE.parent / "docs/layout.md").read_text()
    table = page[page.index("| Layer | Files |") : page.index("Three rules beside the table")]
    named = re.findall(r"`((?:compat/)?_\w+)(?:\.py)?`", table)
    modules = [name.replace(".", "/") for name in ABOVE if "__" not in name]
    assert set(named) == set(modules)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down(name: str) -> None:
    inside, outside = imported(name, modules()[name])
    for module in inside:
        assert ABOVE[module] < ABOVE[name], f"{name} imports {module}"
    roots = {module.split(".")[0] for module in outside}
    if name not in ("_node", "_tree"):
        assert "optree" not in roots, "the pytree library has its home"
    if not name.startswith("compat"):
        assert not any(module.startswith("torch.optim") for module in outside)


def test_importing_the_functional_side_does_not_import_compat() -> None:
    assert not any(home.startswith("compat") for home in functional_adamax._HOME.values())


def test_the_pure_path_has_no_in_place_operation() -> None:
    """Methods that end in an underscore write; only executors, and what commits, may call them."""
    writers = {
        "_operator",
        "_inplace",
        "_foreach",
        "_kernel",
        "_triton",
        "_triton_table",
        "_by_rule",
        "_donation",
        "_schedule",
    }
    for name, path in modules().items():
        if name in writers or name.startswith("compat"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
                fine = not node.attr.endswith("_") or node.attr == "requires_grad_"
                assert fine, f"{name} calls {node.attr}"
