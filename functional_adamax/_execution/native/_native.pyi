from collections.abc import Callable, Mapping
from typing import Any

def activate(kind: int, decay: int, /) -> None: ...
def are_ready(leaves: list[Any], maximize: bool, decoupled: bool, /) -> bool: ...
def step(
    leaves: list[Any],
    maximize: bool,
    decoupled: bool,
    add: bool,
    threads: int,
    /,
) -> list[list[Any]]: ...
def plan(leaves: list[Any], maximize: bool, decoupled: bool, /) -> object | None: ...
def run(planned: object, increment: Callable[[list[Any]], Any], threads: int, /) -> bool: ...
def advance(
    groups: list[Any],
    state: Mapping[Any, Any],
    known: list[Any],
    increment: Callable[[list[Any]], Any],
    threads: int,
    /,
) -> list[Any] | None: ...
def overwrite(
    columns: tuple[list[Any], ...],
    group: Any,
    grad_mode: bool,
    increment: Callable[[list[Any]], Any],
    threads: int,
    /,
) -> list[Any] | None: ...
def stepped(
    columns: tuple[list[Any], ...], group: Any, add: bool, grad_mode: bool, threads: int, /
) -> list[list[Any]] | None: ...
def expect_writes(tensor: Any, /) -> None: ...
def fail_allocation(k: int, /) -> int: ...
