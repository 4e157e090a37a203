"""Triton's kernels of programs: their source, handed to Triton, which need not be installed."""

from __future__ import annotations
import __future__

import linecache
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from itertools import count
from typing import Any, TypeAlias

import torch

from ..program.programs import Lowered
from . import source

tl: Any = None  # triton.language
libdevice: Any = None
tensor: TypeAlias = Any  # and this is its, by a name that it knows in annotations

BLOCK = 1024  # elements of a program of ``step``
LEAVES = 128  # leaves of a program of ``count``
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}

_MOST = 256  # programs that are remembered
_FLAG = __future__.annotations.compiler_flag  # Triton takes annotations by their names
_numbers = count()  # of the sources


@dataclass(frozen=True, eq=False, repr=False)
class Kernels:
    """The kernels of a program, see ``source.py``."""

    lowered: Lowered
    width: int  # the number of entries in a row of the table
    sizes: list[int]  # of each column, the bytes of an element
    count: Any
    step: Any


@lru_cache(_MOST)
def made(lowered: Lowered) -> Kernels | str:
    """Return the kernels of a program, or why Triton makes none."""
    program = lowered.program
    rates = dict(lowered.kind.rates)
    kinds = [None if rates[x] is float else rates[x] for x in lowered.numbers]
    try:
        names = _run(source.source(program, kinds))
    except Exception as problem:  # whatever it is, torch's own kernels are there
        return f"Triton makes no kernel of it: {problem}"
    sizes = [dtype.itemsize for _, dtype in lowered.kind.columns]
    return Kernels(lowered, source.width(program, kinds), sizes, names["count"], names["step"])


def _run(text: str) -> dict[str, Any]:
    """Hand a source to Triton, which looks it up by the name of its file."""
    name = f"<functional_adamax program {next(_numbers)}>"
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    names = _helpers() | {"libdevice": libdevice, "__name__": __name__}
    exec(compile(text, name, "exec", _FLAG, dont_inherit=True), names)
    jit = import_module("triton").jit
    names["block_of"] = jit(names["block_of"])
    return names | {x: jit(names[x], do_not_specialize=["n"]) for x in ("count", "step")}


@cache
def _helpers() -> dict[str, Any]:
    """What the sources call by name."""
    jit, language = import_module("triton").jit, import_module("triton.language")
    library = import_module("triton.language.extra.libdevice")
    globals().update(tl=language, libdevice=library, tensor=language.tensor)
    names = {"tl": language, "float64": language.float64, "constexpr": language.constexpr}
    return names | {f.__name__: jit(f) for f in (_over, _root, _sign, _larger)}


def _over(x: tensor, y: tensor) -> tensor:
    """Return ``x / y`` by IEEE; of float32, Triton's sign for division is an approximation."""
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


def _root(x: tensor) -> tensor:
    """Return the square root by IEEE."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


def _sign(x: tensor) -> tensor:
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


def _larger(x: tensor, y: tensor) -> tensor:
    """Return the larger of two, or the first if it is NaN, so that either counts."""
    return tl.where((x > y) | (x != x), x, y)


def is_interpreted() -> bool:
    """Whether Triton interprets the kernels, as TRITON_INTERPRET=1 in the environment asks for."""
    return not isinstance(_helpers()["_over"], import_module("triton").JITFunction)


def named(dtype: torch.dtype) -> Any:
    """Triton's type for torch's ``dtype``."""
    _helpers()
    return getattr(tl, str(dtype).removeprefix("torch."))
