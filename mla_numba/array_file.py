"""Named arrays and facts in one file that is mapped into memory, not read.

| bytes                 | what                                                                       |
|-----------------------|----------------------------------------------------------------------------|
| 0..7                  | b"mla-pack"                                                                |
| 8..19                 | uint32, little endian: format version, bytes of the header, its CRC-32     |
| 20..                  | the header, JSON in UTF-8: facts, size of the data, byte order, the arrays |
| from the next page on | the data: arrays in C order, each from a multiple of 4096                  |

The header is checked whenever a file is read, and the file's size with it, so that a truncated one is never mapped.
Each array has its CRC-32, which is checked on request: that reads every byte.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._checks import Array

__all__ = ["FORMAT", "ArrayFile", "read_arrays", "write_arrays"]

FORMAT = 1
_MAGIC = b"mla-pack"
_PREFIX = struct.Struct("<8sIII")
_PAGE_BYTES = 4096


class ArrayFile(NamedTuple):
    """What a file holds. The arrays are the file's own memory; a page that is written to becomes a private copy."""

    facts: dict[str, Any]
    arrays: dict[str, Array]


def write_arrays(path: str | os.PathLike[str], facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Writes `facts` (what JSON holds) and `arrays` to `path`.

    A file that was there is replaced by renaming, once the new one is whole and on the disk: whoever has the old one
    mapped keeps it. Raises `OSError` where the folder cannot be written; no part of a file is then left.
    """
    path = Path(path)
    rows: dict[str, dict[str, Any]] = {}
    end = 0
    for name, array in arrays.items():
        start = _next_page(end)
        rows[name] = {"dtype": array.dtype.name, "shape": array.shape, "start": start, "crc32": _crc(array)}
        end = start + array.nbytes
    header = json.dumps({"facts": facts, "n_bytes": end, "byte_order": sys.byteorder, "arrays": rows}).encode()
    data = _next_page(_PREFIX.size + len(header))
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(_PREFIX.pack(_MAGIC, FORMAT, len(header), zlib.crc32(header)) + header)
            for name, array in arrays.items():
                file.seek(data + rows[name]["start"])
                file.write(_bytes(array))
            file.truncate(data + end)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def read_arrays(path: str | os.PathLike[str], verify: bool = False) -> ArrayFile:
    """Maps a file that `write_arrays` wrote; `verify` also reads every array and compares its checksum.

    The file must not be changed in place while it is mapped. Raises `OSError` where it cannot be read, `ValueError`
    naming the file where it is no such file, of another version or byte order, truncated or corrupted.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, data = _read_header(path, file.read(_PREFIX.size), file.read)
        expected = data + header["n_bytes"]
        if size != expected:
            what = "the file is truncated" if size < expected else "something was added"
            raise ValueError(f"{path}: expected {expected} bytes, got {size}: {what}")
        if header["byte_order"] != sys.byteorder:
            raise ValueError(f"{path}: expected byte order {sys.byteorder}, got {header['byte_order']}")
        memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    arrays = {}
    for name, row in header["arrays"].items():
        array = np.frombuffer(memory, row["dtype"], prod(row["shape"]), data + row["start"]).reshape(row["shape"])
        if verify and _crc(array) != row["crc32"]:
            raise ValueError(
                f"{path}: expected {name} of checksum {row['crc32']:08x}, got {_crc(array):08x}: it is corrupted"
            )
        arrays[name] = array
    return ArrayFile(header["facts"], arrays)


def _read_header(path: Path, prefix: bytes, read: Callable[[int], bytes]) -> tuple[dict[str, Any], int]:
    """The header, and where the data begin; `read` goes on behind the prefix."""
    if prefix[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"{path}: expected packed weights, which begin with {_MAGIC!r}, got {prefix[: len(_MAGIC)]!r}")
    if len(prefix) < _PREFIX.size:
        raise ValueError(f"{path}: expected at least {_PREFIX.size} bytes, got {len(prefix)}: the file is truncated")
    _, version, n_bytes, crc = _PREFIX.unpack(prefix)
    if version != FORMAT:
        raise ValueError(f"{path}: expected format version {FORMAT}, got {version}")
    text = read(n_bytes)
    if len(text) < n_bytes:
        raise ValueError(f"{path}: expected a header of {n_bytes} bytes, got {len(text)}: the file is truncated")
    if zlib.crc32(text) != crc:
        raise ValueError(
            f"{path}: expected a header of checksum {crc:08x}, got {zlib.crc32(text):08x}: it is corrupted"
        )
    header: dict[str, Any] = json.loads(text)
    return header, _next_page(_PREFIX.size + n_bytes)


def _next_page(position: int) -> int:
    return -(-position // _PAGE_BYTES) * _PAGE_BYTES


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _crc(array: Array) -> int:
    return zlib.crc32(_bytes(array))
