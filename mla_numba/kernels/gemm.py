"""The loops around the microkernel, for bf16 and int8 alike.

    y[t, col] = bf16((float32(sum_k a[t, k] * b[k, col]) * row_scale[t]) * col_scale[col])

Five loops as in BLIS, from the outside in: token blocks of mc rows and walks of panels are the tasks (loops 5 and 4),
then k in blocks of kc (3), register tiles down the token block (2) and across the walk's panels (1). An output element
is one accumulator in ascending k: a block of k loads what the block before it stored. Only a product with two `parts`
(contract of Matmul_qa: two sums over the halves of k) has two accumulators, added once at the end.

| array   | shape                                | dtype            | notes                                        |
|---------|--------------------------------------|------------------|----------------------------------------------|
| a       | [mc block][row block][kp / KR][mr][KR] | see `simd`   | packed activations |
| b       | [panel][kp / KR][NR][KR]             | uint16 or int8   | packed weights; parts of k padded to KR by zeros |
| offset  | [panel][NR]                          | c's dtype        | what the u8 form of A adds, negated; else 0 |
| c       | [n_threads][parts][walk][mc][NR]     | float32 or int32 | scratch                                      |
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.core import types
from numba.extending import overload, register_jitable

from ._jit import kernel
from .scalars import least_of, round_bf16, row_of, sums_stay_normal, window
from .simd import MR, NR, ukernel
from .tasks import block_start, ceil_div, draw


@register_jitable
def multiply_block(
    a: Any,
    row0: Any,
    rows: Any,
    kp: Any,
    k0: Any,
    k1: Any,
    kc: Any,
    b: Any,
    panel0: Any,
    n_panels: Any,
    c: Any,
    c_off: Any,
    carry: Any,
    normal: Any,
) -> None:
    """C[panel][row][NR] = (carry ? C : 0) + A[row0:row0+rows, k0:k1] @ B[panel0+panel, k0:k1].

    C begins at c[c_off]. k0, k1 and kc are multiples of KR.
    """
    n_blocks = ceil_div(rows, MR)
    # Loop 3: split k in kc (A, B); not parallel: the sums run on in C.
    for ks in range(k0, k1, kc):
        k_cur = min(kc, k1 - ks)
        # Loop 2: split the token block in register tiles of mr_cur rows (A, C)
        for ib in range(n_blocks):
            first = block_start(rows, n_blocks, ib)
            mr_cur = block_start(rows, n_blocks, ib + 1) - first
            a_off = (row0 + first) * kp + ks * mr_cur
            # Loop 1: the panels of the walk, while this block of A stays in L1 (B, C)
            for p in range(n_panels):
                ukernel(
                    mr_cur, k_cur, a, a_off, b, ((panel0 + p) * kp + ks) * NR,
                    c, c_off + (p * rows + first) * NR, carry or ks > k0, normal,
                )  # fmt: skip


def add_offset(acc: Any, offset: Any) -> Any:
    """`acc + offset` in acc's own type; int32 wraps, which makes the u8 form of the activations exact."""
    with np.errstate(over="ignore"):
        return acc + offset


@overload(add_offset)
def _add_offset(acc: Any, offset: Any) -> Any:
    if acc == types.int32:

        def add(acc: Any, offset: Any) -> Any:
            return np.int32(acc + offset)
    else:

        def add(acc: Any, offset: Any) -> Any:
            return acc + offset

    return add


@register_jitable
def scale_acc(acc: Any, offset: Any, row_scale: Any, col_scale: Any) -> Any:
    """The bf16 bits of a finished accumulator. For bf16 weights offset is 0 and both scales are 1: exact."""
    return round_bf16(np.float32(np.float32(np.float32(add_offset(acc, offset)) * row_scale) * col_scale))


@register_jitable
def _store_split(c: Any, second_off: Any, row0: Any, rows: Any, walk: Any, col0: Any, y: Any) -> None:
    """Two sums, one add, one rounding."""
    for p in range(walk):
        col = col0 + p * NR
        n_cols = min(np.int64(NR), y.shape[1] - col)
        for i in range(rows):
            at = (p * rows + i) * NR
            first, second = window(c, at, n_cols), window(c, second_off + at, n_cols)
            out = window(y, (row0 + i) * y.shape[1] + col, n_cols)
            for j in range(n_cols):
                out[j] = round_bf16(first[j] + second[j])


