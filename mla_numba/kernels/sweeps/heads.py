"""Sweep 3, head by head: QuantMatmul_qb, Dequant_qb, Rope_qRope and Matmul_qNope_wUk, fused.

    q[t] = bf16(float32(A[t] @ w_uq_qr[:, head]) * token_scale[t] * channel_scale), rope columns first
    query_rope[t, head] = rope(q[t, :R])        query_nope[t, head] = bf16(q[t, R:] @ w_uk[head])

A task is a token block and a head. The head's slice of q exists only in the worker's scratch, in its core's cache, in
rows that the product with w_uk reads as they are: the (T, heads * (D + R)) query is never written to memory.

| array       | shape                        | dtype           | notes                                                 |
|-------------|------------------------------|-----------------|-------------------------------------------------------|
| a           | (t, lda)                     | see `ukernel`      | activations of q_norm, from sweep 2                   |
| w_uq_qr     | [head][panel][kp/KR][NR][KR] | int8 or uint16  | a head's rope columns first, as halves; then w_uk's k |
| offset, col_scale | [head][panel][NR]      | int32, float32  | see `gemm`                                            |
| row_scale   | (T,)                         | float32         | likewise; not read for bf16 weights                   |
| w_uk        | [head][panel][kp/KR][NR][KR] | uint16          | k = D, n = C                                          |
| cos, sin    | (T, R)                       | uint16          | bf16 bits; token t0 + row                             |
| query_nope, query_rope | (T, N, C), (T, N, R) | uint16       | rows t0..t0+t are written                             |
| c_up, c_uk  | (walk * mc * NR,)            | see `gemm`      | scratch                                               |
| q_head      | (mc * ldq,)                  | A_BF16_DTYPE    | scratch: the head's q                                 |
| y           | (>= R,)                      | float32         | scratch                                               |
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit.callee import callee
from ..micro.ukernel import NR
from ..row.rope import rotate_row
from ..scalars import NONE_NONZERO, least_magnitude, least_of, round_bf16, row_of, sums_stay_normal, window
from ..threads.tasks import block_start, ceil_div
from .gemm import multiply_block


@callee
def _rope_head(
    q_head: Any, rows: Any, ldq: Any, cos: Any, sin: Any, token0: Any, head: Any, y: Any, query_rope: Any
) -> None:
    """Rope_qRope: the first R columns of q_head straight into query_rope."""
    n = query_rope.shape[2]
    rotated = window(y, 0, n)
    for i in range(rows):
        token = token0 + i
        rotate_row(window(q_head, i * ldq, n), row_of(cos, token), row_of(sin, token), rotated)
        out = row_of(query_rope, token * query_rope.shape[1] + head)
        for j in range(n):
            out[j] = round_bf16(rotated[j])


@callee
def _least_nope(q_head: Any, first: Any, rows: Any, ldq: Any, col0: Any, d: Any) -> Any:
    """The `least_magnitude` of the nope part of some rows of q_head."""
    least = NONE_NONZERO
    for i in range(first, first + rows):
        least = min(least, least_magnitude(window(q_head, i * ldq + col0, d)))
    return np.int32(least)


@callee
def head_task(
    task: Any, t0: Any, t: Any, a: Any, kp: Any, w_uq_qr: Any, offset: Any, row_scale: Any, col_scale: Any,
    least_a: Any, least_up: Any, w_uk: Any, kp_uk: Any, least_uk: Any, cos: Any, sin: Any, query_nope: Any,
    query_rope: Any, c_up: Any, c_uk: Any, q_head: Any, y: Any, mc: Any, kc_up: Any, walk_up: Any, mc_uk: Any,
    kc_uk: Any, walk_uk: Any, d: Any,
) -> None:  # fmt: skip
    """A head of a block of tokens. Heads are outside, blocks inside, so that a head's weights are read once.

    `least_magnitude`s: least_a (t,) int32 of a's rows and least_up of w_uq_qr, for bf16 ones; least_uk of w_uk.
    """
    n_heads, rope, latent = query_nope.shape[1], query_rope.shape[2], query_nope.shape[2]
    n_up, n_uk = ceil_div(rope + d, NR), ceil_div(latent, NR)
    ldq, n_blocks, lda = n_up * NR, ceil_div(t, mc), a.shape[1]
    head = task // n_blocks
    row0 = block_start(t, n_blocks, task % n_blocks)
    rows = block_start(t, n_blocks, task % n_blocks + 1) - row0
    normal = sums_stay_normal(least_of(window(least_a, row0, rows)), least_up)
    # Loop 4: the head's columns, a walk of panels at a time
    n_walks = ceil_div(n_up, walk_up)
    for iw in range(n_walks):
        panel = block_start(n_up, n_walks, iw)
        walk = block_start(n_up, n_walks, iw + 1) - panel
        multiply_block(
            a, row0 * lda, lda, rows, kp, 0, kp, kc_up, w_uq_qr, head * n_up + panel, walk, c_up, 0, normal,
            q_head, panel * NR, ldq, walk * NR, row_scale, t0 + row0, col_scale, offset,
        )  # fmt: skip
    _rope_head(q_head, rows, ldq, cos, sin, t0 + row0, head, y, query_rope)
    # Loop 4 again, for w_uk: row sub-blocks outside, since its panels are small and stay in cache
    n_blocks_uk, n_walks_uk = ceil_div(rows, mc_uk), ceil_div(n_uk, walk_uk)
    for ib in range(n_blocks_uk):
        first = block_start(rows, n_blocks_uk, ib)
        rows_uk = block_start(rows, n_blocks_uk, ib + 1) - first
        normal = sums_stay_normal(_least_nope(q_head, first, rows_uk, ldq, rope, d), least_uk)
        nope_at = ((t0 + row0 + first) * n_heads + head) * latent
        for iw in range(n_walks_uk):
            panel = block_start(n_uk, n_walks_uk, iw)
            walk = block_start(n_uk, n_walks_uk, iw + 1) - panel
            multiply_block(
                q_head, first * ldq + rope, ldq, rows_uk, kp_uk, 0, kp_uk, kc_uk, w_uk, head * n_uk + panel, walk,
                c_uk, 0, normal, query_nope, nope_at + panel * NR, n_heads * latent,
                min(walk * NR, latent - panel * NR), row_scale, 0, col_scale, offset,
            )  # fmt: skip
