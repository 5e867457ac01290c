"""Whether a file or a folder can be written, asked before the work whose results it is to hold."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from .output_file import is_stream

__all__ = ["fault_of_file", "fault_of_folder"]


def fault_of_file(path: Path, *, streams: bool = False) -> str:
    """Why a file cannot be written, as the end of an error's sentence; empty if it can.

    `streams`: whether what `output_file` can write into is right too.
    """
    try:
        if is_stream(path):
            return "" if streams else f"expected a regular file or a new one, got the stream {str(path)!r}"
        place = path.resolve()  # a link is followed to what would be written
        if not place.parent.is_dir():
            return f"expected a file in a folder that exists, got {str(path)!r}"
        if not os.access(place.parent, os.W_OK | os.X_OK):
            return f"expected a file in a folder that can be written, got {str(path)!r}"
        mode = place.lstat().st_mode if os.path.lexists(place) else None
        if path.name in ("", "..") or (mode is not None and stat.S_ISDIR(mode)):
            return f"expected a file, got the folder {str(path)!r}"
        if mode is not None and not stat.S_ISREG(mode):
            return f"expected a regular file or a new one, got {str(path)!r}, which is of another kind"
        if mode is not None and not os.access(place, os.W_OK):
            return f"expected a file that can be written, got {str(path)!r}"
        _probe_name(place)
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null character, a loop of links
        return f"expected a path that can be written, got {str(path)[:200]!r} ({error})"
    return ""


def fault_of_folder(path: Path) -> str:
    """Why files cannot be written into a folder, which may have to be made first; empty if they can."""
    try:
        place = path.resolve()
        _probe_name(place)
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            return f"expected a folder, got {str(path)!r}, where {str(place)!r} is none"
        if not os.access(place, os.W_OK | os.X_OK):
            return f"expected a folder that can be written, got {str(path)!r}"
    except (OSError, ValueError, RuntimeError) as error:
        return f"expected a folder that can be written, got {str(path)[:200]!r} ({error})"
    return ""


def _probe_name(place: Path) -> None:
    """Raises `OSError` for a name that the system does not take, such as one that is too long."""
    with suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(place)
