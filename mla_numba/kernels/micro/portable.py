"""The microkernels in plain loops, for CPUs without vector code of their own: see `ukernel` for what they compute.

Four steps of k in one pass over two rows of C: a row is loaded and stored once for four products, and a column of B is
widened once for two rows. Sums stay in ascending k. Packed weights have KR = 1 here. int8 products are summed in
float32, which is exact for up to 1024 of them, and then added in int32: float32 has vector products everywhere.
"""

from __future__ import annotations

import numpy as np

from ..isa import Isa
from ..jit.callee import callee
from ..kinds import F32, Index, Values
from ..scalars import as_f32, window
from .operands import A, B, C

__all__ = ["PORTABLE", "ukernel_bf16_portable", "ukernel_int8_portable"]

# 64 columns are the shortest inner loop that LLVM vectorises instead of unrolling it whole.
PORTABLE = Isa("portable", lanes=4, mr=4, nr=64, kr_bf16=1, kr_int8=1, a_offset=0, a_int8_bytes=2, features=frozenset())
NR = PORTABLE.nr
K_EXACT = 1024  # 1024 * 127 * 128 < 2**24


@callee
def _four_steps(a: Values, at: Index) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """A row's next four values as float32."""
    values = window(a, at, 4)
    return np.float32(values[0]), np.float32(values[1]), np.float32(values[2]), np.float32(values[3])


@callee
def _accumulate(mr: Index, k: Index, a: A, b: B, sums: F32, c_at: Index) -> None:
    """sums[c_at:] as [mr, NR] += A[mr, k] @ B[k, NR] in float32, ascending k."""
    whole = k - k % 4
    for p in range(0, whole, 4):
        b0 = window(b.panels, b.at + p * NR, NR)
        b1 = window(b.panels, b.at + (p + 1) * NR, NR)
        b2 = window(b.panels, b.at + (p + 2) * NR, NR)
        b3 = window(b.panels, b.at + (p + 3) * NR, NR)
        first = a.at + p
        for i in range(0, mr - 1, 2):
            row, next_row = window(sums, c_at + i * NR, NR), window(sums, c_at + (i + 1) * NR, NR)
            v0, v1, v2, v3 = _four_steps(a.rows, first + i * a.step)
            w0, w1, w2, w3 = _four_steps(a.rows, first + (i + 1) * a.step)
            for j in range(NR):
                x0, x1, x2, x3 = as_f32(b0[j]), as_f32(b1[j]), as_f32(b2[j]), as_f32(b3[j])
                row[j] = (((row[j] + v0 * x0) + v1 * x1) + v2 * x2) + v3 * x3
                next_row[j] = (((next_row[j] + w0 * x0) + w1 * x1) + w2 * x2) + w3 * x3
        if mr % 2:
            i = mr - 1
            row = window(sums, c_at + i * NR, NR)
            v0, v1, v2, v3 = _four_steps(a.rows, first + i * a.step)
            for j in range(NR):
                row[j] = (((row[j] + v0 * as_f32(b0[j])) + v1 * as_f32(b1[j])) + v2 * as_f32(b2[j])) + v3 * as_f32(
                    b3[j]
                )
    for p in range(whole, k):
        column = window(b.panels, b.at + p * NR, NR)
        for i in range(mr):
            row = window(sums, c_at + i * NR, NR)
            value = np.float32(window(a.rows, a.at + i * a.step + p, 1)[0])
            for j in range(NR):
                row[j] += value * as_f32(column[j])


@callee
def ukernel_bf16_portable(mr: Index, k: Index, a: A, b: B, c: C) -> None:
    """The bf16 microkernel."""
    if not c.carry:
        sums = window(c.sums, c.at, mr * NR)
        for i in range(mr * NR):
            sums[i] = np.float32(0)
    _accumulate(mr, k, a, b, c.sums, c.at)


@callee
def ukernel_int8_portable(mr: Index, k: Index, a: A, b: B, c: C) -> None:
    """The int8 microkernel."""
    total = window(c.sums, c.at, mr * NR)
    if not c.carry:
        for i in range(mr * NR):
            total[i] = np.int32(0)
    sums = np.empty(mr * NR, np.float32)
    for p in range(0, k, K_EXACT):
        for i in range(mr * NR):
            sums[i] = np.float32(0)
        part = B(b.panels, b.at + p * NR, b.ahead, b.ahead_step, b.locality)
        _accumulate(mr, min(K_EXACT, k - p), A(a.rows, a.at + p, a.step), part, sums, 0)
        for i in range(mr * NR):
            total[i] = np.int32(total[i] + np.int32(sums[i]))
