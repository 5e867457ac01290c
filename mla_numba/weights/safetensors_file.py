"""The tensors of a model's safetensors files, mapped into memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import ml_dtypes
import numpy as np

from ..base.checks import (
    BF16,
    FP16,
    FP32,
    INT8,
    Array,
)
from ..base.extras import missing
from ..base.json_file import parse_object, read_object

__all__ = ["Shard", "find_shards", "import_safetensors"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {  # by their names in a safetensors file
    "BF16": BF16,
    "F16": FP16,
    "F32": FP32,
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I8": INT8,
    "U8": np.dtype(np.uint8),
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
        if not path.exists():
            raise FileNotFoundError(f"{path}: expected the shard that holds {tensor}, got no such file")
        if not path.is_file():
            raise ValueError(f"{path}: {tensor}: expected it in a regular file, got another kind")
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
        if path.stat().st_size == start:
            return cls(path, rows, np.empty(0, np.uint8))  # nothing to map: all its tensors are empty
        return cls(path, rows, np.memmap(path, np.uint8, "r", start).view(np.ndarray))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that the file has to hold."""
        return tuple(self._row(name)["shape"])

    def dtype(self, name: str) -> str:
        """The dtype of a tensor that the file has to hold, as safetensors names it."""
        return str(self._row(name)["dtype"])

    def tensor(self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> Array:
        """A read-only view of the file. Dtype and shape are compared with its header before anything is read."""
        row = self._row(name)
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
        # Of bf16 by its bits: ml_dtypes' isfinite takes 20 times as long.
        finite = values.view(np.uint16) & 0x7F80 != 0x7F80 if values.dtype == BF16 else np.isfinite(values)
        if not finite.all():
            first = row + int(finite.reshape(len(values), -1).all(axis=1).argmin())
            raise ValueError(f"{self.path}: {name}: expected finite values, got NaN or Inf in row {first}")

    def _row(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] | None = self.rows.get(name)
        if row is None:
            raise ValueError(f"{self.path}: {name}: expected a tensor of that name, got none")
        return row


def import_safetensors() -> tuple[Any, type[Exception]]:
    """safetensors' reader and its error; an extra, imported where it is needed."""
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise missing("checkpoint", "safetensors", "hf") from error
    return safe_open, SafetensorError


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header and where its data begin: 8 bytes of length, JSON, data."""
    with path.open("rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
        rows = parse_object(file.read(n_bytes), f"{path}: header")
    rows.pop("__metadata__", None)
    return rows, 8 + n_bytes


def find_shards(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor.

    By `model.safetensors`, or the index `model.safetensors.index.json`; where there is neither, by the only file or
    the only index of another name (ModelSlim has `quant_model_weight_w8a8_dynamic.safetensors.index.json`).
    """
    single, index = folder / SINGLE, folder / INDEX
    if not (single.exists() or index.exists()):
        single, index = _other_names(folder)
    if single.exists():
        return dict.fromkeys(Shard.open(single, "the layer").rows, single)
    placed = read_object(index).get("weight_map")
    if not isinstance(placed, dict):
        raise ValueError(f"{index}: expected weight_map to name the file of each tensor, got {type(placed).__name__}")
    paths: dict[str, Path] = {}
    for tensor, name in placed.items():
        if not isinstance(name, str):
            raise ValueError(f"{index}: weight_map[{tensor!r}]: expected the name of a file, got {type(name).__name__}")
        if name not in paths:
            _check_inside(f"{index}: weight_map[{tensor!r}]", name)
            paths[name] = folder / name
    return {tensor: paths[name] for tensor, name in placed.items()}


def _other_names(folder: Path) -> tuple[Path, Path]:
    """The only safetensors file, or the only index, of a folder that has none of the usual names."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indexes) == 1:
        return folder / SINGLE, indexes[0]
    if len(files) == 1 and not indexes:
        return files[0], folder / INDEX
    got = "neither"
    if indexes or files:
        n_bare = f"{len(files)} files of other names without an index"
        got = f"the indexes {', '.join(path.name for path in indexes)}" if indexes else n_bare
    raise FileNotFoundError(f"{folder}: expected {INDEX} or {SINGLE}, got {got}")


def _check_inside(where: str, name: str) -> None:
    """Raises for a file name that leads out of the folder. Symbolic links may: Hugging Face's own cache has them."""
    path = PureWindowsPath(name)  # splits at both kinds of slash, and knows drives
    if not name or "\0" in name or path.anchor or ".." in path.parts or not path.parts:
        raise ValueError(f"{where}: expected the name of a file in the folder, got {name!r}")
