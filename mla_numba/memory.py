"""Buffers that start at a cache line."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["aligned_empty"]

_LINE_BYTES = 64


def aligned_empty(shape: int | tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An uninitialised array whose data start at a multiple of 64 bytes, as no NumPy allocation promises to."""
    dtype = np.dtype(dtype)
    n_bytes = (prod(shape) if isinstance(shape, tuple) else shape) * dtype.itemsize
    raw = np.empty(n_bytes + _LINE_BYTES, np.uint8)
    start = -raw.__array_interface__["data"][0] % _LINE_BYTES
    return raw[start : start + n_bytes].view(dtype).reshape(shape)
