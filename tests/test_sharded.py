"""Sharded parameters in several processes: the numbers of one, and nothing hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 600.0
"""Seconds for all of a run on a busy machine; a process waits 30 for another that hangs."""


def run(size: int, folder: Path, *which: str, script: str = "sharded") -> None:
    """Run a script, and fail with all that it printed, or when it hangs."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
    }
    process = subprocess.Popen(
        [sys.executable, str(ROOT / f"tests/{script}.py"), str(size), str(folder), *which],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"{size} processes hang:\n{process.communicate()[0]}")
    assert process.returncode == 0, output


def test_every_transform_in_two_processes(tmp_path: Path) -> None:
    run(2, tmp_path, "every")


def test_couplings_are_global_in_three_processes(tmp_path: Path) -> None:
    run(3, tmp_path, "coupled")


def test_couplings_and_noise_do_not_depend_on_the_layout_in_four_processes(tmp_path: Path) -> None:
    run(4, tmp_path, "layouts")


def test_a_run_goes_on_in_another_number_of_processes(tmp_path: Path) -> None:
    """Saved in four, resumed in two, in one and in four again: as one that was never broken."""
    for size, start, end in ((4, 0, 5), (2, 5, 10), (1, 10, 20), (4, 20, 22)):
        run(size, tmp_path, str(start), str(end), script="sharded_resume")
