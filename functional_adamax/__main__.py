"""``python -m functional_adamax``: what is installed, and which executors run here."""

import torch

from . import __version__
from ._execution.native import kernel
from ._execution.program import machine
from ._execution.triton import executor as triton


def main() -> None:
    """Print the report."""
    print(f"functional_adamax {__version__}, torch {torch.__version__}")
    for kind, answer in kernel.report().items():
        print(f"native kernel, CPU, {kind}: {answer}")
    print(f"programs of any rule, CPU: {machine.report()}")
    print(f"Triton kernels of any rule, CUDA: {triton.report()}")
    print(f"threads: {torch.get_num_threads()}")
    print(f"foreach operations of torch, CUDA: {'yes' if torch.cuda.is_available() else 'no GPU'}")


if __name__ == "__main__":
    main()
