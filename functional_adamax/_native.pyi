from typing import Any

def are_ready(leaves: list[Any], /) -> bool: ...
def are_pullable(pulls: list[Any], /) -> bool: ...
def step(
    leaves: list[Any],
    scales: list[Any],
    maximize: bool,
    decoupled: bool,
    add: bool,
    threads: int,
    /,
) -> list[list[Any]]: ...
def write(
    leaves: list[Any], scales: list[Any], maximize: bool, decoupled: bool, threads: int, /
) -> bool: ...
def pull(pulls: list[Any], threads: int, /) -> list[list[Any]]: ...
