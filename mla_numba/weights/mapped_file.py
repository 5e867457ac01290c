"""Named arrays and facts in one file that is mapped into memory, not read.

| bytes                 | what                                                                       |
|-----------------------|----------------------------------------------------------------------------|
| 0..7                  | b"mla-pack"                                                                |
| 8..19                 | uint32, little endian: format version, bytes of the header, its CRC-32     |
| 20..                  | the header, JSON in UTF-8: facts, size of the data, byte order, the arrays |
| from the next page on | the data: arrays in C order, each from a multiple of 4096                  |

Each field of the header is checked whenever a file is read, for a right checksum does not say who made it; and the
file's size with it, so that a truncated one is never mapped. Each array has its CRC-32, which is checked on request:
that reads every byte.
"""

from __future__ import annotations

import json
import mmap
import os
import reprlib
import struct
import sys
import zlib
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tiling import round_up

from ..base.checks import Array
from ..base.json_file import parse_object
from ..base.output_file import kind_of, output_file

__all__ = ["FORMAT", "ArrayFile", "read_arrays", "write_arrays"]

FORMAT = 1
_MAGIC = b"mla-pack"
_PREFIX = struct.Struct("<8sIII")
_PAGE_BYTES = 4096
_MAX_HEADER_BYTES = 1 << 20  # one of packed weights has 2 KB
_MAX_BYTES = 2**63 - 1
_MAX_DIMENSIONS = 8
_NAMES = "int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64"
_DTYPES = {name: np.dtype(name) for name in _NAMES.split()}


class ArrayFile(NamedTuple):
    """What a file holds. The arrays are the file's own memory; a page that is written to becomes a private copy."""

    facts: dict[str, Any]
    arrays: dict[str, Array]


class _Row(NamedTuple):
    """Where an array lies in the data, and what it is."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    crc32: int

    @property
    def end(self) -> int:
        return self.start + prod(self.shape) * self.dtype.itemsize


def write_arrays(path: str | os.PathLike[str], facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Writes `facts` (what JSON holds) and `arrays` to `path`, by `output_file`, whose errors are raised.

    Whoever has an older file mapped keeps it. Raises `TypeError` for an array of a dtype that no file holds.
    """
    rows: dict[str, dict[str, Any]] = {}
    end = 0
    for name, array in arrays.items():
        start = _next_page(end)
        if _DTYPES.get(array.dtype.name) != array.dtype:
            raise TypeError(f"{name}: expected dtype {' or '.join(_DTYPES)}, got {array.dtype}")
        rows[name] = {"dtype": array.dtype.name, "shape": array.shape, "start": start, "crc32": _crc(array)}
        end = start + array.nbytes
    header = json.dumps({"facts": facts, "n_bytes": end, "byte_order": sys.byteorder, "arrays": rows}).encode()
    data = _next_page(_PREFIX.size + len(header))
    with output_file(path) as file:
        file.write(_PREFIX.pack(_MAGIC, FORMAT, len(header), zlib.crc32(header)) + header)
        for name, array in arrays.items():
            file.seek(data + rows[name]["start"])
            file.write(_bytes(array))
        file.truncate(data + end)


