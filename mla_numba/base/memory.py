"""Arrays over memory: buffers that start at a cache line, and other views of a caller's array."""

from __future__ import annotations

import mmap
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.gemm import LINE_BYTES, apart

__all__ = ["UINT16", "aligned_empty", "as_bits", "rows_apart", "untouched_empty", "writable_alias"]

_OWN_MAPPING_BYTES = 1 << 22
UINT16 = np.dtype(np.uint16)  # the type itself, as an argument, takes NumPy longer


def aligned_empty(shape: int | tuple[int, ...], dtype: Any, align: int = LINE_BYTES) -> NDArray[Any]:
    """An uninitialised array whose data start at a multiple of `align` bytes, as no NumPy allocation promises to."""
    dtype = np.dtype(dtype)
    n_bytes = (prod(shape) if isinstance(shape, tuple) else shape) * dtype.itemsize
    raw = np.empty(n_bytes + align, np.uint8)
    start = -raw.__array_interface__["data"][0] % align
    aligned: NDArray[Any] = raw[start : start + n_bytes].view(dtype).reshape(shape)
    return aligned


def rows_apart(n_workers: int, length: int, dtype: Any) -> tuple[tuple[int, int], Any]:
    """Shape and dtype of an array with a row a worker, of which it uses `length` elements: see `tiling.gemm.apart`."""
    itemsize = np.dtype(dtype).itemsize
    return (n_workers, apart(length * itemsize) // itemsize), dtype


def untouched_empty(n: int, dtype: Any) -> NDArray[Any]:
    """An uninitialised array (n,) as `aligned_empty` makes it, of whose memory no page has a place yet.

    A page is placed near whoever writes it first. An allocator may hand out memory again that others wrote, so large
    arrays are mappings of their own. Raises `MemoryError` where there is not so much memory.
    """
    n_bytes = n * np.dtype(dtype).itemsize
    if n_bytes < _OWN_MAPPING_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return aligned_empty(n, dtype)
    try:
        memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"Unable to allocate {n_bytes} bytes: {error}") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # of a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)  # as NumPy does for arrays of this size
    return np.frombuffer(memory, dtype)


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
