"""Train a small GPT that is sharded over processes, and go on with another number of them.

The model learns to write Python from the sources of the standard library, byte by byte. Its
parameters are sharded by FSDP2, and the optimizer is a chain whose clipping takes the norm of all
gradients in all processes. A run ends by saving a checkpoint; a run that finds one goes on from
there:

    torchrun --nproc-per-node 2 examples/sharded.py --steps 100
    torchrun --nproc-per-node 1 examples/sharded.py --steps 200

The plot shows the losses of both in one curve. It runs on CPUs, by gloo.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from _digits import GREEN, ORANGE, PINK, SKY, new_plot, save_plot
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import functional_adamax as fa
from functional_adamax.compat import Optimizer

CONTEXT, BATCH = 64, 32  # bytes of a window, windows of a batch in all processes together
RECIPE = fa.chain(
    fa.clip_by_global_norm(1.0),
    fa.scale_by_adamax(),
    fa.masked(fa.add_decayed_weights(0.05), lambda params: [p.ndim > 1 for p in params]),
    fa.scale_by_learning_rate(fa.warmup_cosine_decay_schedule(0.0, 0.02, 20, 400)),
)


class Stretch(NamedTuple):
    """The steps of one run."""

    processes: int
    losses: list[float]


class GPT(nn.Module):
    """A decoder that predicts the next byte."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Embedding(CONTEXT, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Scores, (n, length, 256), of what comes after each of the bytes ``text``, (n, length)."""
        x = self.bytes(text) + self.places.weight[: text.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.head(self.norm(x))


def sources() -> Tensor:
    """The bytes of the modules of the standard library that are files of their own."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in files)), dtype=torch.uint8)


def batch(text: Tensor, step: int, rank: int, size: int) -> Tensor:
    """Return the windows of one process, (n, CONTEXT + 1); those of all are given by the step."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text) - CONTEXT, (BATCH,), generator=generator)[rank::size]
    return torch.stack([text[i : i + CONTEXT + 1] for i in starts.tolist()]).long()


def train(model: nn.Module, optimizer: Optimizer, steps: Iterable[int]) -> list[float]:
    """Take some steps; return the losses over all processes."""
    text = sources()
    rank, size = dist.get_rank(), dist.get_world_size()
    losses = []
    for step in steps:
        windows = batch(text, step, rank, size)
        optimizer.zero_grad()
        scores = model(windows[:, :-1])
        loss = cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        mean = loss.detach() / size
        dist.all_reduce(mean)
        losses.append(mean.item())
    return losses


def processes(size: int) -> str:
    """Return their number in words."""
    return f"{size} process{'es' if size > 1 else ''}"


def plot(stretches: list[Stretch], out: Path) -> None:
    """Draw the losses of all runs as one curve."""
    figure, (ax,) = new_plot("A GPT on the sources of the standard library")
    first = 0
    for i, (size, losses) in enumerate(stretches):
        steps = range(first, first + len(losses))
        ax.plot(steps, losses, color=(ORANGE, SKY, GREEN, PINK)[i % 4], label=processes(size))
        first += len(losses)
    ax.set(xlabel="step", ylabel="loss, nats a byte")
    ax.legend(frameon=False)
    save_plot(figure, out / "sharded.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="after which the run ends")
    parser.add_argument("--out", type=Path, default=Path("out"), help="of the plot and checkpoint")
    options = parser.parse_args()
    saved = options.out / "sharded"

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = GPT()
    mesh = init_device_mesh("cpu", (size,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = Optimizer(model.parameters(), RECIPE)

    stretches: list[Stretch] = []
    if saved.exists():
        # Not of an optimizer that is to start anew: torch takes a first step to see its state.
        weights, moments = get_state_dict(model, optimizer)
        checkpoint.load({"model": weights, "optimizer": moments}, checkpoint_id=saved)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
        stretches = [Stretch(*x) for x in json.loads((saved / "losses.json").read_text())]
    done = sum(len(x.losses) for x in stretches)
    if done >= options.steps:
        raise SystemExit(f"{saved} is at step {done}: give more --steps, or another --out")
    steps = tqdm(range(done, options.steps), unit="step", disable=rank > 0)
    stretches.append(Stretch(size, train(model, optimizer, steps)))

    weights, moments = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": moments}, checkpoint_id=saved)
    if rank == 0:
        (saved / "losses.json").write_text(json.dumps(stretches))
        last = stretches[-1].losses[-1]
        print(f"steps {done} to {options.steps}, {processes(size)}: loss {last:.4f}")
        plot(stretches, options.out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