def read_arrays(path: str | os.PathLike[str], verify: bool = False) -> ArrayFile:
    """Maps a file that `write_arrays` wrote; `verify` also reads every array and compares its checksum.

    The file must not be changed in place while it is mapped. Raises `OSError` where it cannot be read, `ValueError`
    naming it where it is no regular file, no such file, of another version or byte order, truncated or corrupted, and
    where a field of its header is wrong.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected a regular file, got {kind_of(path.stat().st_mode)}")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, data = _read_header(path, file)
        n_bytes = _integer(path, "n_bytes", header.get("n_bytes"), _MAX_BYTES)
        expected = data + n_bytes
        if size != expected:
            what = "the file is truncated" if size < expected else "something was added"
            raise ValueError(f"{path}: expected {expected} bytes, got {size}: {what}")
        if header.get("byte_order") != sys.byteorder:
            raise ValueError(f"{path}: expected byte order {sys.byteorder}, got {_shown(header.get('byte_order'))}")
        facts, rows = _object(path, "facts", header.get("facts")), _rows(path, header.get("arrays"), n_bytes)
        memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    arrays = {}
    for name, row in rows.items():
        array = np.frombuffer(memory, row.dtype, prod(row.shape), data + row.start).reshape(row.shape)
        if verify and _crc(array) != row.crc32:
            raise ValueError(
                f"{path}: expected {name} of checksum {row.crc32:08x}, got {_crc(array):08x}: it is corrupted"
            )
        arrays[name] = array
    return ArrayFile(facts, arrays)


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header, and where the data begin."""
    prefix = file.read(_PREFIX.size)
    if prefix[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"{path}: expected packed weights, which begin with {_MAGIC!r}, got {prefix[: len(_MAGIC)]!r}")
    if len(prefix) < _PREFIX.size:
        raise ValueError(f"{path}: expected at least {_PREFIX.size} bytes, got {len(prefix)}: the file is truncated")
    _, version, n_bytes, crc = _PREFIX.unpack(prefix)
    if version != FORMAT:
        raise ValueError(f"{path}: expected format version {FORMAT}, got {version}")
    if n_bytes > _MAX_HEADER_BYTES:
        raise ValueError(f"{path}: expected a header of at most {_MAX_HEADER_BYTES} bytes, got {n_bytes}")
    text = file.read(n_bytes)
    if len(text) < n_bytes:
        raise ValueError(f"{path}: expected a header of {n_bytes} bytes, got {len(text)}: the file is truncated")
    if zlib.crc32(text) != crc:
        raise ValueError(
            f"{path}: expected a header of checksum {crc:08x}, got {zlib.crc32(text):08x}: it is corrupted"
        )
    return parse_object(text, str(path)), _next_page(_PREFIX.size + n_bytes)


def _rows(path: Path, arrays: object, n_bytes: int) -> dict[str, _Row]:
    """What the header says of each array, which lies within the data and shares no byte with another."""
    rows = {}
    for name, value in _object(path, "arrays", arrays).items():
        where = f"arrays.{_shown(name)}"
        fields = _object(path, where, value)
        dtype, shape = fields.get("dtype"), fields.get("shape")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ValueError(f"{path}: expected {where}.dtype, one of {', '.join(_DTYPES)}, got {_shown(dtype)}")
        if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
            raise ValueError(f"{path}: expected {where}.shape, at most {_MAX_DIMENSIONS} lengths, got {_shown(shape)}")
        for n in shape:
            _integer(path, f"{where}.shape", n, _MAX_BYTES)
        start = _integer(path, f"{where}.start", fields.get("start"), n_bytes)
        if start % _PAGE_BYTES:
            raise ValueError(f"{path}: expected {where}.start, a multiple of {_PAGE_BYTES}, got {start}")
        crc32 = _integer(path, f"{where}.crc32", fields.get("crc32"), 2**32 - 1)
        row = rows[name] = _Row(_DTYPES[dtype], tuple(shape), start, crc32)
        # Lengths of 0 too: NumPy's own limit is on the product of the others.
        if row.end > n_bytes or prod(max(n, 1) for n in shape) * row.dtype.itemsize > _MAX_BYTES:
            raise ValueError(f"{path}: expected {where} within {n_bytes} bytes, got shape {_shown(shape)} at {start}")
    held = sorted((row.start, row.end, name) for name, row in rows.items() if row.end > row.start)
    for (_, end, name), (start, _, other) in pairwise(held):
        if start < end:
            raise ValueError(f"{path}: expected arrays.{other} in bytes of its own, got some of arrays.{name}")
    return rows


def _object(path: Path, name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected {name}, an object, got {_shown(value)}")
    return value


def _integer(path: Path, name: str, value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{path}: expected {name}, an integer from 0 to {most}, got {_shown(value)}")
    return value


def _shown(value: object) -> str:
    """A value of a file that may be anything, cut to some length."""
    return value[:40] if isinstance(value, str) else reprlib.repr(value)


def _next_page(position: int) -> int:
    return round_up(position, _PAGE_BYTES)


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _crc(array: Array) -> int:
    return zlib.crc32(_bytes(array))
