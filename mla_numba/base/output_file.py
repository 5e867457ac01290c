"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["is_stream", "kind_of", "output_file", "write_text"]

StrPath = str | os.PathLike[str]

_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


def kind_of(mode: int) -> str:
    """What a file of this `st_mode` is, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "another kind of file")


def is_stream(path: StrPath) -> bool:
    """Whether there is something at `path` that `output_file` writes into, given `streams`."""
    try:
        return _is_stream(os.stat(path))
    except OSError:
        return False


@contextmanager
def output_file(path: StrPath, *, streams: bool = False) -> Iterator[BinaryIO]:
    """A new file to write, which takes the name `path` once it is whole and on the disk; until then, and after an
    error, whatever `path` was is as it was, and no part of a file is left.

    Who has an older file of that name open keeps it; its mode, and where that is allowed its owner, go over to the new
    one. A symbolic link stays one: what it names is replaced or made.

    What is no regular file is never replaced. With `streams`, a FIFO, a character device such as a terminal, and
    whatever this process's standard output or error is (`/dev/stdout`) are written into.

    Raises `OSError` where the folder, or an older file, cannot be written, `ValueError` naming `path` where it is
    another kind of file.
    """
    found = _existing(path, streams)
    if found is not None and _is_stream(found):
        with _open_stream(path, found) as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    if found is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if found is not None:
            _take_over(part, found)
        os.replace(part, target)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(part)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: StrPath, text: str) -> None:
    """Writes a text in UTF-8 by `output_file`, whose errors are raised; streams are written into."""
    with output_file(path, streams=True) as file:
        file.write(text.encode())


def _existing(path: StrPath, streams: bool) -> os.stat_result | None:
    """What is at `path`, links followed, None where nothing is. Raises for what is not to be written."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    is_regular, is_stream = stat.S_ISREG(found.st_mode), _is_stream(found)
    if not (streams if is_stream else is_regular):
        got = kind_of(found.st_mode) + " that this process writes its output to" * (is_regular and is_stream)
        raise ValueError(f"{path}: expected a regular file or none, which is then made, got {got}")
    return found


def _is_stream(found: os.stat_result) -> bool:
    is_special = stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode)
    return is_special or _standard_descriptor(found) is not None


def _standard_descriptor(found: os.stat_result) -> int | None:
    """The descriptor of this process's standard output or error, if that is this file."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
    return None


def _open_stream(path: StrPath, found: os.stat_result) -> BinaryIO:
    descriptor = _standard_descriptor(found)
    if descriptor is None:
        return os.fdopen(os.open(path, os.O_WRONLY), "wb")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    # Not opened anew: a file would be cut, or written over by what comes after.
    return os.fdopen(os.dup(descriptor), "wb")


def _take_over(part: Path, found: os.stat_result) -> None:
    if hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(part, found.st_uid, found.st_gid)
    os.chmod(part, stat.S_IMODE(found.st_mode))