@register_jitable
def _store_scaled(
    c: Any,
    row0: Any,
    rows: Any,
    walk: Any,
    panel0: Any,
    col0: Any,
    offset: Any,
    row_scale: Any,
    col_scale: Any,
    y: Any,
) -> None:
    """One sum, its scales, one rounding."""
    for p in range(walk):
        col = col0 + p * NR
        packed = (panel0 + p) * NR
        n_cols = min(np.int64(NR), y.shape[1] - col)
        offsets, scales = window(offset, packed, n_cols), window(col_scale, packed, n_cols)
        for i in range(rows):
            sums = window(c, (p * rows + i) * NR, n_cols)
            out = window(y, (row0 + i) * y.shape[1] + col, n_cols)
            scale = row_scale[row0 + i]
            for j in range(n_cols):
                out[j] = scale_acc(sums[j], offsets[j], scale, scales[j])


@kernel
def matmul_pair(
    a: Any,
    kp: Any,
    b: Any,
    offset: Any,
    row_scale: Any,
    col_scale: Any,
    n_parts: Any,
    least_a: Any,
    least_b: Any,
    y0: Any,
    y1: Any,
    c: Any,
    counters: Any,
    mc: Any,
    kc: Any,
    walk0: Any,
    walk1: Any,
    grain: Any,
    n_workers: Any,
) -> None:
    """Two products of the same A in one parallel region: y0 from the first panels of B, y1 from the others.

    y0 (t, n0), y1 (t, n1): uint16 bits of bf16. With n_parts = 2, y0 is the sum of two sums, over the halves of k; y1
    is always one sum. For bf16, `least_a` (t,) int32 and `least_b` are the operands' `least_magnitude`, by row and of
    all; else they change nothing. `counters`: see `tasks.draw`; `grain` tasks are drawn at a time.
    """
    t = y0.shape[0]
    n_panels0 = ceil_div(y0.shape[1], NR)
    n_panels1 = ceil_div(y1.shape[1], NR)
    n_walks0 = ceil_div(n_panels0, walk0)
    n_walks1 = ceil_div(n_panels1, walk1)
    n_blocks = ceil_div(t, mc)
    n_tasks = (n_walks0 + n_walks1) * n_blocks
    part = kp // n_parts
    # Loops 5 and 4, as one line of tasks: walks of B outside, token blocks of A inside, so that B is read once.
    for worker in prange(n_workers):
        scratch = row_of(c, worker)
        task, end = draw(counters, worker, n_workers, n_tasks, grain)
        while task < end:
            for now in range(task, end):
                walk_index = now // n_blocks
                row0 = block_start(t, n_blocks, now % n_blocks)
                rows = block_start(t, n_blocks, now % n_blocks + 1) - row0
                normal = sums_stay_normal(least_of(window(least_a, row0, rows)), least_b)
                if walk_index < n_walks0:
                    y = y0
                    panel = block_start(n_panels0, n_walks0, walk_index)
                    walk = block_start(n_panels0, n_walks0, walk_index + 1) - panel
                    packed, split = panel, n_parts == 2
                else:
                    y = y1
                    panel = block_start(n_panels1, n_walks1, walk_index - n_walks0)
                    walk = block_start(n_panels1, n_walks1, walk_index - n_walks0 + 1) - panel
                    packed, split = n_panels0 + panel, False
                second = np.int64(walk) * rows * NR if split else np.int64(0)
                for s in range(n_parts):
                    multiply_block(
                        a, row0, rows, kp, s * part, (s + 1) * part, kc, b, packed, walk, scratch, s * second,
                        s > 0 and not split, normal,
                    )  # fmt: skip
                if split:
                    _store_split(scratch, second, row0, rows, walk, panel * NR, y)
                else:
                    _store_scaled(
                        scratch, row0, rows, walk, packed, panel * NR, offset, row_scale, col_scale, y
                    )  # fmt: skip
            task, end = draw(counters, worker, n_workers, n_tasks, grain)
