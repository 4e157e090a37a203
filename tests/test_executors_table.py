"""The table of ``docs/executors.md`` is what its script makes, and names every transform."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import functional_adamax as fa
from functional_adamax._execution.program import machine

SCRIPT = Path(__file__).parents[1] / "docs/executors_table.py"


@pytest.fixture
def script() -> Any:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")
def test_the_table_is_what_the_script_makes(script: Any) -> None:
    page = script.PAGE.read_text(encoding="utf-8")
    assert page.count(script.BEGIN) == page.count(script.END) == 1
    assert script.written(page) == page, "run python docs/executors_table.py"


def test_the_table_has_every_transform(script: Any) -> None:
    made = re.findall(r"^\w+", script.TRANSFORMS, re.MULTILINE)
    returned = {
        name: getattr(getattr(fa, name), "__annotations__", {}).get("return") for name in fa.__all__
    }
    wanted = {name for name, kind in returned.items() if "GradientTransformation" in str(kind)}
    assert {"adamax", "inject_hyperparams"} <= wanted
    assert set(made) == wanted
