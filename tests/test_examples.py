"""The examples run as a user runs them, and what they claim to check they do check."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.func import grad_and_value

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, out: Path, *arguments: str) -> str:
    """Run an example in a process of its own, check its plot and return what it printed."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::UserWarning",
            EXAMPLES / f"{name}.py",
            "--out",
            out,
            *arguments,
        ],
        env=os.environ | {"MPLBACKEND": "Agg"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    plot = out / f"{name}.png"
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert plot.stat().st_size > 20_000
    return done.stdout


def percents(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


def test_train_digits(tmp_path):
    printed = run("train_digits", tmp_path, "--epochs", "5")
    assert "The three runs are bit-identical in all 6 parameters." in printed
    accuracies = percents(printed)
    assert len(accuracies) == 3
    assert min(accuracies) > 80
    losses = re.findall(r"Adamax +(\S+)|fa\.adamax +(\S+)", printed)
    assert len(losses) == 3
    assert len({"".join(pair) for pair in losses}) == 1


def test_ensemble_sweep(tmp_path):
    printed = run("ensemble_sweep", tmp_path, "--epochs", "3", "--networks", "12")
    validation, test = percents(printed)
    assert validation > 85
    assert test > 80
    best = float(re.search(r"best learning rate: +(\S+)", printed).group(1))
    assert 1e-3 < best < 0.5
    difference = float(re.search(r"differ by at most (\S+)\.\n", printed).group(1))
    assert difference < 1e-2


def test_switch_from_torch(tmp_path):
    printed = run("switch_from_torch", tmp_path, "--epochs", "1")
    assert "All 20 losses and all 6 parameters are bit-identical" in printed
    for stage in ("torch.optim.Adamax", "compat.Adamax", "fa.adamax", "torch.optim.Adamax again"):
        assert re.search(rf"^{re.escape(stage)} +5 ", printed, re.MULTILINE)


def test_few_shot(tmp_path):
    printed = run("few_shot", tmp_path, "--seeds", "1", "--iterations", "100")

    def after_four_steps(name: str) -> float:
        return percents(re.search(rf"^{name} .*", printed, re.MULTILINE).group())[0]

    assert percents(printed)[0] > 95  # how well the pre-trained network learned its classes
    maml = after_four_steps("MAML  ")
    assert maml > after_four_steps("MAML, not adapted") + 25
    assert maml > after_four_steps("pre-trained, all layers")
    assert maml > after_four_steps("pre-trained, head only")


@pytest.mark.parametrize("first_order", [False, True])
def test_few_shot_learns_a_net_with_a_norm_by_the_gradient_of_a_loop(
    example, monkeypatch, first_order
):
    few_shot = example("few_shot")
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 8), torch.nn.LayerNorm(8), torch.nn.ReLU(), torch.nn.Linear(8, 4)
    ).double()
    monkeypatch.setattr(few_shot, "model", net)
    params = {name: p.detach() for name, p in net.named_parameters()}
    rates = {name: torch.tensor(0.05).double().log() for name in params}
    learner = few_shot.Learner(params, rates)
    bank = torch.rand(1, 6, 20, 64, dtype=torch.float64)
    drawn = few_shot.draw(bank, 1, 3, torch.Generator().manual_seed(0))
    tasks = few_shot.Task(*(few_shot.Part(*(x[0] for x in part)) for part in drawn))

    found, loss = few_shot.outer_gradient(learner, tasks, first_order)
    alone = [
        grad_and_value(few_shot.outer_loss)(
            learner, few_shot.Task(*(few_shot.Part(*(x[i] for x in part)) for part in tasks)),
            first_order,
        )
        for i in range(3)
    ]  # fmt: skip
    torch.testing.assert_close(loss, sum(value for _, value in alone) / 3)
    for i, part in enumerate(found):
        for name, slope in part.items():
            want = sum(slopes[i][name] for slopes, _ in alone) / 3
            torch.testing.assert_close(slope, want, rtol=1e-10, atol=1e-12)
            assert want.any()


def test_learned_rates(tmp_path):
    printed = run("learned_rates", tmp_path, "--iterations", "40", "--runs", "5")
    initial, best, learned = map(float, re.findall(r"([\d.]+) \+- ", printed))
    assert learned < initial / 2
    assert learned < best * 2
    accuracies = percents(printed)
    assert accuracies[2] > accuracies[0] + 10


def test_recipe(tmp_path):
    printed = run("recipe", tmp_path, "--epochs", "3")
    assert "The three runs are bit-identical in all 6 parameters and their averages" in printed
    rows = re.findall(r"^.* ([\d.]+) +([\d.]+)% +([\d.]+)% ", printed, re.MULTILINE)
    assert len(rows) == 3
    assert len(set(rows)) == 1
    assert min(map(float, rows[0][1:])) > 85


def test_sharded(tmp_path):
    """Two runs of one checkpoint have the losses of one run in one process."""

    def run(size: int, steps: int, out: Path) -> list[float]:
        launched = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        command = [sys.executable, *launched, EXAMPLES / "sharded.py", "--out", out]
        done = subprocess.run(
            [*command, "--steps", str(steps)],
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"},
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert (out / "sharded.png").stat().st_size > 20_000
        stretches = json.loads((out / "sharded" / "losses.json").read_text())
        assert stretches[-1][0] == size
        return [loss for _, losses in stretches for loss in losses]

    run(2, 12, tmp_path / "broken")
    broken, whole = run(1, 24, tmp_path / "broken"), run(1, 24, tmp_path / "whole")
    assert len(broken) == len(whole) == 24
    assert broken == pytest.approx(whole, rel=1e-5)  # sums of shards round otherwise
    assert whole[-1] < whole[0] - 2


@pytest.fixture
def example(monkeypatch):
    """Import an example by name, without running it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def one_bit_more(p: torch.Tensor) -> torch.Tensor:
    """Return a copy of ``p`` whose last element is the next larger number."""
    p = p.detach().clone()
    p.view(-1)[-1] = torch.nextafter(p.view(-1)[-1], torch.tensor(torch.inf))
    return p


def test_train_digits_notices_one_bit(example):
    train_digits = example("train_digits")
    params = {"weight": torch.randn(3, 2), "bias": torch.randn(3)}
    same = train_digits.Run(dict(params), [0.5], [0.9], 1.0)
    other = same._replace(params=params | {"bias": one_bit_more(params["bias"])})
    assert train_digits.differences({"a": same, "b": same, "c": same}) == []
    (line,) = train_digits.differences({"a": same, "b": same, "c": other})
    assert line.startswith("bias: a and c differ by up to ")


def test_switch_from_torch_notices_one_bit(example):
    switch = example("switch_from_torch")
    model, other = switch.network(), switch.network()
    assert switch.differences([0.5, 0.25], [0.5, 0.25], model, other) == []
    other[0].bias.data = one_bit_more(other[0].bias)
    found = switch.differences([0.5, 0.25], [0.5, 0.250001], model, other)
    assert [line.split(":")[0] for line in found] == ["loss 1", "0.bias"]


def test_recipe_notices_one_bit(example):
    recipe = example("recipe")
    params = {"weight": torch.randn(3, 2), "bias": torch.randn(3)}
    same = recipe.Run(dict(params), dict(params), [0.5], [0.9], [0.9], [0.1], 1.0)
    averages = params | {"bias": one_bit_more(params["bias"])}
    other = same._replace(averages=averages, rates=[0.1 + 2e-17])
    assert recipe.differences({"a": same, "b": same, "c": same}) == []
    found = recipe.differences({"a": same, "b": other, "c": same})
    assert found == ["averages['bias']: a and b differ", "rates: a and b differ"]
