"""Where compiled kernels are kept, and how processes that start together share the work of compiling them."""

from __future__ import annotations

import functools
import hashlib
import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from filelock import FileLock
from numba.core import caching, config
from platformdirs import user_cache_dir

__all__ = [
    "KernelCache", "cache_folder", "log", "make_cache", "note_need", "providers", "run_releasing", "say_compiling",
    "source_digest",
]  # fmt: skip

log = logging.getLogger("mla_numba")

_SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LLVM_REFPRUNE_PASS")


@functools.cache
def source_digest(root: Path) -> str:
    """A digest of all that decides the machine code: sources below `root`, the compilers' versions and their settings.

    Numba's own key misses callees in other files (numba #1833), constants of other modules and environment settings
    (numba #10821). Here a change of any of them is another folder, so an entry cannot be stale.
    """
    digest = hashlib.sha256()
    for source in sorted(root.rglob("*.py")):
        digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes())
    versions = (numba.__version__, llvmlite.__version__, np.__version__, platform.python_version(), platform.machine())
    digest.update(repr((versions, [getattr(config, name, None) for name in _SETTINGS])).encode())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where compiled kernels are kept: `$NUMBA_CACHE_DIR/mla_numba` if set, else the user's cache folder."""
    root = Path(config.CACHE_DIR) / "mla_numba" if config.CACHE_DIR else Path(user_cache_dir("mla_numba")) / "kernels"
    return root / source_digest(Path(__file__).parents[1])


class _Locator(caching._CacheLocator):
    """Keeps one build (serial or parallel) of every kernel in a folder that is named by the digest."""

    folder: Path

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator | None:
        try:
            cls().ensure_cache_path()
        except OSError:
            return None
        return cls()

    def get_cache_path(self) -> str:
        return str(self.folder)

    def get_source_stamp(self) -> str:
        return self.folder.parent.name

    def get_disambiguator(self) -> str:
        return "v1"


Need = tuple[Callable[..., None], tuple[Any, ...]]  # an outlined function and the types of its arguments

providers: dict[Callable[..., None], Callable[[tuple[Any, ...]], object]] = {}  # of each outlined function, by its body
_being_made: list[list[Need]] = []  # of each function that is being compiled what it calls by name, the innermost last


def note_need(body: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Says that what is being compiled calls an outlined function of that body for arguments of these types."""
    if _being_made and (body, args) not in _being_made[-1]:
        _being_made[-1].append((body, args))


class _Entry(caching.CompileResultCacheImpl):
    """An entry: a compiled function, and before it what has to be provided for its code to be loaded."""

    def reduce(self, data: Any) -> Any:
        return _being_made[-1], super().reduce(data)

    def rebuild(self, target_context: Any, payload: Any) -> Any:
        needs, compiled = payload
        for body, args in needs:
            providers[body](args)
        return super().rebuild(target_context, compiled)


class KernelCache(caching.FunctionCache):
    """A function cache that one process fills at a time: a miss takes a file lock until the entry is saved.

    Without it, processes that start together race on the index (numba #4807, #10128), and each would compile.
    """

    def __init__(self, py_func: Any) -> None:
        super().__init__(py_func)
        self._lock = FileLock(Path(self.cache_path) / f"{py_func.__name__}.lock")

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """An entry; where there is none, None, and the lock is held until one is saved."""
        found = super().load_overload(sig, target_context)
        if found is None:
            self._lock.acquire()
            _being_made.append([])
            found = super().load_overload(sig, target_context)
            if found is not None:
                self.release()
            else:
                say_compiling()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps an entry and gives the lock back."""
        try:
            super().save_overload(sig, data)
        finally:
            self.release()

    def release(self) -> None:
        """Gives the lock back."""
        if self._lock.is_locked:
            _being_made.pop()
        self._lock.release()


def run_releasing(dispatcher: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """`function(*args)`, which may compile; if it raises, the lock of the dispatcher's cache is given back."""
    try:
        return function(*args)
    except BaseException:
        cache = getattr(dispatcher, "_cache", None)
        if isinstance(cache, KernelCache):
            cache.release()
        raise


_said = False


def say_compiling() -> None:
    """Logs, once a process, that the user waits for a compiler."""
    global _said
    if not _said:
        _said = True
        log.warning("compiling kernels for this CPU (once, some seconds; kept in %s)", cache_folder())


def make_cache(py_func: Callable[..., Any], build: str) -> KernelCache | None:
    """The cache of one build of a function; None where no folder can be written."""
    locator = type("Locator", (_Locator,), {"folder": cache_folder() / build})
    impl = type("Impl", (_Entry,), {"_locator_classes": [locator]})
    try:
        return type("Cache", (KernelCache,), {"_impl_class": impl})(py_func)
    except RuntimeError:
        return None
