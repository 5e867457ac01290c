"""Arrays over memory: buffers that start at a cache line, and other views of a caller's array."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.gemm import PAIR_BYTES

__all__ = ["UINT16", "aligned_empty", "as_bits", "writable_alias"]

UINT16 = np.dtype(np.uint16)  # the type itself, as an argument, takes NumPy longer


def aligned_empty(shape: int | tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An uninitialised array whose data start at a multiple of 128 bytes, as no NumPy allocation promises to."""
    dtype = np.dtype(dtype)
    n_bytes = (prod(shape) if isinstance(shape, tuple) else shape) * dtype.itemsize
    raw = np.empty(n_bytes + PAIR_BYTES, np.uint8)
    start = -raw.__array_interface__["data"][0] % PAIR_BYTES
    aligned: NDArray[Any] = raw[start : start + n_bytes].view(dtype).reshape(shape)
    return aligned


def as_bits(array: NDArray[Any]) -> NDArray[Any]:
    """A bf16 array, only to be read, as uint16 bits."""
    return writable_alias(array.view(UINT16))


class _Alias:
    """An array's memory under a writable label: a read-only array would be another type to Numba, compiled anew."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.__array_interface__ = array.__array_interface__ | {"data": (array.__array_interface__["data"][0], False)}
        self.owner = array


def writable_alias(array: NDArray[Any]) -> NDArray[Any]:
    """The array itself, or for a read-only one, which the kernels only read, its alias."""
    return array if array.flags.writeable or array.size == 0 else np.asarray(_Alias(array))
