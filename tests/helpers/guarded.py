"""Memory between unreadable pages: whoever reads or writes one byte too far ends the process by SIGSEGV.

An array lies with its first or with its last byte at such a page. On its other side, up to the next page, lie bytes
that nobody may write (`assert_intact`).
"""

import ctypes
import mmap
from dataclasses import fields, is_dataclass, replace
from math import prod

import numpy as np

from tiling import ceil_div

PAGE = mmap.PAGESIZE
SIDES = ("begin", "end")
_CANARY = 0xA5
_libc = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """`n_bytes` at an unreadable page: before them for side "begin", behind them for side "end".

    `align` rounds the first byte of side "end" down; the bytes that this leaves before the page are canaries too.
    """

    def __init__(self, n_bytes, side, align=1):
        n_pages = ceil_div(max(n_bytes, 1), PAGE)
        self._map = mmap.mmap(-1, (n_pages + 2) * PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for page in (0, n_pages + 1):
            if _libc.mprotect(ctypes.c_void_p(address + page * PAGE), PAGE, 0):  # 0: PROT_NONE
                raise OSError(ctypes.get_errno(), "mprotect")
        inside = np.frombuffer(self._map, np.uint8, n_pages * PAGE, PAGE)
        inside[...] = _CANARY
        self.start = 0 if side == "begin" else (len(inside) - n_bytes) // align * align
        self._inside = inside
        self.bytes = inside[self.start : self.start + n_bytes]

    def assert_intact(self, name):
        rest = (self._inside[: self.start], self._inside[self.start + len(self.bytes) :])
        for where, part in zip(("before", "behind"), rest, strict=True):
            n_changed = np.count_nonzero(part != _CANARY)
            assert not n_changed, f"{name}: {n_changed} bytes {where} it were written"


class Guards:
    """Places arrays on one side of their pages and keeps them, so that all can be looked at after a call."""

    def __init__(self, side):
        self.side = side
        self._kept = []

    def empty(self, shape, dtype, *, name="array", align=1):
        dtype = np.dtype(dtype)
        shape = shape if isinstance(shape, tuple) else (shape,)
        memory = Guarded(prod(shape) * dtype.itemsize, self.side, align)
        self._kept.append((name, memory))
        return memory.bytes.view(dtype).reshape(shape)

    def copy(self, array, name="array"):
        """An equal array at a page. One whose blocks are strided keeps its strides; gaps hold what they held."""
        if array is None:
            return None
        if array.flags.c_contiguous:
            placed = self.empty(array.shape, array.dtype, name=name)
            placed.view(np.uint8)[...] = array.view(np.uint8)
            return placed
        n_bytes = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)) + array.itemsize
        flat = self.empty(n_bytes, np.uint8, name=name)
        placed = np.ndarray(array.shape, array.dtype, flat, 0, array.strides)
        placed[...] = array
        return placed

    def aligned_empty(self, shape, dtype, align=64):
        """Stands in for `mla_numba.base.memory.aligned_empty`, whose arrays start at a cache line, or as asked for."""
        return self.empty(shape, dtype, align=align)

    def fields(self, record, name=""):
        """A dataclass (or a named tuple) whose arrays are copies at pages; arrays that share a start still do."""
        if hasattr(record, "_fields"):
            return type(record)(*(self._field(getattr(record, n), n) for n in record._fields))
        arrays = {f.name: getattr(record, f.name) for f in fields(record)}
        nested = {n: self.fields(a, f"{name}{n}.") for n, a in arrays.items() if is_dataclass(a) and _has_arrays(a)}
        arrays = {n: a for n, a in arrays.items() if isinstance(a, np.ndarray)}
        by_start = {}
        for n, a in arrays.items():
            by_start.setdefault(a.__array_interface__["data"][0] if a.size else n, []).append(n)
        placed = {}
        for names in by_start.values():
            largest = max(names, key=lambda n: arrays[n].nbytes)
            raw = self.copy(arrays[largest], f"{name}{largest}").reshape(-1).view(np.uint8)
            for n in names:
                placed[n] = raw[: arrays[n].nbytes].view(arrays[n].dtype).reshape(arrays[n].shape)
        return replace(record, **placed, **nested)

    def _field(self, value, name):
        """Numbers stay numbers: as arrays without a dimension they would be other types, and so other kernels."""
        if hasattr(value, "_fields"):
            return self.fields(value)
        return self.copy(value, name) if isinstance(value, np.ndarray) else value

    def assert_intact(self):
        for name, memory in self._kept:
            memory.assert_intact(name)


def _has_arrays(record):
    return any(isinstance(getattr(record, f.name), np.ndarray) for f in fields(record))
