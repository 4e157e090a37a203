"""What ``pip install .`` installs."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

import functional_adamax as fa
from functional_adamax._execution import native
from functional_adamax._execution.native import kernel
from functional_adamax._execution.triton import executor as triton

ROOT = Path(__file__).parents[1]
NATIVE = "functional_adamax/_execution/native"


def copied(folder: Path) -> Path:
    """The sources, without what was built in their place."""
    source = folder / "source"
    ignored = shutil.ignore_patterns(".venv", ".git", "*.egg-info", "*.so", "build", "out")
    shutil.copytree(ROOT, source, ignore=ignored)
    return source


def test_the_wheel_holds_both_import_names_and_nothing_else(tmp_path: Path) -> None:
    source = copied(tmp_path)
    command = "-m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir"
    subprocess.run([sys.executable, *command.split(), tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    built = {f"{NATIVE}/{name}.abi3.so" for name in ("_native", "_machine")}
    assert built <= files or kernel._native is None, "this one was built with a compiler"
    packages = ("functional_adamax", "compat")
    wanted = {
        str(path.relative_to(ROOT))
        for package in packages
        for pattern in ("*.py", "*.pyi", "py.typed")
        for path in (ROOT / package).rglob(pattern)
    }
    assert files - built == wanted


def test_what_the_sdist_holds_is_what_an_installation_needs(tmp_path: Path) -> None:
    source = copied(tmp_path)
    command = [sys.executable, "-c", "import setuptools.build_meta as b; print(b.build_sdist('.'))"]
    subprocess.run(command, check=True, cwd=source, capture_output=True)
    (sdist,) = source.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / NATIVE).glob("*.[ch]")}
    assert wanted | {"setup.py", "LICENSE", "functional_adamax/__init__.pyi"} <= files
    assert not any(name.startswith("tests") for name in files)


def test_the_stub_of_the_kernel_names_its_functions() -> None:
    if kernel._native is None:
        pytest.skip("built without a compiler")
    stub = ast.parse((ROOT / NATIVE / "_native.pyi").read_text())
    functions = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert functions == {name for name in dir(kernel._native) if not name.startswith("_")}


def test_the_public_names_are_those_of_the_stub() -> None:
    stub = ast.parse((ROOT / "functional_adamax/__init__.pyi").read_text())
    found = {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert found == fa._HOME
    assert sorted(found) == fa.__all__
    assert set(fa.__all__) <= set(dir(fa))
    assert all(getattr(fa, name) is not None for name in fa.__all__)
    with pytest.raises(AttributeError, match="no attribute 'adamx'"):
        fa.adamx  # noqa: B018


def test_importing_is_quick_because_modules_are_imported_when_they_are_used() -> None:
    code = "import sys, functional_adamax; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
    found = [x for x in printed.split() if x.startswith("functional_adamax.")]
    assert found == ["functional_adamax._moved"], "which finds what old pickles name"
    assert "torch" not in printed.split(), "what is needed of it comes with the first name"


def test_both_names_import_in_a_fresh_process() -> None:
    code = (
        "import sys, functional_adamax as fa; "
        "assert 'functional_adamax.compat' not in sys.modules; "
        "import compat, functional_adamax.compat; "
        "assert compat.Adamax is functional_adamax.compat.Adamax; assert fa.__version__"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True, cwd="/")


def test_the_report_says_which_executors_run() -> None:
    command = [sys.executable, "-m", "functional_adamax"]
    if kernel._why_not.startswith("switched off"):
        pytest.skip("what another process finds is not known in this one")
    found = "yes" if kernel._native else f"no: {kernel._why_not}"
    for switch, word in (("1", found), ("0", "no: switched")):
        env = os.environ | {"FUNCTIONAL_ADAMAX_NATIVE": switch}
        printed = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert f"native kernel, CPU, float32: {word}" in printed.stdout
        assert f"native kernel, CPU, float64: {word}" in printed.stdout
        assert f"programs of any rule, CPU: {word}" in printed.stdout


@pytest.mark.parametrize("why", ["", "this torch has no memory to hand out"])
def test_why_there_is_no_native_code(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not built, or refused by the module itself."""

    def missing(name: str) -> Any:
        raise ImportError(why) if why else ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    monkeypatch.setenv("FUNCTIONAL_ADAMAX_NATIVE", "1")
    assert native.loaded("_native") == (None, why or "built without a C compiler")


def test_the_report_says_whether_triton_runs() -> None:
    found = triton.report()
    assert found == "yes" or found.startswith("no: ")
    off = "no: switched off by FUNCTIONAL_ADAMAX_TRITON=0"
    for switch, answer in (("1", found), ("0", off)):
        env = os.environ | {"FUNCTIONAL_ADAMAX_TRITON": switch}
        command = [sys.executable, "-m", "functional_adamax"]
        printed = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert f"Triton kernels of any rule, CUDA: {answer}\n" in printed.stdout
