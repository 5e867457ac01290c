"""The elements of one dumped file: a `.npy`, a `.bin` with the bare elements, or tensors of a `.pt`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..base.checks import (
    BF16,
    FP32,
    Array,
    dtype_text,
)
from ..base.output_file import output_file
from .kinds import Kind
from .torch_file import save_tensor

__all__ = ["as_kind", "load_npy", "read_bin", "write_array"]

_BITS = (np.dtype("V2"), np.dtype(np.uint16), np.dtype(np.int16))


def load_npy(path: Path, label: str) -> Array:
    """The array of a `.npy`, mapped. `label` begins the message of a `ValueError` for a file that is none."""
    try:
        array: Array = np.lib.format.open_memmap(
            path, mode="r"
        )  # unlike np.load, it takes neither archives nor pickles
    except OSError:
        raise
    except Exception as error:  # NumPy lets through what the tokenizer of a header raises
        raise ValueError(f"{label}: expected a .npy of numbers, got one that fails: {error}") from None
    if array.dtype.hasobject or array.dtype.names is not None:
        raise TypeError(f"{label}: expected a .npy of numbers, got elements of dtype {array.dtype}")
    return array


def read_bin(path: Path, label: str, kinds: Iterable[Kind]) -> Array:
    """The bare elements of a `.bin`, as the first of `kinds` that has its size."""
    kinds = list(kinds)
    n_bytes = path.stat().st_size
    for kind in kinds:
        n_known = kind.known_bytes
        if n_bytes == n_known or (None in kind.shape and n_known and n_bytes % n_known == 0):
            raw = np.fromfile(path, f"<u{kind.dtype.itemsize}")
            bits = raw.astype(raw.dtype.newbyteorder("="), copy=False)
            array: Array = bits.view(kind.dtype).reshape([-1 if n is None else n for n in kind.shape])
            return array
    multiple = "a multiple of " if None in kinds[0].shape else ""
    wanted = " or ".join(f"{multiple}{kind.known_bytes} bytes, {kind}" for kind in kinds)
    raise ValueError(f"{label}: expected {wanted}, got {n_bytes} bytes")


def as_kind(array: Array, label: str, kinds: Iterable[Kind]) -> Array:
    """A copy of an array, as the first of `kinds` that it can be.

    Raises `ValueError` for another shape or for float32 values that bf16 does not hold, `TypeError` for other elements.
    """
    kinds = list(kinds)
    fitting = [(kind, shape) for kind in kinds if (shape := kind.fit(array.shape)) is not None]
    if not fitting:
        wanted = " or ".join(dict.fromkeys(str(kind).rpartition(" ")[0] for kind in kinds))
        raise ValueError(f"{label}: expected shape {wanted}, got {array.shape}")
    for kind, shape in fitting:
        if array.dtype == kind.dtype and array.dtype.isnative:
            return np.array(array, order="C").reshape(shape)
        if kind.dtype == BF16 and array.dtype in _BITS and array.dtype.isnative:
            values: Array = np.array(array, order="C").view(BF16)
            return values.reshape(shape)
        if kind.dtype == BF16 and array.dtype == FP32 and array.dtype.isnative:
            return _rounded(label, array).reshape(shape)
    dtypes = list(dict.fromkeys(kind.dtype for kind, _ in fitting))
    more = " (|V2, its bits as uint16 or int16, or float32 that bf16 holds)" if BF16 in dtypes else ""
    raise TypeError(f"{label}: expected {' or '.join(map(str, dtypes))}{more}, got {dtype_text(array.dtype)}")


def write_array(path: Path, array: Array) -> None:
    """Writes an array in the form that the path's suffix says."""
    with output_file(path) as file:
        if path.suffix == ".npy":
            np.save(file, array, allow_pickle=False)
        elif path.suffix == ".pt":
            save_tensor(file, array)
        else:
            bits = np.ascontiguousarray(array).view(f"u{array.itemsize}")
            bits.astype(f"<u{array.itemsize}", copy=False).tofile(file)


def _rounded(label: str, array: Array) -> Array:
    """float32 as bf16, which has to hold every value."""
    values = array.astype(BF16, order="C")
    lost = (values.astype(FP32) != array) & ~np.isnan(array)
    if lost.any():
        at = np.unravel_index(int(lost.argmax()), array.shape)
        raise ValueError(
            f"{label}: expected float32 values that bf16 holds, got {array[at]} at [{', '.join(map(str, at))}]"
        )
    return values
