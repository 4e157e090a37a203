"""Old modules that pickles name: what was in them is found where it is now.

Until the package had folders, all of its modules lay beside each other, and pickles name them: the
transforms in ``functional_adamax._adam``, for example, of which ``functional_adamax._methods.adam``
has what they ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module, util
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.split(".")[0]
_FOLDERS = ("_methods", "_transforms", "_schedules", "_core")
_RENAMED = {
    "_schedule": ("_schedules.scheduled",),
    "_variants": ("_methods.amsmax", "_transforms.cautious", "_transforms.sign"),
}


class _Moved(MetaPathFinder, Loader):
    """Finds an old module as one without contents, which knows where they are."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == _PACKAGE and _homes(name) else None

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__getattr__"] = partial(_find, module.__name__)


def _homes(name: str) -> Sequence[str]:
    """The modules in which the contents of an old one are now, relative to the package."""
    homes = _RENAMED.get(name) or [f"{folder}.{name.removeprefix('_')}" for folder in _FOLDERS]
    return [x for x in homes if name[0] == "_" and util.find_spec(f"{_PACKAGE}.{x}")]


def _find(old: str, name: str) -> Any:
    package = import_module(_PACKAGE)
    if name in package.__all__:
        return getattr(package, name)
    for home in _homes(old.rpartition(".")[2]):
        module = import_module(f"{_PACKAGE}.{home}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {old!r} has no attribute {name!r}")


finder = _Moved()
