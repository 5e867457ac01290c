"""JSON that somebody else wrote: an object of finite numbers, or a `ValueError` that names its place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

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


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object that `text` is; `where` begins the message of an error.

    Raises `ValueError` for text that is no JSON or no UTF-8, another kind of value, NaN and Infinity, which JSON
    does not know, a number of thousands of digits, and nesting that is too deep for Python.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"{where}: expected a JSON object, got one that is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"the number {name}")
