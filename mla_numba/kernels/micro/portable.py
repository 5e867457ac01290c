"""The microkernels in plain loops, for CPUs without vector code of their own: see `ukernel` for what they compute.

Four steps of k in one pass over two rows of C: a row is loaded and stored once for four products, and a column of B is
widened once for two rows. Sums stay in ascending k. Packed weights have KR = 1 here. int8 products are summed in
float32, which is exact for up to 1024 of them, and then added in int32: float32 has vector products everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..isa import ISA
from ..jit.callee import callee
from ..scalars import as_f32, window

NR = ISA.nr
K_EXACT = 1024  # 1024 * 127 * 128 < 2**24


@callee
def _four_steps(a: Any, at: Any) -> Any:
    """A row's next four values as float32."""
    values = window(a, at, 4)
    return np.float32(values[0]), np.float32(values[1]), np.float32(values[2]), np.float32(values[3])


@callee
def _accumulate(mr: Any, k: Any, a: Any, a_off: Any, lda: Any, b: Any, b_off: Any, c: Any, c_off: Any) -> None:
    """C[mr, NR] += A[mr, k] @ B[k, NR] in float32, ascending k."""
    whole = k - k % 4
    for p in range(0, whole, 4):
        b0 = window(b, b_off + p * NR, NR)
        b1 = window(b, b_off + (p + 1) * NR, NR)
        b2 = window(b, b_off + (p + 2) * NR, NR)
        b3 = window(b, b_off + (p + 3) * NR, NR)
        first = a_off + p
        for i in range(0, mr - 1, 2):
            row, next_row = window(c, c_off + i * NR, NR), window(c, c_off + (i + 1) * NR, NR)
            v0, v1, v2, v3 = _four_steps(a, first + i * lda)
            w0, w1, w2, w3 = _four_steps(a, first + (i + 1) * lda)
            for j in range(NR):
                x0, x1, x2, x3 = as_f32(b0[j]), as_f32(b1[j]), as_f32(b2[j]), as_f32(b3[j])
                row[j] = (((row[j] + v0 * x0) + v1 * x1) + v2 * x2) + v3 * x3
                next_row[j] = (((next_row[j] + w0 * x0) + w1 * x1) + w2 * x2) + w3 * x3
        if mr % 2:
            i = mr - 1
            row = window(c, c_off + i * NR, NR)
            v0, v1, v2, v3 = _four_steps(a, first + i * lda)
            for j in range(NR):
                row[j] = (((row[j] + v0 * as_f32(b0[j])) + v1 * as_f32(b1[j])) + v2 * as_f32(b2[j])) + v3 * as_f32(
                    b3[j]
                )
    for p in range(whole, k):
        column = window(b, b_off + p * NR, NR)
        for i in range(mr):
            row = window(c, c_off + i * NR, NR)
            value = np.float32(window(a, a_off + i * lda + p, 1)[0])
            for j in range(NR):
                row[j] += value * as_f32(column[j])


@callee
def ukernel_bf16_portable(
    mr: Any, k: Any, a: Any, a_off: Any, lda: Any, b: Any, b_off: Any, c: Any, c_off: Any, carry: Any
) -> None:
    """The bf16 microkernel."""
    if not carry:
        tile = window(c, c_off, mr * NR)
        for i in range(mr * NR):
            tile[i] = np.float32(0)
    _accumulate(mr, k, a, a_off, lda, b, b_off, c, c_off)


@callee
def ukernel_int8_portable(
    mr: Any, k: Any, a: Any, a_off: Any, lda: Any, b: Any, b_off: Any, c: Any, c_off: Any, carry: Any
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
        _accumulate(
            mr, min(K_EXACT, k - p), a, a_off + p, lda, b, b_off + p * NR, sums, 0
        )  # fmt: skip
        for i in range(mr * NR):
            tile[i] = np.int32(tile[i] + np.int32(sums[i]))
