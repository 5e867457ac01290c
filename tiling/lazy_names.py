"""Names of a package that are imported when they are first asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from threading import RLock
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(
    package: str, homes: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package: `homes` are modules, relative to it or not, and the names of each.

    The package's own modules are attributes too, without an import of their own. Any other name is an AttributeError.

    One thread imports at a time: of two that import at once, one may meet a module of the other that is half made. The
    modules of a package take nothing from the package itself, so whoever waits here holds no module that is waited for.
    A fork waits too, so that no child has half a module and a lock that nobody gives back.
    """
    lock = RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home_of and (name.startswith("_") or find_spec(f"{package}.{name}") is None):
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        with lock:
            if name in home_of:
                value = getattr(import_module(home_of[name], package), name)
            else:
                value = import_module(f"{package}.{name}")
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of})

    return get, names
