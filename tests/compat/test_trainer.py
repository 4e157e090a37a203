"""A Trainer of Hugging Face, which attaches a scheduler of torch to every optimizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax import compat

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

STEPS = 12
WARM = fa.warmup_cosine_decay_schedule(0.0, 0.05, warmup_steps=4, decay_steps=20)
FALLING = fa.cosine_decay_schedule(0.05, 20)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory"),
]


def tiny() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_head=1, n_embd=8, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def samples() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(16, (2 * STEPS, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in tokens]


class Rates(transformers.TrainerCallback):  # type: ignore[misc]
    """Notes what each step of the optimizer used."""

    def __init__(self) -> None:
        self.used: list[float] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.used.append(given["optimizer"].param_groups[0]["lr"])


def trained(folder: Path, schedule: Any, resume: bool = False, **options: Any) -> tuple[Any, Any]:
    """The rates used, and the parameters after 12 steps."""
    model, rates = tiny(), Rates()
    optimizer = compat.Optimizer(model.parameters(), fa.adamaxw, lr=schedule)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=0,
        **{"save_strategy": "no"} | options,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=samples(),
        optimizers=(optimizer, None),
        callbacks=[rates],
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return rates.used, [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("schedule", [WARM, FALLING], ids=["from 0", "from above"])
def test_a_schedule_rules_under_a_constant_scheduler(schedule: Any, tmp_path: Path) -> None:
    used, params = trained(tmp_path, schedule, lr_scheduler_type="constant")
    assert used == [schedule(i) for i in range(STEPS)]
    assert used[11] == schedule(11) > 0
    assert not all(map(torch.equal, params, tiny().parameters()))


def test_a_warm_up_from_zero_rules_under_the_default_scheduler(tmp_path: Path) -> None:
    assert trained(tmp_path, WARM)[0] == [WARM(i) for i in range(STEPS)]


def test_the_default_scheduler_replaces_another_schedule_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="over its schedule, .* the scheduler rules") as caught:
        used = trained(tmp_path, FALLING)[0]
    assert used == pytest.approx([0.05 * (1 - i / STEPS) for i in range(STEPS)])
    assert len([x for x in caught if "over its schedule" in str(x.message)]) == 1


def test_a_resumed_trainer_goes_on_by_the_schedule(tmp_path: Path) -> None:
    options: dict[str, Any] = {"lr_scheduler_type": "constant"}
    used, params = trained(
        tmp_path / "whole", FALLING, save_strategy="steps", save_steps=8, **options
    )
    (tmp_path / "whole" / f"checkpoint-{STEPS}").rename(tmp_path / "last")
    rest, again = trained(tmp_path / "whole", FALLING, resume=True, **options)
    assert rest == used[8:] == [FALLING(i) for i in range(8, STEPS)]
    assert all(map(torch.equal, params, again))
