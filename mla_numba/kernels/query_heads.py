"""Sweep 3, head by head: QuantMatmul_qb, Dequant_qb, Rope_qRope and Matmul_qNope_wUk, fused.

    q[t, 0:D+R] = bf16(float32(A[t] @ w_uq_qr[:, head]) * token_scale[t] * channel_scale)
    query_rope[t, head] = rope(q[t, D:])        query_nope[t, head] = bf16(q[t, :D] @ w_uk[head])

A task is a token block and a head. The head's slice of q exists only in the worker's scratch, in its core's cache: the
(T, heads * (D + R)) query is never written to memory.

| array       | shape                          | dtype            | notes                                        |
|-------------|--------------------------------|------------------|----------------------------------------------|
| a           | see `gemm`                     | see `simd`       | packed q_norm, from sweep 2                  |
| w_uq_qr     | [head][panel][kp/KR][NR][KR]   | int8 or uint16   | packed; columns D + R of a head, padded to NR |
| offset, col_scale | [head][panel][NR]        | c_up's, float32  | see `gemm`                                   |
| w_uk        | [head][panel][kp/KR][NR][KR]   | uint16           | packed, k = D, n = C                         |
| cos, sin    | (T, R)                         | uint16           | bf16 bits; token t0 + row                    |
| query_nope, query_rope | (T, heads, C), (T, heads, R) | uint16 | rows t0..t0+t are written                 |
| c_up, c_uk  | (n_workers, walk * mc * NR)    | int32 or float32, float32 | scratch                             |
| q_head      | (n_workers, mc * ldq)          | uint16           | scratch: the head's q, bf16 bits             |
| a_nope      | (n_workers, mc * kp_uk)        | see `simd`       | scratch: q_nope packed                       |
| scratch     | (n_workers, >= R)              | float32          |                                              |
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import register_jitable

from ._jit import kernel
from .gemm import multiply_block, scale_acc
from .packing import pack_row_bf16
from .rope import rotate_row
from .scalars import NONE_NONZERO, least_magnitude, least_of, round_bf16, row_of, sums_stay_normal, window
from .simd import KR_BF16, MR, NR
from .tasks import block_start, ceil_div, draw


@register_jitable
def _dequantise(
    c: Any,
    first: Any,
    n: Any,
    rows: Any,
    row0: Any,
    panel0: Any,
    panel: Any,
    walk: Any,
    offset: Any,
    row_scale: Any,
    col_scale: Any,
    q_head: Any,
    ldq: Any,
) -> None:
    """Dequant_qb: rows first..first+n of the `rows` of a walk's accumulators to q_head, rounded to bf16."""
    for i in range(first, first + n):
        scale = row_scale[row0 + i]
        for p in range(walk):
            sums = window(c, (p * rows + i) * NR, NR)
            offsets = window(offset, (panel0 + panel + p) * NR, NR)
            scales = window(col_scale, (panel0 + panel + p) * NR, NR)
            out = window(q_head, i * ldq + (panel + p) * NR, NR)
            for j in range(NR):
                out[j] = scale_acc(sums[j], offsets[j], scale, scales[j])


@register_jitable
def _rope_head(
    q_head: Any, rows: Any, ldq: Any, d: Any, cos: Any, sin: Any, token0: Any, head: Any, rotated: Any, y: Any
) -> None:
    """Rope_qRope: the last R columns of q_head straight into query_rope."""
    n = y.shape[2]
    for i in range(rows):
        token = token0 + i
        rotate_row(window(q_head, i * ldq + d, n), row_of(cos, token), row_of(sin, token), rotated)
        out = row_of(y, token * y.shape[1] + head)
        for j in range(n):
            out[j] = round_bf16(rotated[j])


@register_jitable
def _pack_nope(q_head: Any, first: Any, rows: Any, ldq: Any, d: Any, kp: Any, a_nope: Any) -> Any:
    """Packs the first D columns of q_head rows first..first+rows as activations of the product with w_uk.

    Returns their `least_magnitude`.
    """
    least = NONE_NONZERO
    n_blocks = ceil_div(rows, MR)
    for ib in range(n_blocks):
        start = block_start(rows, n_blocks, ib)
        mr = block_start(rows, n_blocks, ib + 1) - start
        block = window(a_nope, start * kp, kp * mr)
        for i in range(mr):
            row = window(q_head, (first + start + i) * ldq, d)
            pack_row_bf16(row, i, mr, block)
            least = min(least, least_magnitude(row))
    return np.int32(least)


