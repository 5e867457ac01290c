"""How kernels are compiled, cached and launched: one policy for all of them.

`@kernel` wraps a function with `prange` loops. Called as `fn(n_threads, *args)` it runs the parallel build on that many
threads, or the serial build (the same body, `prange` as `range`) where there is one thread or where a parallel launch
would end the process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from filelock import FileLock
from numba.core import caching, config
from platformdirs import user_cache_dir

log = logging.getLogger("mla_numba")

_SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LLVM_REFPRUNE_PASS")


@functools.cache
def _source_digest() -> str:
    """A digest of all that decides the machine code: our sources, the compilers' versions and their settings.

    Numba's own key misses callees in other files (numba #1833), constants of other modules and environment settings
    (numba #10821). Here a change of any of them is another folder, so an entry cannot be stale.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    versions = (numba.__version__, llvmlite.__version__, np.__version__, platform.python_version(), platform.machine())
    digest.update(repr((versions, [getattr(config, name, None) for name in _SETTINGS])).encode())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where compiled kernels are kept: `$NUMBA_CACHE_DIR/mla_numba` if set, else the user's cache folder."""
    root = Path(config.CACHE_DIR) / "mla_numba" if config.CACHE_DIR else Path(user_cache_dir("mla_numba")) / "kernels"
    return root / _source_digest()


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


class _Cache(caching.FunctionCache):
    """A function cache that one process fills at a time: a miss takes a file lock until the entry is saved.

    Without it, processes that start together race on the index (numba #4807, #10128), and each would compile.
    """

    def __init__(self, py_func: Any) -> None:
        super().__init__(py_func)
        self._lock = FileLock(Path(self.cache_path) / f"{py_func.__name__}.lock")

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None:
            self._lock.acquire()
            found = super().load_overload(sig, target_context)
            if found is not None:
                self._lock.release()
            else:
                _say_compiling()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        finally:
            self.release()

    def release(self) -> None:
        self._lock.release()


_said = False


def _say_compiling() -> None:
    global _said
    if not _said:
        _said = True
        log.warning("compiling kernels for this CPU (once, some seconds; kept in %s)", cache_folder())


def _make_cache(py_func: Callable[..., Any], build: str) -> _Cache | None:
    locator = type("Locator", (_Locator,), {"folder": cache_folder() / build})
    impl = type("Impl", (caching.CompileResultCacheImpl,), {"_locator_classes": [locator]})
    try:
        return type("Cache", (_Cache,), {"_impl_class": impl})(py_func)
    except RuntimeError:
        return None


_warned_no_cache = False


def _compile(py_func: Callable[..., Any], parallel: bool) -> Any:
    """A dispatcher that compiles on its first call. No fastmath: it would reorder sums."""
    global _warned_no_cache
    dispatcher = numba.njit(parallel=parallel, nogil=True, error_model="numpy")(py_func)
    if config.DISABLE_JIT:
        return dispatcher
    cache = _make_cache(py_func, "parallel" if parallel else "serial")
    if cache is not None:
        dispatcher._cache = cache
    elif not _warned_no_cache:
        _warned_no_cache = True
        log.warning("%s: not writable, so kernels are compiled anew in every process", cache_folder())
    return dispatcher


_forked = False
_launch_lock = threading.Lock()


def _after_fork_in_child() -> None:
    """GNU OpenMP ends a forked child at its first parallel launch, so a child stays serial."""
    global _forked, _launch_lock
    _forked = True
    _launch_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def max_threads() -> int:
    """Threads that a parallel launch can have: `NUMBA_NUM_THREADS`, by default the usable cores."""
    return int(config.NUMBA_NUM_THREADS)


@contextlib.contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    """Sets this thread's count of Numba threads and restores it."""
    before = numba.get_num_threads()
    if before == n_threads:
        yield
        return
    numba.set_num_threads(n_threads)
    try:
        yield
    finally:
        numba.set_num_threads(before)


class Kernel:
    """A kernel body with its two builds, each compiled when first needed."""

    def __init__(self, body: Callable[..., Any]) -> None:
        self.body = body
        self.__name__, self.__doc__ = body.__name__, body.__doc__
        self._builds: dict[bool, Any] = {}

    def build(self, parallel: bool) -> Any:
        """The dispatcher of the parallel or the serial build."""
        found = self._builds.get(parallel)
        # setdefault: of two threads that are here at once, both get the same dispatcher.
        return found or self._builds.setdefault(parallel, _compile(self.body, parallel))

    def __call__(self, n_threads: int, *args: Any) -> None:
        """Runs the body on `n_threads` threads. In a forked child, or for one thread, the serial build."""
        if n_threads == 1 or _forked or config.DISABLE_JIT:
            self._run(self.build(parallel=False), args)
            return
        dispatcher = self.build(parallel=True)
        with _threads(n_threads):
            # The workqueue layer aborts the process when two threads enter it at once (numba #8563).
            if not dispatcher.signatures or numba.threading_layer() == "workqueue":
                with _launch_lock:
                    self._run(dispatcher, args)
            else:
                self._run(dispatcher, args)

    @staticmethod
    def _run(dispatcher: Any, args: tuple[Any, ...]) -> None:
        try:
            dispatcher(*args)
        except BaseException:
            cache = getattr(dispatcher, "_cache", None)
            if isinstance(cache, _Cache):
                cache.release()
            raise


def kernel(body: Callable[..., Any]) -> Kernel:
    """Makes a `Kernel` of a function; nothing is compiled before the first call."""
    return Kernel(body)
