"""The lines of ``docs/integrations.md``, with our class, with torch's, and with a wrapped one."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax import compat

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
SAVED = {  # what each leaves in the folder
    "Lightning": "lightning.ckpt",
    "Lightning, manual optimization": "manual.ckpt",
    "Lightning Fabric": "fabric.ckpt",
    "Accelerate": "accelerate",
    "Hugging Face Trainer": "trainer/checkpoint-8",
    "skorch": "skorch",
    "Ignite": "ignite.pt",
    "fastai": "fastai",
    "timm": "timm.pt",
    "Pyro": "pyro",
    "Stable-Baselines3": "ppo.zip",
    "GPyTorch": "gp.pt",
    "BoTorch": "bo.pt",
    "TorchRL": "rl.pt",
    "TensorDict": "td.pt",
}
NEW_START = ("Stable-Baselines3",)  # whose environment starts anew, unlike in a run without a break
Nadamax = compat.wrap(fa.nadamax)
OURS = "from functional_adamax.compat import Adamax\n"


def sections() -> dict[str, str]:
    """The code under each heading; that before all of them under none."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    found = {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))
    code = {
        name: re.findall(r"^```python\n(.*?)^```$", x, re.M | re.S) for name, x in found.items()
    }
    return {name: "\n".join(x) for name, x in code.items()}


CODE = sections()


def needs(name: str) -> set[str]:
    """The packages that a section imports, but for those that are always there."""
    found = re.findall(r"^(?:import|from) (\w+)", CODE[name], re.M)
    return set(found) - {"functools", "torch"}


def run(
    name: str, cls: type[Any], folder: Path, start: int, epochs: int, resume: Path | None = None
) -> list[torch.Tensor]:
    """Run a section; return the parameters at its end."""
    folder.mkdir(exist_ok=True)
    given = {"folder": folder, "start": start, "epochs": epochs, "resume": resume, "quiet": QUIET}
    assert OURS in CODE[""]
    setting = CODE[""].replace(OURS, "")
    names: dict[str, Any] = {"__name__": "page", "Adamax": cls, **given}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the libraries
        exec(compile(setting + CODE[name], f"{PAGE.name}, {name}", "exec"), names)
    return [p.detach().clone() for p in names["model"].parameters()]


def compare(name: str, folder: Path) -> None:
    """Hold a section to its twin: without a break, resumed, and resumed from what that saved.

    A wrapped transform has no twin, but goes on as without a break.
    """
    ends = []
    for i, cls in enumerate((compat.Adamax, torch.optim.Adamax, Nadamax)):
        own = folder / str(i)
        early = run(name, cls, own, 0, 1)
        whole = run(name, cls, own, 0, 4)
        run(name, cls, own, 0, 2)
        resumed = run(name, cls, own, 2, 4, own / SAVED[name])
        assert not any(map(torch.equal, early, whole)), "it trains"
        assert name in NEW_START or all(map(torch.equal, whole, resumed)), "as without a break"
        ends.append((whole, resumed))
    (whole, resumed), (twin, resumed_twin), _ = ends
    assert all(map(torch.equal, whole, twin)), "the bits of torch"
    assert all(map(torch.equal, resumed, resumed_twin)), "the bits of torch, resumed"
    run(name, torch.optim.Adamax, folder / "theirs", 0, 2)
    mixed = run(name, compat.Adamax, folder / "mixed", 2, 4, folder / "theirs" / SAVED[name])
    assert all(map(torch.equal, mixed, resumed)), "from a file of torch's"


def test_every_section_is_here() -> None:
    assert {name for name in CODE if name} == set(SAVED)


@pytest.mark.parametrize("name", SAVED)
def test_the_lines_have_the_bits_of_their_twin(name: str, tmp_path: Path) -> None:
    """In a process of its own: some libraries change torch for all that come after them."""
    for package in sorted(needs(name)):
        if not find_spec(package):
            pytest.skip(f"{package} is not installed")
    command = [sys.executable, __file__, name, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    compare(sys.argv[1], Path(sys.argv[2]))
