"""The documentation is true: its code runs, its output is what it says, its links lead somewhere.

In a ``python`` block, a comment on a line that prints is the promised output; ``...`` in it
stands for anything. All blocks of a file run in order, in one namespace.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib.util
import io
import pkgutil
import re
import sys
import tokenize
from pathlib import Path
from types import ModuleType

import pytest
import torch

import functional_adamax as fa
from functional_adamax import compat
from functional_adamax._execution.program import machine

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [fa.__name__, *(m.name for m in pkgutil.walk_packages(fa.__path__, fa.__name__ + "."))]
PUBLIC = {
    "torch": torch,
    **{name: getattr(fa, name) for name in fa.__all__},
    **{name: getattr(compat, name) for name in compat.__all__},
}


NEED_THE_MACHINE = ("docs/executors.md", "functional_adamax._explain")
"""What shows who takes a step where the library was built with a compiler."""


def skip_without_the_machine(name: str) -> None:
    if name in NEED_THE_MACHINE and not machine.is_there():
        pytest.skip("built without a compiler")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def source(name: str) -> str:
    """The text of a module, if it is written in Python."""
    spec = importlib.util.find_spec(name)
    path = Path(spec.origin) if spec and spec.origin else None
    return path.read_text(encoding="utf-8") if path and path.suffix == ".py" else ""


def blocks(path: Path) -> list[tuple[int, str]]:
    """Return (number of the first line, code) of each Python block of a file."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def comments(code: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def promised(statement: ast.stmt, code: list[str], comments: dict[int, str]) -> str:
    """Return the comments on the printing lines of a statement, the output it should have."""
    assert statement.end_lineno is not None
    lines = range(statement.lineno, statement.end_lineno + 1)
    return "\n".join(comments[i] for i in lines if i in comments and "print(" in code[i - 1])


def run(path: Path, namespace: dict[str, object]) -> None:
    checker = doctest.OutputChecker()
    for first, code in blocks(path):
        notes = comments(code)
        for statement in ast.parse(code, str(path)).body:
            want = promised(statement, code.splitlines(), notes)
            ast.increment_lineno(statement, first - 1)
            program = compile(ast.Module([statement], []), str(path), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(program, namespace)
            got = out.getvalue().strip()
            assert checker.check_output(want + "\n", got + "\n", doctest.ELLIPSIS), (
                f"{relative(path)}:{statement.lineno} should print {want!r}, got {got!r}"
            )


ELSEWHERE = ("integrations.md",)  # which tests/integrations runs, where there are the libraries
GUIDES = [path for path in PAGES if blocks(path) and path.name not in ELSEWHERE]


@pytest.mark.parametrize("path", GUIDES, ids=relative)
def test_code_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_the_machine(relative(path))
    module = ModuleType("guide")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    run(path, vars(module))


@pytest.mark.parametrize("name", [name for name in MODULES if ">>> " in source(name)])
def test_docstrings_run(name: str) -> None:
    skip_without_the_machine(name)
    module = importlib.import_module(name)
    namespace = {**PUBLIC, **vars(module)}
    done = doctest.testmod(module, globs=namespace, optionflags=doctest.ELLIPSIS)
    assert done.failed == 0
    assert done.attempted > 0


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=relative)
def test_relative_links_lead_to_files(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [t.split("#")[0] for t in targets if not re.match(r"[a-z]+:|#", t)]
    assert [t for t in local if not (path.parent / t).exists()] == []


def test_readme_shows_short_code_early() -> None:
    first, code = blocks(ROOT / "README.md")[0]
    assert first < 35
    assert len([line for line in code.splitlines() if line.strip()]) <= 14
