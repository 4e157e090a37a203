"""What a rule reads beside its arguments, so that a record of it can be known to hold.

The code of a rule is read, and that of the functions it calls, up to those of torch and of this
library. Numbers, strings and the like that it finds by a name are part of the key of its record: a
changed global is another record. What could change without being seen declines.
"""

from __future__ import annotations

import builtins
import dis
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import torch

from .graph import Declined

Getter: TypeAlias = Callable[[], Any]

_TRUSTED = ("torch", "functional_adamax", "math", "typing", "builtins")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_UNSEEN = ("eval", "exec", "globals", "locals", "vars", "next", "open", "input", "id", "__import__")
"""Functions of Python that read, or change, what the code does not name."""
_CHANGES = {
    "STORE_GLOBAL": "sets the global",
    "DELETE_GLOBAL": "deletes the global",
    "STORE_ATTR": "sets the attribute",
    "DELETE_ATTR": "deletes the attribute",
}


def captured(function: Callable[..., Any], owner: type | None = None) -> list[Getter]:
    """Return what finds the values that a function, of a class, reads besides its arguments.

    Raises:
        Declined: it reads what may change unseen, or changes something itself.
    """
    found: list[Getter] = []
    seen: set[Any] = set()
    _visit(function, owner, found, seen)
    return found


def _visit(x: Any, owner: type | None, found: list[Getter], seen: set[Any]) -> None:
    """Look at a function, and at those it calls."""
    if isinstance(x, MethodType):
        x, owner = x.__func__, type(x.__self__)
    if _is_trusted(x) or isinstance(x, BuiltinFunctionType):
        return
    if not isinstance(x, FunctionType):
        raise Declined(f"it calls {x!r}, which is no function")
    if x in seen:
        return
    seen.add(x)
    code = x.__code__
    for value in (*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()):
        _note("a default", partial(_itself, value), owner, found, seen)
    for name, cell in zip(code.co_freevars, x.__closure__ or (), strict=True):
        _note(name, partial(_content, cell), owner, found, seen)
    for opname, name in _names(code):
        if opname in _CHANGES:
            raise Declined(f"it {_CHANGES[opname]} {name}")
        if opname == "STORE_DEREF" and name in code.co_freevars:
            raise Declined(f"it sets {name}, which it shares with another function")
        if opname == "IMPORT_NAME" and name.partition(".")[0] not in _TRUSTED:
            raise Declined(f"it imports {name}")
        if opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names = x.__globals__
            if name in _UNSEEN:
                raise Declined(f"it calls {name}")
            if name in names or not hasattr(builtins, name):
                _note(name, partial(names.__getitem__, name), owner, found, seen)
        if opname in ("LOAD_ATTR", "LOAD_METHOD") and owner is not None:
            for kind in owner.__mro__:
                if name in vars(kind) and not _is_trusted(kind):
                    _note(name, partial(_of_class, kind, name), owner, found, seen)
                    break


def _itself(value: Any) -> Any:
    return value


def _content(cell: CellType) -> Any:
    return cell.cell_contents


def _of_class(kind: type, name: str) -> Any:
    return vars(kind)[name]


def _names(code: CodeType) -> Iterator[tuple[str, Any]]:
    """What each instruction does, with the name that it does it to."""
    for step in dis.get_instructions(code):
        yield step.opname, step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _note(name: str, get: Getter, owner: type | None, found: list[Getter], seen: set[Any]) -> None:
    """Take down one value that a function reads."""
    try:
        value = get()
    except (KeyError, ValueError):
        raise Declined(f"it reads {name}, which is not there") from None
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, (FunctionType, MethodType, BuiltinFunctionType)):
        found.append(get)  # by another name it may be another function
        _visit(value, owner, found, seen)
    elif isinstance(value, ModuleType):
        if not _is_trusted(value):
            raise Declined(f"it reads the module {name}, where values may change")
    elif is_plain(value):
        found.append(get)
    elif not _is_trusted(value):
        raise Declined(f"it reads {name}, whose value may change")


def is_plain(value: Any) -> bool:
    """Whether a value cannot change, and is equal only to what a rule treats alike."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    return type(value) in _PLAIN


def _is_trusted(x: Any) -> bool:
    """Whether it is a function, a class or a module of torch, Python or this library."""
    if isinstance(x, ModuleType):
        return x.__name__.partition(".")[0] in _TRUSTED
    if not isinstance(x, (type, FunctionType, BuiltinFunctionType)) and not callable(x):
        return False
    return (getattr(x, "__module__", None) or "").partition(".")[0] in _TRUSTED
