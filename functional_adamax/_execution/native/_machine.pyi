from collections.abc import Callable
from typing import Any

def program(
    dtype: int,
    dims: int,
    registers: int,
    numbers: int,
    reads: list[int],
    types: list[int],
    of: list[int],
    sources: list[int],
    counts: list[int],
    wide: list[int],
    constants: list[float],
    uniform: list[int],
    vector: list[int],
    /,
) -> object: ...
def plan(parts: list[Any], in_place: bool, grad_mode: bool, members: int, /) -> object | None: ...
def summed(
    planned: object,
    programs: list[Any],
    numbers: list[float | list[float]],
    mode: int,
    threads: int,
    /,
) -> float | list[float] | None: ...
def stepped(
    planned: object,
    numbers: list[float | list[float]],
    lists: list[tuple[list[Any], ...]],
    threads: int,
    /,
) -> bool: ...
def write(
    planned: object,
    numbers: list[float | list[float]],
    increment: Callable[[list[Any]], Any],
    threads: int,
    /,
) -> bool: ...
def overwrite(
    steps: list[Any],
    grad_mode: bool,
    increment: Callable[[list[Any]], Any],
    threads: int,
    /,
) -> bool: ...
def gather(
    params: list[Any],
    state: dict[Any, Any],
    names: tuple[str, ...],
    single: tuple[bool, ...],
    empty: object,
    /,
) -> tuple[list[Any], list[Any], list[Any]] | None: ...
def shared(params: list[Any], state: dict[Any, Any], name: str, /) -> Any: ...
def are_apart(tensors: list[Any], /) -> bool: ...
def fail_allocation(k: int, /) -> int: ...
