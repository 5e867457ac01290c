"""The tensors of a model's safetensors files, mapped into memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ._checks import BF16, FP32, Array

__all__ = ["Shard", "find_shards", "import_safetensors", "read_json"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {  # by their names in a safetensors file
    "BF16": BF16,
    "F32": FP32,
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}


@dataclass(frozen=True, slots=True)
class Shard:
    """A safetensors file, mapped: where its tensors lie (`rows`, the file's header), and their bytes."""

    path: Path
    rows: dict[str, Any]
    data: Array

    @classmethod
    def open(cls, path: Path, tensor: str) -> Shard:
        """`tensor` is the one that is looked for, named where the file cannot be used."""
        safe_open, error_type = import_safetensors()
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected the shard that holds {tensor}, got no such file")
        try:
            with safe_open(path, framework="numpy"):
                pass  # the library checks that the header is whole and that its tensors cover the file
        except error_type as error:
            size = path.stat().st_size
            raise ValueError(
                f"{path}: {tensor}: expected it in a whole safetensors file, got {size} bytes: {error}"
            ) from None
        # The library gives NumPy no FP8 tensor, and no other without a copy: so bytes, by the offsets that it checked.
        rows, start = _header(path)
        return cls(path, rows, np.memmap(path, np.uint8, "r", start).view(np.ndarray))

    def tensor(self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> Array:
        """A read-only view of the file."""
        row = self.rows.get(name)
        if row is None:
            raise ValueError(f"{self.path}: {name}: expected a tensor of that name, got none")
        if row["dtype"] not in dtypes:
            raise TypeError(f"{self.path}: {name}: expected dtype {' or '.join(dtypes)}, got {row['dtype']}")
        if tuple(row["shape"]) != shape:
            raise ValueError(f"{self.path}: {name}: expected shape {shape}, got {tuple(row['shape'])}")
        begin, end = row["data_offsets"]
        raw = self.data[begin:end]
        if raw.ctypes.data % _DTYPES[row["dtype"]].itemsize:
            raw = raw.copy()  # the format allows it to lie at an odd byte
        values: Array = raw.view(_DTYPES[row["dtype"]]).reshape(shape)
        return values

    def check_finite(self, name: str, values: Array, row: int) -> None:
        """`values` are those from row `row` of the tensor on."""
        if not np.isfinite(values).all():
            raise ValueError(f"{self.path}: {name}: expected finite values, got NaN or Inf in rows from {row} on")


def import_safetensors() -> tuple[Any, type[Exception]]:
    """safetensors' reader and its error; an extra, imported where it is needed."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError("checkpoint: expected the package safetensors: pip install 'mla_numba[hf]'") from error
    return safe_open, SafetensorError


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header and where its data begin: 8 bytes of length, JSON, data."""
    with path.open("rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
        rows: dict[str, Any] = json.loads(file.read(n_bytes))
    return rows, 8 + n_bytes


def find_shards(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        names = Shard.open(single, "the layer").rows
        return {name: single for name in names if name != "__metadata__"}
    if not index.is_file():
        raise FileNotFoundError(f"{folder}: expected {INDEX} or {SINGLE}, got neither")
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise ValueError(f"{index}: expected weight_map to name the file of each tensor, got {type(placed).__name__}")
    paths = {name: folder / name for name in set(placed.values())}
    return {tensor: paths[name] for tensor, name in placed.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object; raises `ValueError` naming it where it does not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
