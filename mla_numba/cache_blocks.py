"""One array of a cache: blocks of rows, how the kernels take them, and rows read out of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from .base.checks import BF16, FP16, Array, check_indices, expect_array
from .base.modes import CONTIGUOUS_MODES, CacheMode
from .layouts import C0_BYTES

__all__ = ["CacheView", "as_blocks", "check_blocks", "check_nz_rows", "check_slots_to_read", "rows_of"]


@dataclass(frozen=True, slots=True, eq=False)
class CacheView:
    """One cache array as the kernels take it: flat memory, and int64 [block_size, block_stride, c0, chunk_stride,
    slot_stride] in elements (see `kernels.scatter`).
    """

    flat: Array
    layout: Array

    @classmethod
    def of(cls, array: Array, cache_mode: CacheMode) -> Self:
        """The view of a checked array."""
        array = as_blocks(array)
        blocks, block_size, _, d = array.shape
        flat = array.view(np.uint16) if array.dtype in (BF16, FP16) else array
        if array.flags.c_contiguous:
            block_stride = block_size * d
            flat = flat.reshape(-1)
        else:
            block_stride = array.strides[0] // array.itemsize
            length = (blocks - 1) * block_stride + block_size * d
            flat = np.lib.stride_tricks.as_strided(flat, (length,), (array.itemsize,))
        if cache_mode == "PA_NZ":
            c0 = C0_BYTES // array.itemsize
            inner = (c0, block_size * c0, c0)
        else:
            inner = (d, 0, d)
        return cls(flat, np.array((block_size, block_stride, *inner), np.int64))


def as_blocks(array: Array) -> Array:
    """(blocks, block_size, 1, d); the rows of TND are one block."""
    return array[None] if array.ndim == 3 else array


def rows_of(array: Array, slots: Array, cache_mode: CacheMode) -> Array:
    """Rows (n, d) of an array; only they are copied."""
    array = as_blocks(array)
    blocks, block_size, _, d = array.shape
    if not len(slots):
        return np.empty((0, d), array.dtype)
    block, row = np.divmod(slots, block_size)
    if cache_mode == "PA_NZ":
        c0 = C0_BYTES // array.itemsize
        rows: Array = array.reshape(blocks, d // c0, block_size, c0)[block, :, row].reshape(-1, d)
    else:
        rows = array[block, row, 0]
    return rows


def check_blocks(
    name: str,
    array: object,
    cache_mode: CacheMode,
    like: Array | None,
    *dtypes: np.dtype[Any],
    like_name: str = "kv_cache",
) -> None:
    """An array of `cache_mode`'s shape, contiguous within a block, with `like`'s slots and of one of `dtypes`."""
    array = expect_array(name, array, dtypes)
    shape = {"BSND": "(B, S, 1, d)", "TND": "(rows, 1, d)"}.get(cache_mode, "(blocks, block_size, 1, d)")
    nonzero = array.shape[-1:] if cache_mode in CONTIGUOUS_MODES else array.shape
    if array.ndim != shape.count(",") + 1 or array.shape[-2] != 1 or 0 in nonzero:
        raise ValueError(f"{name}: expected shape {shape} in {cache_mode}, got {array.shape}")
    if like is not None and array.shape[:-2] != like.shape[:-2]:
        what = "rows" if cache_mode == "TND" else "blocks and slots a block"
        raise ValueError(f"{name}: expected {like.shape[:-2]} {what} as {like_name}, got {array.shape[:-2]}")
    if not array.size:
        return
    blocks = as_blocks(array)
    if not blocks[0].flags.c_contiguous:
        raise ValueError(f"{name}: expected blocks that are contiguous within, got strides {array.strides}")
    least = blocks[0].nbytes
    if len(blocks) > 1 and (blocks.strides[0] < least or blocks.strides[0] % array.itemsize):
        apart = f"in ascending order, whole elements and at least {least} bytes apart"
        raise ValueError(f"{name}: expected contiguous blocks {apart}, got strides {array.strides}")


def check_nz_rows(name: str, array: Array) -> None:
    """Raises `ValueError` unless the rows of a PA_NZ cache are whole runs."""
    c0 = C0_BYTES // array.itemsize
    if array.shape[3] % c0:
        raise ValueError(f"{name}: expected rows of a multiple of {c0} elements in PA_NZ, got {array.shape[3]}")


def check_slots_to_read(slots: object, capacity: int) -> Array:
    """A copy of slots, int64 (n,), each in [0, capacity)."""
    slots = check_indices("slots", slots, None)
    wrong = np.flatnonzero((slots < 0) | (slots >= capacity))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(f"slots[{i}]: expected a slot from 0 to below the capacity {capacity}, got {slots[i]}")
    return slots
