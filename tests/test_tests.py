"""Every test can fail, and every module has tests of its name.

A test asserts, expects an error or a warning, or calls a helper that does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in HERE.rglob("*.py")}


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def called(call: ast.Call) -> str:
    """The last name in what is called: ``assert_close`` in ``torch.testing.assert_close()``."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def helper(module: str, name: str) -> tuple[str, ast.FunctionDef] | None:
    """The function that a name means in a module of the tests, and the module it is in."""
    for node in MODULES[module].body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return helper(node.module, alias.name)
    return None


def can_fail(module: str, function: ast.FunctionDef, *above: ast.FunctionDef) -> bool:
    """Whether a function checks something; ``above`` are those that called it."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        found = helper(module, name) if isinstance(node.func, ast.Name) else None
        if found is not None:
            if found[1] not in (function, *above) and can_fail(*found, function, *above):
                return True
        elif name in ("raises", "warns") or name.startswith("assert_"):
            return True
        elif any(k.arg == "check" and ast.unparse(k.value) == "True" for k in node.keywords):
            return True  # a process that must succeed
    return False


def own(node: ast.AST) -> Iterator[ast.AST]:
    """What is below a node, without the functions and classes that are defined there."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            yield child
            yield from own(child)


def faults(module: str) -> list[str]:
    """The tests of a module that check nothing, or may leave before they do."""
    tests = [x for x in functions(MODULES[module]) if x.name.startswith("test_")]
    idle = [f"{x.name} checks nothing" for x in tests if not can_fail(module, x)]
    return idle + [
        f"{x.name} leaves early in line {node.lineno}: call pytest.skip, which is seen"
        for x in tests
        for node in own(x)
        if isinstance(node, ast.Return)
    ]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_test_can_fail(module: str) -> None:
    assert faults(module) == []


IDLE = """
def test_that_calls(): print(1)
def test_that_is_helped(): one()
def one(): two()
def two(): one()
def test_that_leaves():
    if one(): return
    assert True
def test_that_asks(): three()
def three(): assert True
"""


def test_a_test_without_a_check_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "idle", ast.parse(IDLE))
    assert [fault.split(":")[0] for fault in faults("idle")] == [
        "test_that_calls checks nothing",
        "test_that_is_helped checks nothing",
        "test_that_leaves leaves early in line 7",
    ]


PACKAGE = HERE.parent / "functional_adamax"
ELSEWHERE = {  # modules that are tested in what they are parts of
    "_execution/program/captured": "execution/test_program_record.py",
    "_execution/program/columns": "execution/test_program_whole.py",
    "_execution/program/entries": "execution/test_program_whole.py",
    "_execution/program/executor": "execution/test_program_machine.py",
    "_execution/program/forms": "execution/test_program_whole.py",
    "_execution/program/fuse": "execution/test_program_lower.py",
    "_execution/program/graph": "execution/test_program_record.py",
    "_execution/program/kinds": "execution/test_program_whole.py",
    "_execution/program/operations": "execution/test_program_record.py",
    "_execution/program/recorder": "execution/test_program_record.py",
    "_execution/program/stand_ins": "execution/test_program_whole.py",
    "_execution/program/samples": "execution/test_program_whole.py",
    "_execution/program/steps": "execution/test_program_whole.py",
    "_execution/program/tree_recorder": "execution/test_program_whole.py",
    "_execution/program/trees": "execution/test_program_whole.py",
    "compat/_conventions": "compat/test_twin.py",
}


def untested(tests: set[str]) -> list[str]:
    """The modules of the package that no file of ``tests`` is named after.

    ``tests/core/test_sharded_alone.py`` is named after ``_core/sharded.py``,
    ``tests/execution/test_native_kernel.py`` after ``_execution/native/kernel.py``, and
    ``tests/core/test_private.py`` after all that is in ``_core/private``.
    """
    missing = []
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        *room, file = [part.lstrip("_") for part in name.split("/")]
        start = "/".join([*room[:1], "test_"])
        whole = f"{start}{'_'.join(room[1:])}.py"
        wanted = start + "_".join([*room[1:], file])
        found = whole in tests or any(test.startswith(wanted) for test in tests)
        if not (found or name.endswith("__")):
            missing.append(name)
    return sorted(missing)


def test_every_module_has_tests_of_its_name() -> None:
    tests = {path.relative_to(HERE).as_posix() for path in HERE.rglob("test_*.py")}
    assert tests >= set(ELSEWHERE.values())
    assert set(untested(tests)) <= set(ELSEWHERE)


def test_a_module_without_tests_is_found() -> None:
    tests = {path.relative_to(HERE).as_posix() for path in HERE.rglob("test_*.py")}
    lost = {"core/test_norms.py", "execution/test_native_proof.py", "test_moved.py"}
    found = set(untested(tests - lost)) - set(ELSEWHERE)
    assert found == {"_core/norms", "_execution/native/proof", "_moved"}


def test_files_of_tests_have_names_of_their_own() -> None:
    """By which pytest imports them."""
    names = [path.name for path in HERE.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
