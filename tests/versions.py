"""The suite on other versions of torch and Python, each in an environment of its own.

    python tests/versions.py 2.11.0 2.14.1@python3.13

Each version is installed beside a fresh clone, as little else as the tests need, and removed after
its run: most are several GB. The clone holds what is committed. A row of ``docs/versions.md`` is
what was seen.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "versions.md"
VERSIONS = ("2.11.0", "2.13.0", "2.13.0@python3.13", "2.14.1")
HEADER = "| torch | Python | native code | passed | failed | skipped | minutes | date |"
NATIVE = (
    "from functional_adamax._execution.native import kernel;"
    "from functional_adamax._execution.program import machine;"
    "print('yes' if kernel.is_there() and machine.is_there() else 'no')"
)


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a command that has to succeed; return what it prints."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}\n{done.stderr}")
    return done.stdout.strip()


def constraints(torch: str) -> str:
    """The versions of development, but for torch and the one of Triton that it brings."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    kept = [x for x in lines if not x.startswith(("torch==", "triton=="))]
    return "\n".join([*kept, f"torch=={torch}", ""])


def tested(version: str, arguments: list[str]) -> list[str]:
    """Run the suite on ``torch`` or ``torch@python``; return the row of the table."""
    torch, _, python = version.partition("@")
    with tempfile.TemporaryDirectory() as folder:
        clone, binaries = Path(folder) / "clone", Path(folder) / "environment" / "bin"
        report, pins = Path(folder) / "report.xml", Path(folder) / "constraints.txt"
        pins.write_text(constraints(torch))
        run("git", "clone", "--quiet", ROOT, clone)
        run(python or "python3", "-m", "venv", binaries.parent)
        install = binaries / "pip", "install", "--quiet", "--constraint", pins
        run(*install, f"torch=={torch}", "setuptools>=77", "wheel")
        run(*install, "--editable", ".[test]", cwd=clone)
        tests = binaries / "python", "-m", "pytest", "-n", "auto", f"--junitxml={report}"
        subprocess.run([*map(str, tests), *arguments], cwd=clone)
        numbers = ET.parse(report).getroot()[0].attrib
        count = {key: int(numbers[key]) for key in ("tests", "failures", "errors", "skipped")}
        failed = count["failures"] + count["errors"]
        return [
            torch,
            run(binaries / "python", "-c", "import platform; print(platform.python_version())"),
            run(binaries / "python", "-c", NATIVE, cwd=clone),
            str(count["tests"] - failed - count["skipped"]),
            str(failed),
            str(count["skipped"]),
            str(round(float(numbers["time"]) / 60)),
            datetime.date.today().isoformat(),
        ]


def write(row: list[str]) -> None:
    """Put a row in the place of that of the same versions, or at the end of the table."""
    before, table, after = re.split(rf"({re.escape(HEADER)}\n(?:\|.*\n)+)", PAGE.read_text())
    header, rule, *lines = table.splitlines()
    rows = {tuple(cells[:2]): cells for x in lines if (cells := x.strip("| ").split(" | "))}
    rows[tuple(row[:2])] = row
    numbers = {key: [int(x) for x in re.findall(r"\d+", " ".join(key))] for key in rows}
    ordered = [f"| {' | '.join(rows[key])} |" for key in sorted(rows, key=numbers.__getitem__)]
    PAGE.write_text(before + "\n".join([header, rule, *ordered, ""]) + after)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="TORCH or TORCH@PYTHON")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], help="what to run")
    given = parser.parse_args()
    for version in given.versions:
        row = tested(version, given.pytest)
        print(f"| {' | '.join(row)} |")
        if not given.pytest:
            write(row)
