"""How the code is built, in figures: lines of code, and the calls that one step takes.

Run as ``python benchmarks/structure.py``. Calls are calls of the package's Python functions in a
step after the first few, comprehensions aside; a call *enters* a file if the one before it was in
another, and *returns* if it had been there before.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import functional_adamax as fa
from functional_adamax.compat import Adamax, Optimizer

PACKAGE = Path(fa.__file__).parent
WARM_UP = 5


class Calls(NamedTuple):
    """What a step takes."""

    calls: int
    entered: int
    files: int

    @property
    def returns(self) -> int:
        return self.entered - self.files


def code_lines(path: Path) -> int:
    """Lines of a file that hold code: no docstrings, comments or blank lines."""
    text = path.read_text()
    lines: set[int] = set()
    skipped = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    )
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            lines -= set(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    return len(lines)


def calls_of(step: Callable[[], Any]) -> Calls:
    """Count the calls of ``step`` at run time, once it has settled."""
    for _ in range(WARM_UP):
        step()
    files: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        del argument
        code = frame.f_code
        inside = code.co_filename.startswith(str(PACKAGE))
        if event == "call" and inside and not code.co_name.startswith("<"):
            files.append(code.co_filename)

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    entered = sum(i == 0 or files[i - 1] != file for i, file in enumerate(files))
    return Calls(len(files), entered, len(set(files)))


def functional(tx: Any, leaves: int = 1) -> Callable[[], Any]:
    """One pure update of a tree."""
    params = {f"p{i}": torch.zeros(3) for i in range(leaves)}
    grads = {name: torch.ones(3) for name in params}
    state = tx.init(params)
    return lambda: tx.update(grads, state, params)


def classic(make: Callable[[list[Any]], Any], leaves: int = 1) -> Callable[[], Any]:
    """One step of an optimizer."""
    params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(leaves)]
    for p in params:
        p.grad = torch.ones(3)
    step: Callable[[], Any] = make(params).step
    return step


def recorded() -> Callable[[], Any]:
    """One step that autograd records."""
    tx, params = fa.adamax(), {"w": torch.zeros(3, requires_grad=True)}
    grads, state = {"w": torch.ones(3)}, tx.init(params)
    return lambda: fa.step(tx, grads, state, params)


def steps() -> dict[str, Callable[[], Any]]:
    """The ways that are counted."""
    schedule = fa.linear_schedule(0.1, 0.0, 10)
    chain = fa.chain(fa.scale_by_adamax(), fa.scale_by_learning_rate(schedule))
    decayed = fa.chain(
        fa.clip_by_global_norm(1.0),
        fa.scale_by_adamax(),
        fa.add_decayed_weights(0.1),
        fa.scale_by_learning_rate(schedule),
    )
    rates = {f"p{i}": torch.ones(3) if i == 0 else 0.1 for i in range(8)}
    return {
        "adamax, update": functional(fa.adamax()),
        "one elementwise lr": functional(fa.adamax({"p0": torch.ones(3)})),
        "one elementwise lr of 8 leaves": functional(fa.adamax(rates), 8),
        "compat.Adamax.step": classic(Adamax),
        "compat.Adamax.step, 8 leaves": classic(Adamax, 8),
        "Optimizer(adam).step": classic(lambda params: Optimizer(params, fa.adam)),
        "Optimizer(adam).step, 2 leaves": classic(lambda params: Optimizer(params, fa.adam), 2),
        "a recorded step": recorded(),
        "chain with a schedule, update": functional(chain),
        "the same in Optimizer": classic(lambda params: Optimizer(params, chain)),
        "clip, decay and schedule, update": functional(decayed),
        "the same in Optimizer ": classic(lambda params: Optimizer(params, decayed)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", action="store_true", help="list the lines of each file")
    options = parser.parse_args()
    print(f"{'way':34} {'calls':>6} {'entered':>8} {'files':>6} {'returns':>8}")
    for name, step in steps().items():
        found = calls_of(step)
        print(f"{name:34} {found.calls:6} {found.entered:8} {found.files:6} {found.returns:8}")
    files = sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")])
    counted = {path: code_lines(path) for path in files}
    if options.files:
        for path, lines in counted.items():
            print(f"{lines:6} {path.relative_to(PACKAGE)}")
    print(f"{sum(counted.values()):6} lines of code in {len(counted)} files of Python")


if __name__ == "__main__":
    main()
