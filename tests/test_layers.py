"""What the import linter cannot see of the layers; its own rules are in pyproject.toml."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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


FOR_COMPAT = "_core.private.optim"


@pytest.mark.parametrize(
    "name", [x for x in sorted(MODULES) if not x.startswith(("compat.", FOR_COMPAT))]
)
def test_compat_alone_imports_torch_optim(name: str) -> None:
    assert [x for x in imports(MODULES[name]) if x.startswith("torch.optim")] == []
    assert "private import optim" not in MODULES[name].read_text()


def is_private(name: str) -> bool:
    return (name.startswith("_") and not name.startswith("__")) or name == "experimental"


def defined(tree: ast.Module) -> Iterator[str]:
    """The names that a file gives to something."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield from [node.attr] if ast.unparse(node.value) == "self" else []


def private_names(tree: ast.Module, own: set[str]) -> list[str]:
    """What a file uses under a private name that is none of our ``own``: attributes, words for
    ``getattr``, and imports of torch."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("torch.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and node.attr not in own:
            found.append(node.attr)
        elif isinstance(node, ast.Constant) and str(node.value).isidentifier():
            found += [str(node.value)] if str(node.value) not in own else []
    return [x for x in found if any(map(is_private, x.split(".")))]


PARSED = {
    path.relative_to(PACKAGE.parent): ast.parse(path.read_text())
    for folder in ("functional_adamax", "compat")
    for path in (PACKAGE.parent / folder).rglob("*.py")
}
PRIVATE = Path("functional_adamax/_core/private")
INHERITED = {*dir(torch.optim.Optimizer([torch.ones(1)], {}))}
OWN = {name for path, tree in PARSED.items() if path.parent != PRIVATE for name in defined(tree)}
OWN |= {part for path in PARSED for part in path.with_suffix("").parts}
OWN = (OWN - INHERITED) | {"_replace", "_fields", "_make", "_asdict", "_getframe"}


@pytest.mark.parametrize("path", [x for x in sorted(PARSED) if x.parent != PRIVATE], ids=str)
def test_what_is_private_to_torch_has_one_home(path: Path) -> None:
    moved = {"_schedule", "_variants"} if path.name == "_moved.py" else set()
    assert private_names(PARSED[path], OWN | moved) == []


@pytest.mark.parametrize(
    "code",
    [
        "import torch._dynamo",
        "from torch._C import _len_torch_dispatch_stack",
        "from torch.fx.experimental.symbolic_shapes import has_static_value",
        "from torch.utils import _pytree",
        "torch._foreach_add_([x], y)",
        "level = torch.autograd.forward_ad._current_level",
        "x.grad_fn._sequence_nr()",
        "getattr(torch.overrides, '_get_current_function_mode_stack', None)",
        "optimizer._optimizer_state_dict_post_hooks = {}",
    ],
)
def test_the_check_finds_private_names(code: str) -> None:
    assert len(private_names(ast.parse(code), OWN)) == 1


def test_importing_the_functional_side_does_not_import_compat() -> None:
    assert not any(home.startswith("compat") for home in functional_adamax._HOME.values())


def test_the_page_names_every_file_and_folder() -> None:
    page = (PACKAGE.parent / "docs/layout.md").read_text()
    tree = page[page.index("## The tree") : page.index("## One gradient")]
    parts = {part for name in FILES for part in name.split(".")}
    assert [part for part in sorted(parts) if f"`{part}" not in tree] == []


LENGTH = 250
REASON = "The file is longer than others: "


def too_long(path: Path) -> bool:
    """Whether a file is long, and does not say in its first words why."""
    text = path.read_text()
    stated = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
    return len(text.splitlines()) > LENGTH and REASON not in stated


def test_long_files_say_why() -> None:
    files = [*PACKAGE.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]
    assert [path.name for path in files if too_long(path)] == []


def test_a_long_file_without_a_reason_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    for lines, doc, found in ((249, "", False), (250, "", True), (250, REASON + "why.", False)):
        path.write_text(f'"""What it does. {doc}"""\n' + "pass\n" * lines)
        assert too_long(path) is found


WRITERS = {  # executors, and what commits a step
    "_core.donation",
    "_core.private.foreach",
    "_execution.by_rule",
    "_execution.foreach",
    "_execution.inplace",
    "_execution.native.kernel",
    "_execution.operator",
    "_execution.program.recorder",
    "_execution.program.steps",
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