@register_jitable
def _store_nope(c: Any, rows: Any, walk: Any, col0: Any, token0: Any, head: Any, y: Any) -> None:
    """Assemble_queryOut: a walk's accumulators to query_nope."""
    for i in range(rows):
        query = row_of(y, (token0 + i) * y.shape[1] + head)
        for p in range(walk):
            col = col0 + p * NR
            n_cols = min(np.int64(NR), len(query) - col)
            sums, out = window(c, (p * rows + i) * NR, n_cols), window(query, col, n_cols)
            for j in range(n_cols):
                out[j] = round_bf16(sums[j])


@kernel
def query_heads(
    a: Any,
    kp: Any,
    w_uq_qr: Any,
    offset: Any,
    row_scale: Any,
    col_scale: Any,
    w_uk: Any,
    cos: Any,
    sin: Any,
    t0: Any,
    t: Any,
    d: Any,
    least_a: Any,
    least_up: Any,
    least_uk: Any,
    query_nope: Any,
    query_rope: Any,
    c_up: Any,
    c_uk: Any,
    q_head: Any,
    a_nope: Any,
    scratch: Any,
    counters: Any,
    mc: Any,
    kc_up: Any,
    walk_up: Any,
    q_rows: Any,
    mc_uk: Any,
    kc_uk: Any,
    walk_uk: Any,
    grain: Any,
    n_workers: Any,
) -> None:
    """The heads sweep of one token tile.

    row_scale (t,) float32 is by row of the tile; ones for bf16 weights. `least_magnitude`s: least_a (t,) int32 of a's
    rows and least_up of w_uq_qr, read for bf16 ones only; least_uk of w_uk.
    """
    n_heads = query_nope.shape[1]
    n_up = ceil_div(d + query_rope.shape[2], NR)
    n_uk = ceil_div(query_nope.shape[2], NR)
    kp_uk = ceil_div(d, KR_BF16) * KR_BF16
    ldq = n_up * NR
    n_walks_up, n_walks_uk = ceil_div(n_up, walk_up), ceil_div(n_uk, walk_uk)
    n_blocks = ceil_div(t, mc)
    n_tasks = n_heads * n_blocks
    # Loop 5: heads outside, token blocks inside, so that a head's weights are read from memory once.
    for worker in prange(n_workers):
        acc_up, acc_uk = row_of(c_up, worker), row_of(c_uk, worker)
        q, a_uk, rotated = row_of(q_head, worker), row_of(a_nope, worker), row_of(scratch, worker)
        task, end = draw(counters, worker, n_workers, n_tasks, grain)
        while task < end:
            for now in range(task, end):
                head = now // n_blocks
                row0 = block_start(t, n_blocks, now % n_blocks)
                rows = block_start(t, n_blocks, now % n_blocks + 1) - row0
                normal_up = sums_stay_normal(least_of(window(least_a, row0, rows)), least_up)
                # Loop 4: the head's columns, a walk of panels at a time
                for iw in range(n_walks_up):
                    panel = block_start(n_up, n_walks_up, iw)
                    walk = block_start(n_up, n_walks_up, iw + 1) - panel
                    multiply_block(
                        a, row0, rows, kp, 0, kp, kc_up, w_uq_qr, head * n_up + panel, walk, acc_up, 0, False,
                        normal_up,
                    )  # fmt: skip
                    for first in range(0, rows, q_rows):
                        _dequantise(
                            acc_up, first, min(q_rows, rows - first), rows, row0, head * n_up, panel, walk, offset,
                            row_scale, col_scale, q, ldq,
                        )  # fmt: skip
                _rope_head(q, rows, ldq, d, cos, sin, t0 + row0, head, rotated, query_rope)
                # Loop 4 again, for w_uk: row sub-blocks outside, since its panels are small and stay in cache
                n_uk_blocks = ceil_div(rows, mc_uk)
                for ib in range(n_uk_blocks):
                    first = block_start(rows, n_uk_blocks, ib)
                    rows_uk = block_start(rows, n_uk_blocks, ib + 1) - first
                    least = _pack_nope(q, first, rows_uk, ldq, d, kp_uk, a_uk)
                    normal_uk = sums_stay_normal(least, least_uk)
                    for iw in range(n_walks_uk):
                        panel = block_start(n_uk, n_walks_uk, iw)
                        walk = block_start(n_uk, n_walks_uk, iw + 1) - panel
                        multiply_block(
                            a_uk, 0, rows_uk, kp_uk, 0, kp_uk, kc_uk, w_uk, head * n_uk + panel, walk, acc_uk, 0,
                            False, normal_uk,
                        )  # fmt: skip
                        _store_nope(acc_uk, rows_uk, walk, panel * NR, t0 + row0 + first, head, query_nope)
            task, end = draw(counters, worker, n_workers, n_tasks, grain)
