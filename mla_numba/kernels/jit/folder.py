"""The folder where compiled kernels are kept, what is read and written there, and what is said where that fails."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import platform
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from filelock import FileLock
from numba.core import config
from numba.core.serialize import dumps
from platformdirs import user_cache_dir

from .private_files import check_folder, make_folder, read_file, write_file

__all__ = [
    "cache_folder",
    "load_object",
    "lock_to_write",
    "make_cache_folder",
    "save_object",
    "say_compiling",
    "say_damaged",
    "say_ready",
    "source_digest",
    "trusted_folder",
    "why_not_kept",
]

log = logging.getLogger("mla_numba")

_LONGEST_WAIT_S = 600.0  # for a process that compiles; after that each for itself
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


def cache_folder() -> Path | None:
    """Where compiled kernels are kept: `$NUMBA_CACHE_DIR/mla_numba` if set, else the user's cache folder.

    None for a user without a home folder.
    """
    digest = source_digest(Path(__file__).parents[1])
    if config.CACHE_DIR:
        return Path(os.path.abspath(config.CACHE_DIR)) / "mla_numba" / digest
    try:
        root = Path(user_cache_dir("mla_numba"))
    except RuntimeError:
        return None
    return root / "kernels" / digest if root.is_absolute() else None


def make_cache_folder() -> Path:
    """The folder of compiled kernels, made where it is missing. Raises OSError where that fails."""
    folder = _folder_or_raise()
    make_folder(folder, folder)
    return folder


def trusted_folder(below: str = "") -> Path | None:
    """The folder of compiled kernels, or one in it, missing or not; None, after a warning, if it is not trusted."""
    try:
        folder = _folder_or_raise()
        check_folder(folder / below, folder)
    except OSError as error:
        give_up(error)
        return None
    return folder / below


def _folder_or_raise() -> Path:
    folder = cache_folder()
    if folder is None:
        raise FileNotFoundError("expected a home folder or NUMBA_CACHE_DIR, got neither")
    return folder


_gave_up = ""
_said_damaged: set[Path] = set()
_said_compiling = False


def give_up(error: Exception) -> None:
    """From now on this process writes no compiled kernels; says so once."""
    global _gave_up
    if not _gave_up:
        _gave_up = str(error) or type(error).__name__
        log.warning("kernel cache: %s; so kernels that are not there yet are compiled in each process", _gave_up)


def why_not_kept() -> str:
    """Why this process keeps no kernels that it compiles; empty if it does."""
    return _gave_up


def say_compiling() -> None:
    """Says, once, what the user waits for."""
    global _said_compiling
    if not _said_compiling:
        _said_compiling = True
        log.warning("compiling kernels for this CPU (once, up to a minute; kept in %s)", cache_folder())


def say_ready(name: str, seconds: float | None = None) -> None:
    """Logs that a function was compiled in so many seconds, or loaded; the record's `kernel` is its name."""
    if seconds is None:
        log.debug("kernel %s: loaded", name, extra={"kernel": name})
    else:
        log.info("kernel %s: compiled in %.1f s", name, seconds, extra={"kernel": name})


def lock_to_write(path: Path) -> FileLock | None:
    """A lock that is held, for what is written beside it; None, after a warning, where nothing can be written."""
    if _gave_up:
        return None
    try:
        make_folder(path.parent, _folder_or_raise())
        lock = FileLock(path, mode=0o600, timeout=_LONGEST_WAIT_S)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter of a file system without locks
        give_up(error)
        return None
    return lock


def load_object(path: Path) -> Any:
    """What `save_object` saved; None, with a line in the log, where it cannot be read, or where there is none."""
    try:
        content = read_file(path)
        return None if content is None else pickle.loads(content)
    except Exception as error:  # whatever a pickle of other classes raises
        say_damaged(path, error)
        return None


def say_damaged(path: Path, error: Exception) -> None:
    """Says, once a file, that it is made anew; nothing else is said then of compiling."""
    global _said_compiling
    _said_compiling = True
    if path not in _said_damaged:
        _said_damaged.add(path)
        log.warning("kernel cache: %s is compiled anew, since it could not be loaded (%s)", path, error)


def save_object(path: Path, made: Any) -> None:
    """Writes a file, or gives up. The caller holds a lock of `lock_to_write`."""
    if _gave_up:
        return
    try:
        write_file(path, dumps(made))
    except OSError as error:
        give_up(error)
