"""JSON that somebody else wrote: an object of finite numbers, or a `ValueError` that names its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tiling.json import parse_object

__all__ = ["parse_object", "read_object"]

MAX_BYTES = 256 << 20  # the index of the largest published checkpoint has some 20 MB


def read_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a regular file of at most `max_bytes`.

    Raises `OSError` for a file that is missing or cannot be read, `ValueError` naming it for one that is no regular
    file, that is too long, or whose content `parse_object` refuses.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected a regular file, got another kind")
    with path.open("rb") as file:
        text = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)  # a read takes what it may read at once
    if len(text) > max_bytes:
        raise ValueError(f"{path}: expected at most {max_bytes} bytes of JSON, got more")
    return parse_object(text, str(path))
