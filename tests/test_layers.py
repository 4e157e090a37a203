"""What the import linter cannot see of the layers; its own rules are in pyproject.toml."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import functional_adamax

PACKAGE = Path(functional_adamax.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}
FILES = sorted(name for name in MODULES if not name.endswith("__"))


def imports(path: Path) -> Iterator[str]:
    """The absolute names of what a file imports from outside."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", [x for x in sorted(MODULES) if not x.startswith("compat.")])
def test_compat_alone_imports_torch_optim(name: str) -> None:
    assert [x for x in imports(MODULES[name]) if x.startswith("torch.optim")] == []


def test_importing_the_functional_side_does_not_import_compat() -> None:
    assert not any(home.startswith("compat") for home in functional_adamax._HOME.values())


def test_the_page_names_every_file_and_folder() -> None:
    page = (PACKAGE.parent / "docs/layout.md").read_text()
    tree = page[page.index("## The tree") : page.index("## One gradient")]
    parts = {part for name in FILES for part in name.split(".")}
    assert [part for part in sorted(parts) if f"`{part}" not in tree] == []


WRITERS = {  # executors, and what commits a step
    "_core.donation",
    "_execution.by_rule",
    "_execution.foreach",
    "_execution.inplace",
    "_execution.native.kernel",
    "_execution.operator",
    "_execution.triton.executor",
    "_execution.triton.table",
    "_schedules.scheduled",
}


@pytest.mark.parametrize("name", [x for x in FILES if x not in WRITERS and "compat" not in x])
def test_the_pure_path_has_no_in_place_operation(name: str) -> None:
    """Methods that end in an underscore write."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            fine = not node.attr.endswith("_") or node.attr == "requires_grad_"
            assert fine, f"{name} calls {node.attr}"
