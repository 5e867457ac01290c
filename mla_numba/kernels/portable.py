"""The microkernels in plain loops, for CPUs without vector code of their own: see `simd` for what they compute.

Four steps of k in one pass over two rows of C: a row is loaded and stored once for four products, and a column of B is
widened once for two rows. Sums stay in ascending k. Packed weights have KR = 1 here. int8 products are summed in
float32, which is exact for up to 1024 of them, and then added in int32: float32 has vector products everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload, register_jitable

from .isa import ISA
from .scalars import widen, window

NR = ISA.nr
K_EXACT = 1024  # 1024 * 127 * 128 < 2**24


def as_f32(value: Any) -> Any:
    """A weight's float32: of bf16 bits (uint16) or of an int8 code."""
    return widen(value) if value.dtype == np.uint16 else np.float32(value)


@overload(as_f32)
def _as_f32(value: Any) -> Any:
    if value == types.uint16:

        def convert(value: Any) -> Any:
            return widen(value)
    else:

        def convert(value: Any) -> Any:
            return np.float32(value)

    return convert


@register_jitable
def _accumulate(mr: Any, k: Any, a: Any, a_off: Any, b: Any, b_off: Any, c: Any, c_off: Any) -> None:
    """C[mr, NR] += A[mr, k] @ B[k, NR] in float32, ascending k."""
    whole = k - k % 4
    for p in range(0, whole, 4):
        b0 = window(b, b_off + p * NR, NR)
        b1 = window(b, b_off + (p + 1) * NR, NR)
        b2 = window(b, b_off + (p + 2) * NR, NR)
        b3 = window(b, b_off + (p + 3) * NR, NR)
        values = window(a, a_off + p * mr, 4 * mr)
        for i in range(0, mr - 1, 2):
            row, next_row = window(c, c_off + i * NR, NR), window(c, c_off + (i + 1) * NR, NR)
            v0, w0 = np.float32(values[i]), np.float32(values[i + 1])
            v1, w1 = np.float32(values[i + mr]), np.float32(values[i + mr + 1])
            v2, w2 = np.float32(values[i + 2 * mr]), np.float32(values[i + 2 * mr + 1])
            v3, w3 = np.float32(values[i + 3 * mr]), np.float32(values[i + 3 * mr + 1])
            for j in range(NR):
                x0, x1, x2, x3 = as_f32(b0[j]), as_f32(b1[j]), as_f32(b2[j]), as_f32(b3[j])
                row[j] = (((row[j] + v0 * x0) + v1 * x1) + v2 * x2) + v3 * x3
                next_row[j] = (((next_row[j] + w0 * x0) + w1 * x1) + w2 * x2) + w3 * x3
        if mr % 2:
            i = mr - 1
            row = window(c, c_off + i * NR, NR)
            v0, v1 = np.float32(values[i]), np.float32(values[i + mr])
            v2, v3 = np.float32(values[i + 2 * mr]), np.float32(values[i + 3 * mr])
            for j in range(NR):
                row[j] = (((row[j] + v0 * as_f32(b0[j])) + v1 * as_f32(b1[j])) + v2 * as_f32(b2[j])) + v3 * as_f32(
                    b3[j]
                )
    for p in range(whole, k):
        column = window(b, b_off + p * NR, NR)
        for i in range(mr):
            row = window(c, c_off + i * NR, NR)
            value = np.float32(a[a_off + p * mr + i])
            for j in range(NR):
                row[j] += value * as_f32(column[j])


@register_jitable
def ukernel_bf16_portable(
    mr: Any, k: Any, a: Any, a_off: Any, b: Any, b_off: Any, c: Any, c_off: Any, carry: Any
) -> None:
    """The bf16 microkernel."""
    if not carry:
        tile = window(c, c_off, mr * NR)
        for i in range(mr * NR):
            tile[i] = np.float32(0)
    _accumulate(mr, k, a, a_off, b, b_off, c, c_off)


@register_jitable
def ukernel_int8_portable(
    mr: Any, k: Any, a: Any, a_off: Any, b: Any, b_off: Any, c: Any, c_off: Any, carry: Any
) -> None:
    """The int8 microkernel."""
    tile = window(c, c_off, mr * NR)
    if not carry:
        for i in range(mr * NR):
            tile[i] = np.int32(0)
    sums = np.empty(mr * NR, np.float32)
    for p in range(0, k, K_EXACT):
        for i in range(mr * NR):
            sums[i] = np.float32(0)
        _accumulate(mr, min(K_EXACT, k - p), a, a_off + p * mr, b, b_off + p * NR, sums, 0)
        for i in range(mr * NR):
            tile[i] = np.int32(tile[i] + np.int32(sums[i]))
