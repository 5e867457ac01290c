"""The loops around the microkernel, for bf16 and int8 alike.

    int8: y[t, col] = bf16((float32(sum_k a[t, k] * b[k, col] + offset[col]) * row_scale[t]) * col_scale[col])
    bf16: y[t, col] = bf16(sum_k a[t, k] * b[k, col])

Five loops as in BLIS, from the outside in: token blocks of mc rows and walks of panels are the tasks (loops 5 and 4),
then k in blocks of kc (3), register tiles down the token block (2) and across the walk's panels (1). An output element
is one accumulator in ascending k: a block of k loads what the block before it stored. Only a product with two `parts`
(contract of Matmul_qa: two sums over the halves of k) has two accumulators, added once at the end.

| array   | shape                          | dtype            | notes                                                |
|---------|--------------------------------|------------------|------------------------------------------------------|
| a       | (t, lda >= kp)                 | see `ukernel`       | activations, see `operand`                       |
| b       | [panel][kp / KR][NR][KR]       | uint16 or int8   | packed weights; parts of k padded to KR by zeros     |
| offset  | [panel][NR]                    | int32            | what the u8 form of A adds, negated; of int8 only    |
| c       | (n_workers, parts * walk * mc * NR) | float32 or int32 | scratch: sums that go on, or that fill no panel |
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.core import types

from ..jit.callee import callee, overload_callee
from ..launch import kernel
from ..llvm_ir import AHEAD_L2_BYTES, AHEAD_ONCE_BYTES, IN_L1, IN_L2, ONCE
from ..micro.epilogue import store_tile
from ..micro.ukernel import KR_BF16, KR_INT8, MR, NR, ukernel, ukernel_store
from ..scalars import least_of, round_bf16, row_of, sums_stay_normal, window
from ..threads.tasks import block_start, ceil_div, draw

# Rows of a register tile that leave time to fetch each line of weights into L1 just before it is read.
_FEW_ROWS = MR // 2


def step_of(b: Any) -> Any:
    """KR of a packed weight."""
    return KR_INT8 if b.dtype == np.int8 else KR_BF16


@overload_callee(step_of)
def _step_of(b: Any) -> Any:
    kr = KR_INT8 if b.dtype == types.int8 else KR_BF16

    def step(b: Any) -> Any:
        return kr

    return step


@callee
def multiply_block(
    a: Any, a_off: Any, lda: Any, rows: Any, kp: Any, k0: Any, k1: Any, kc: Any, b: Any, panel0: Any, walk: Any, c: Any,
    c_off: Any, normal: Any, y: Any, y_off: Any, ldy: Any, n_cols: Any, row_scale: Any, row_off: Any, col_scale: Any,
    offset: Any,
) -> None:  # fmt: skip
    """Y = bf16((A[rows, k0:k1] @ B[panel0:panel0+walk, k0:k1] + offset) * scales).

    A begins at a[a_off], Y at y[y_off], their rows are lda and ldy apart. With n_cols = 0 the sums stay in C, at
    c[c_off] as [walk][rows][NR]; else that many columns are stored. k0, k1 and kc are multiples of KR.
    """
    n_blocks = ceil_div(rows, MR)
    kr = step_of(b)
    # Loop 3: split k in kc (A, B); not parallel: the sums run on in C.
    for ks in range(k0, k1, kc):
        k_cur = min(kc, k1 - ks)
        last = ks + k_cur == k1
        # Loop 2: split the token block in register tiles of mr_cur rows (A, C)
        for ib in range(n_blocks):
            first = block_start(rows, n_blocks, ib)
            mr_cur = block_start(rows, n_blocks, ib + 1) - first
            ahead, ahead_step, locality = _what_to_prefetch(ks, k_cur, kp, walk, kr, ib, n_blocks, mr_cur, b.itemsize)
            # Loop 1: the panels of the walk, while this block of A stays in L1 (B, C)
            for p in range(walk):
                a_at, b_at = a_off + first * lda + ks, ((panel0 + p) * kp + ks) * NR
                c_at, y_at = c_off + (p * rows + first) * NR, y_off + first * ldy + p * NR
                if last and (p + 1) * NR <= n_cols:
                    ukernel_store(
                        mr_cur, k_cur, a, a_at, lda, b, b_at, ahead, ahead_step, locality, c, c_at, ks > k0, normal,
                        y, y_at, ldy, row_scale, row_off + first, col_scale, offset, (panel0 + p) * NR,
                    )  # fmt: skip
                else:
                    ukernel(
                        mr_cur, k_cur, a, a_at, lda, b, b_at, ahead, ahead_step, locality, c, c_at, ks > k0, normal
                    )  # fmt: skip
                    if last and p * NR < n_cols:
                        store_tile(
                            mr_cur, n_cols - p * NR, c, c_at, NR, y, y_at, ldy, row_scale, row_off + first, col_scale,
                            offset, (panel0 + p) * NR,
                        )  # fmt: skip


@callee
def _what_to_prefetch(
    ks: Any, k_cur: Any, kp: Any, walk: Any, kr: Any, ib: Any, n_blocks: Any, mr_cur: Any, itemsize: Any
) -> Any:
    """(ahead, ahead_step, locality) of `ukernel`, in elements of B.

    A single register tile reads each weight once, so it asks for what it will read itself a little later. Of several,
    only the first would wait for memory: so each asks for its share of the block that comes next in B, which has
    arrived when this one is done. Which cache they come to was measured, see docs/performance.md.
    """
    if n_blocks == 1:
        few = mr_cur <= _FEW_ROWS
        distance = AHEAD_ONCE_BYTES if few else AHEAD_L2_BYTES
        return np.int64(distance // itemsize), np.int64(NR * kr), np.int64(ONCE if few else IN_L2)
    # Behind this block lies the panel's next one; behind its last the walk of panels that follows.
    following = (k_cur if ks + k_cur < kp else walk * kp - ks) * NR
    locality = np.int64(IN_L2 if n_blocks == 2 else IN_L1)
    return np.int64(following + k_cur * NR * ib // n_blocks), np.int64(NR * kr // n_blocks), locality


@callee
def _store_split(c: Any, second_off: Any, rows: Any, walk: Any, n_cols: Any, y: Any, y_off: Any) -> None:
    """Two sums, one add, one rounding."""
    for p in range(walk):
        n_cur = min(np.int64(NR), n_cols - p * NR)
        for i in range(rows):
            at = (p * rows + i) * NR
            first, second = window(c, at, n_cur), window(c, second_off + at, n_cur)
            out = window(y, y_off + i * y.shape[1] + p * NR, n_cur)
            for j in range(n_cur):
                out[j] = round_bf16(first[j] + second[j])


@callee
def n_pair_tasks(t: Any, n0: Any, n1: Any, mc: Any, walk0: Any, walk1: Any) -> Any:
    """Tasks of two products of the same A, with n0 and n1 columns."""
    return (ceil_div(ceil_div(n0, NR), walk0) + ceil_div(ceil_div(n1, NR), walk1)) * ceil_div(t, mc)


@callee
def pair_task(
    task: Any, a: Any, lda: Any, kp: Any, b: Any, offset: Any, row_scale: Any, col_scale: Any, n_parts: Any,
    least_a: Any, least_b: Any, y0: Any, y1: Any, c: Any, mc: Any, kc: Any, walk0: Any, walk1: Any,
) -> None:  # fmt: skip
    """One task of two products of the same A: y0 from the first panels of B, y1 from the others.

    y0 (t, n0), y1 (t, n1): uint16 bits of bf16. With n_parts = 2, y0 is the sum of two sums, over the halves of k; y1
    is always one sum. For bf16, `least_a` (t,) int32 and `least_b` are the operands' `least_magnitude`, by row and of
    all; else they change nothing. Walks of B are outside, token blocks of A inside, so that B is read once.
    """
    t = y0.shape[0]
    n_panels0, n_panels1 = ceil_div(y0.shape[1], NR), ceil_div(y1.shape[1], NR)
    n_walks0, n_walks1 = ceil_div(n_panels0, walk0), ceil_div(n_panels1, walk1)
    n_blocks = ceil_div(t, mc)
    walk_index = task // n_blocks
    row0 = block_start(t, n_blocks, task % n_blocks)
    rows = block_start(t, n_blocks, task % n_blocks + 1) - row0
    normal = sums_stay_normal(least_of(window(least_a, row0, rows)), least_b)
    if walk_index < n_walks0:
        y, first_panel, parts = y0, np.int64(0), np.int64(n_parts)
        panel = block_start(n_panels0, n_walks0, walk_index)
        walk = block_start(n_panels0, n_walks0, walk_index + 1) - panel
    else:
        y, first_panel, parts = y1, np.int64(n_panels0), np.int64(1)
        panel = block_start(n_panels1, n_walks1, walk_index - n_walks0)
        walk = block_start(n_panels1, n_walks1, walk_index - n_walks0 + 1) - panel
    n_cols = min(walk * NR, y.shape[1] - panel * NR)
    y_at = row0 * y.shape[1] + panel * NR
    part, second = kp // parts, np.int64(walk) * rows * NR
    for s in range(parts):
        multiply_block(
            a, row0 * lda, lda, rows, kp, s * part, (s + 1) * part, kc, b, first_panel + panel, walk, c, s * second,
            normal, y, y_at, y.shape[1], n_cols if parts == 1 else 0, row_scale, row0, col_scale, offset,
        )  # fmt: skip
    if parts == 2:
        _store_split(c, second, rows, walk, n_cols, y, y_at)


@kernel
def matmul_pair(
    a: Any, lda: Any, kp: Any, b: Any, offset: Any, row_scale: Any, col_scale: Any, n_parts: Any, least_a: Any,
    least_b: Any, y0: Any, y1: Any, c: Any, counters: Any, mc: Any, kc: Any, walk0: Any, walk1: Any, grain: Any,
    n_workers: Any,
) -> None:  # fmt: skip
    """Two products of the same A in a parallel region of their own: see `pair_task`."""
    n_tasks = n_pair_tasks(y0.shape[0], y0.shape[1], y1.shape[1], mc, walk0, walk1)
    for worker in prange(n_workers):
        scratch = row_of(c, worker)
        first, end = draw(counters, 0, worker, n_workers, n_tasks, grain)
        while first < end:
            for task in range(first, end):
                pair_task(
                    task, a, lda, kp, b, offset, row_scale, col_scale, n_parts, least_a, least_b, y0, y1, scratch, mc,
                    kc, walk0, walk1,
                )  # fmt: skip
            first, end = draw(counters, 0, worker, n_workers, n_tasks, grain)
