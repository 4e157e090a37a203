from collections.abc import Callable
from typing import Any

def program(
    dtype: int,
    dims: int,
    registers: int,
    numbers: int,
    reads: list[int],
    of: list[int],
    sources: list[int],
    counts: list[int],
    wide: list[int],
    constants: list[float],
    uniform: list[int],
    vector: list[int],
    /,
) -> object: ...
def stepped(
    program: object,
    columns: tuple[list[Any], ...],
    counters: tuple[list[Any], ...],
    numbers: tuple[float | list[float], ...],
    grad_mode: bool,
    threads: int,
    /,
) -> tuple[list[Any], ...] | None: ...
def overwrite(
    program: object,
    columns: tuple[list[Any], ...],
    counters: tuple[list[Any], ...],
    numbers: tuple[float | list[float], ...],
    grad_mode: bool,
    increment: Callable[[list[Any]], Any],
    threads: int,
    /,
) -> bool: ...
def plan(
    program: object,
    columns: tuple[list[Any], ...],
    counters: tuple[list[Any], ...],
    numbers: tuple[float | list[float], ...],
    recording: bool,
    /,
) -> object | None: ...
def summed(
    program: object,
    columns: tuple[list[Any], ...],
    counters: tuple[list[Any], ...],
    numbers: tuple[float | list[float], ...],
    recording: bool,
    threads: int,
    /,
) -> float | None: ...
def run(planned: object, increment: Callable[[list[Any]], Any], threads: int, /) -> bool: ...
def fail_allocation(k: int, /) -> int: ...
