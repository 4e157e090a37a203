"""Several processes of one program, which a fork spares the imports."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import torch


def run(work: Callable[..., None], size: int, *given: object) -> int:
    """Call ``work(rank, size, *given)`` in each process; return the largest exit status."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, size, *given)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)
