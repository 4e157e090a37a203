"""What a rule reads beside its arguments, so that a record of it can be known to hold.

The code of a rule is read, and that of the functions it calls, up to those of torch and of this
library. Numbers, strings and the like that it finds by a name are part of the key of its record: a
changed global is another record. What could change without being seen declines.
"""

from __future__ import annotations

import builtins
import dis
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, TypeAlias

import torch

from .graph import Declined

Getter: TypeAlias = Callable[[], Any]

OWN = ("functional_adamax", "math", "typing", "builtins")
"""Packages of which every function does the same whenever it is called."""
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_UNSEEN = ("eval", "exec", "globals", "locals", "vars", "next", "open", "input", "id", "__import__")
"""Functions of Python that read, or change, what the code does not name."""
_CHANGES = {
    "STORE_GLOBAL": "sets the global",
    "DELETE_GLOBAL": "deletes the global",
    "STORE_ATTR": "sets the attribute",
    "DELETE_ATTR": "deletes the attribute",
}


def captured(
    function: Callable[..., Any],
    owner: type | None = None,
    trusted: tuple[str, ...] = ("torch", *OWN),
) -> list[Getter]:
    """Return what finds the values that a function, of a class, reads besides its arguments.

    The packages that are ``trusted`` do the same whenever they are called.

    Raises:
        Declined: it reads what may change unseen, or changes something itself.
    """
    search = _Search(trusted)
    search.visit(function, owner)
    return search.found


@dataclass
class _Search:
    """A walk through the code of a function, and of those that it calls."""

    trusted: tuple[str, ...]
    found: list[Getter] = field(default_factory=list)
    seen: set[Any] = field(default_factory=set)

    def visit(self, x: Any, owner: type | None) -> None:
        """Look at a function, and at those it calls."""
        if isinstance(x, MethodType):
            x, owner = x.__func__, type(x.__self__)
        if self.trusts(x) or isinstance(x, BuiltinFunctionType) or is_record(x):
            return
        if not isinstance(x, FunctionType):
            raise Declined(f"it calls {x!r}, which is no function")
        if x in self.seen:
            return
        self.seen.add(x)
        code = x.__code__
        for value in (*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()):
            self.note("a default", partial(_itself, value), owner)
        for name, cell in zip(code.co_freevars, x.__closure__ or (), strict=True):
            self.note(name, partial(_content, cell), owner)
        for opname, name in _names(code):
            self.look_at(opname, name, x, owner)

    def look_at(self, opname: str, name: Any, x: FunctionType, owner: type | None) -> None:
        """Look at one instruction of a function."""
        if opname in _CHANGES:
            raise Declined(f"it {_CHANGES[opname]} {name}")
        if opname == "STORE_DEREF" and name in x.__code__.co_freevars:
            raise Declined(f"it sets {name}, which it shares with another function")
        if opname == "IMPORT_NAME" and name.partition(".")[0] not in self.trusted:
            raise Declined(f"it imports {name}")
        if opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names = x.__globals__
            if name in _UNSEEN:
                raise Declined(f"it calls {name}")
            if name in names or not hasattr(builtins, name):
                self.note(name, partial(names.__getitem__, name), owner)
        if opname in ("LOAD_ATTR", "LOAD_METHOD") and owner is not None:
            for kind in owner.__mro__:
                if name in vars(kind) and not self.trusts(kind):
                    self.note(name, partial(_of_class, kind, name), owner)
                    break

    def note(self, name: str, get: Getter, owner: type | None) -> None:
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
            self.found.append(get)  # by another name it may be another function
            self.visit(value, owner)
        elif isinstance(value, ModuleType):
            if not self.trusts(value):
                raise Declined(f"it reads the module {name}, where values may change")
        elif is_plain(value):
            self.found.append(get)
        elif not self.trusts(value):
            if not is_record(value):
                raise Declined(f"it reads {name}, whose value may change")
            self.found.append(get)

    def trusts(self, x: Any) -> bool:
        """Whether it is a function, a class or a module of a trusted package."""
        if isinstance(x, ModuleType):
            return x.__name__.partition(".")[0] in self.trusted
        if not isinstance(x, (type, FunctionType, BuiltinFunctionType)) and not callable(x):
            return False
        return (getattr(x, "__module__", None) or "").partition(".")[0] in self.trusted


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


def is_record(value: Any) -> bool:
    """Whether it is a NamedTuple without methods of its own: a tuple with names."""
    return (
        isinstance(value, type)
        and value.__bases__ == (tuple,)
        and not {name for name, x in vars(value).items() if _is_code(x)} - _OF_RECORDS
    )


def _is_code(value: Any) -> bool:
    return callable(value) or isinstance(value, (property, classmethod, staticmethod))


_OF_RECORDS = set(vars(NamedTuple("Record", [])))


def is_plain(value: Any) -> bool:
    """Whether a value cannot change, and is equal only to what a rule treats alike."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    return type(value) in _PLAIN
