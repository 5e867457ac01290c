"""A cache of compiled kernels that processes which start together fill one at a time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from numba.core import caching

from .folder import load_object, lock_to_write, save_object, say_compiling, say_damaged, say_ready, trusted_folder
from .fork import check_process

__all__ = ["KernelCache", "make_cache", "note_need", "providers", "run_releasing"]

Need = tuple[Callable[..., None], tuple[Any, ...]]  # an outlined function and the types of its arguments

providers: dict[Callable[..., None], Callable[[tuple[Any, ...]], object]] = {}  # of each outlined function, by its body
_being_made: list[list[Need]] = []  # of each function that is being compiled what it calls by name, the innermost last


def note_need(body: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Says that what is being compiled calls an outlined function of that body for arguments of these types."""
    if _being_made and (body, args) not in _being_made[-1]:
        _being_made[-1].append((body, args))


class _Locator(caching._CacheLocator):
    """Keeps functions of one kind (kernels, outlined ones) in a folder that is named by the digest."""

    folder: Path
    function: str

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator:
        return cls()

    def ensure_cache_path(self) -> None:
        """The folder was made when the lock was taken."""

    def get_cache_path(self) -> str:
        return str(self.folder)

    def get_source_stamp(self) -> str:
        return self.folder.parent.name

    def get_disambiguator(self) -> str:
        """Part of a file's name, for which Numba takes the code's own name: all kernels have that of one function."""
        return self.function


class _Files(caching.IndexDataCacheFile):
    """Numba's index and its data files, read and written as files that no other user can change.

    A data file says which entry it is, so that an index that is older than it does not lead to another's code.
    """

    def load(self, key: Any) -> Any:
        name = self._load_index().get(key)
        found = None if name is None else load_object(Path(self._data_path(name)))
        return found[1] if found is not None and found[0] == key else None

    def save(self, key: Any, data: Any) -> None:
        names = self._load_index()
        if key not in names:
            taken = set(names.values())
            names[key] = next(name for name in map(self._data_name, itertools.count(1)) if name not in taken)
            save_object(Path(self._index_path), names)
        save_object(Path(self._data_path(names[key])), (key, data))

    def _load_index(self) -> dict[Any, str]:
        return load_object(Path(self._index_path)) or {}


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

    Without it, processes that start together race on the index (numba #4807, #10128), and each would compile. What is
    there is read without the lock, also from a folder that cannot be written.
    """

    def __init__(self, py_func: Any) -> None:
        super().__init__(py_func)
        self._cache_file = _Files(self.cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp())
        self._lock_path = Path(self.cache_path) / f"{py_func.__name__}.lock"
        self._lock: FileLock | None = None
        build = Path(self.cache_path).name.partition("-")[0]  # without the instruction set
        self._name = f"{build}.{py_func.__name__}"
        self._begin = 0.0

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """An entry; where there is none, None, and a lock is held until one is saved."""
        check_process()
        found = self._find(sig, target_context)
        if found is None:
            self._lock = lock_to_write(self._lock_path)
            if self._lock is not None:
                _being_made.append([])
                found = self._find(sig, target_context)
                if found is not None:
                    self.release()
                else:
                    say_compiling()
                    self._begin = time.perf_counter()
        if found is not None:
            say_ready(self._name)
        return found

    def _find(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # of LLVM or Numba, about code that was whole when it was written
            say_damaged(Path(self._cache_file._index_path), error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps an entry and gives the lock back."""
        try:
            if self._lock is not None:
                super().save_overload(sig, data)
                say_ready(self._name, time.perf_counter() - self._begin)
        finally:
            self.release()

    def release(self) -> None:
        """Gives the lock back, if it is held."""
        if self._lock is not None:
            _being_made.pop()
            self._lock.release()
            self._lock = None


class _NoCache(caching.NullCache):
    """In place of a cache whose folder cannot be trusted."""

    def load_overload(self, sig: Any, target_context: Any) -> None:
        check_process()


def run_releasing(dispatcher: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """`function(*args)`, which may compile; if it raises, the lock of the dispatcher's cache is given back."""
    try:
        return function(*args)
    except BaseException:
        cache = getattr(dispatcher, "_cache", None)
        if isinstance(cache, KernelCache):
            cache.release()
        raise


def make_cache(py_func: Callable[..., Any], build: str) -> Any:
    """The cache of a function, for a dispatcher's `_cache`; `build` is the folder's name."""
    folder = trusted_folder(build)
    if folder is None:
        return _NoCache()
    function = f"{py_func.__module__.removeprefix('mla_numba.kernels.')}.{py_func.__name__}"
    locator = type("Locator", (_Locator,), {"folder": folder, "function": function})
    impl = type("Impl", (_Entry,), {"_locator_classes": [locator]})
    return type("Cache", (KernelCache,), {"_impl_class": impl})(py_func)
