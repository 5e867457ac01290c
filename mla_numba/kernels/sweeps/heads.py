"""Sweep 3, head by head: QuantMatmul_qb, Dequant_qb, Rope_qRope and Matmul_qNope_wUk, fused.

    q[t] = bf16(float32(A[t] @ w_uq_qr[:, head]) * token_scale[t] * channel_scale), rope columns first
    query_rope[t, head] = rope(q[t, :R])        query_nope[t, head] = bf16(q[t, R:] @ w_uk[head])

A task is a token block and a head, or a leg of that. The head's slice of q exists only in scratch, in its core's cache,
in rows that the product with w_uk reads as they are: the (T, heads * (D + R)) query is never written to memory.

| array       | shape                        | dtype           | notes                                                 |
|-------------|------------------------------|-----------------|-------------------------------------------------------|
| a           | (t, lda)                     | see `operands`  | activations of q_norm, from sweep 2; its scales by T  |
| up          | [head][panel][kp/KR][NR][KR] | int8 or uint16  | a head's rope columns first, as halves; then w_uk's k |
| uk          | [head][panel][kp/KR][NR][KR] | uint16          | k = D, n = C                                          |
| cos, sin    | (T, R)                       | uint16          | bf16 bits; token t0 + row                             |
| query_nope, query_rope | (T, N, C), (T, N, R) | uint16       | rows t0..t0+t are written                             |
| c_up, c_uk  | (n_workers, walk * mc * NR)  | see `gemm`      | scratch                                               |
| q_head      | (n_workers, >= mc, ldq)      | A_BF16_DTYPE    | scratch: the head's q, in whole panels; where it has  |
|             | or (n_relays, >= mc, ldq)    |                 | legs, a block for each head and token block           |
| y           | (n_workers, >= R)            | float32         | scratch                                               |
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..jit.callee import callee
from ..kinds import F32, Bits, Index, Values
from ..launch import outlined
from ..micro.operands import A, C, Y
from ..micro.ukernel import NR
from ..row.rope import rotate_row
from ..scalars import NONE_NONZERO, min_magnitude, min_of, round_row, row_of, sums_stay_normal, window
from ..threads.tasks import block_of, ceil_div
from .arguments import Activations, HeadsCut, Weight
from .gemm import Depth, Walk, multiply_block
from .phase import HEADS, LAP_MARKS, Tasks, Team, mark, share_legs


class Heads(NamedTuple):
    """What the heads of a tile's tokens are computed from, and where to: see above."""

    a: Activations
    up: Weight
    uk: Weight
    cos: Bits
    sin: Bits
    query_nope: Bits
    query_rope: Bits
    c_up: Values
    c_uk: F32
    q_head: Values
    y: F32
    cut: HeadsCut
    nope_dim: Index
    t0: Index
    t: Index
    laps: Any


class HeadRows(NamedTuple):
    """Some tokens' q of one head: row i, of token + i, lies at rows[i * step]."""

    rows: Values
    step: Index
    n: Index
    head: Index
    token: Index


@callee
def _rope_head(work: Heads, q: HeadRows, y: F32) -> None:
    """Rope_qRope: the first R columns of q straight into query_rope."""
    n_heads, n = work.query_rope.shape[1], work.query_rope.shape[2]
    rotated = window(y, 0, n)
    for i in range(q.n):
        token = q.token + i
        rotate_row(window(q.rows, i * q.step, n), row_of(work.cos, token), row_of(work.sin, token), rotated)
        round_row(rotated, row_of(work.query_rope, token * n_heads + q.head))


@callee
def _min_nope_magnitude(q: HeadRows, first: Index, rows: Index, rope: Index, kp: Index) -> Index:
    """The `min_magnitude` of the nope part of some rows of q, an operand of kp elements with zeros anywhere in it."""
    least = NONE_NONZERO
    for i in range(first, first + rows):
        least = min(least, min_magnitude(window(q.rows, i * q.step + rope, kp)))
    return np.int32(least)


@callee
def up_head(
    a: Activations, up: Weight, cut: HeadsCut, n_columns: Index, q: HeadRows, row0: Index, leg: Index, c: C
) -> None:
    """A leg's columns of q of one head, n_columns wide: QuantMatmul_qb, Dequant_qb."""
    n_panels, lda = ceil_div(n_columns, NR), a.rows.shape[1]
    no_subnormals = sums_stay_normal(min_of(window(a.min_magnitude, row0, q.n)), up.min_magnitude)
    rows, depth = A(a.rows, row0 * lda, lda), Depth(np.int64(0), up.kp, cut.kc)
    first = leg * cut.leg_panels
    n_left = n_panels - first if leg == cut.legs - 1 else cut.leg_panels
    # Loop 4: the columns, a walk of panels at a time
    n_walks = ceil_div(n_left, cut.walk)
    for iw in range(n_walks):
        at, n = block_of(n_left, n_walks, iw)
        panel = first + at
        walk = Walk(up.panels, up.kp, q.head * n_panels + panel, n, n)
        y = Y(q.rows, panel * NR, q.step, a.scale, q.token, up.col_scale, up.offset, np.int64(0))
        multiply_block(rows, q.n, walk, depth, c, no_subnormals, y, n * NR)


@callee
def _uk_head(work: Heads, q: HeadRows, c: C) -> None:
    """Matmul_qNope_wUk of one head. Row sub-blocks are outside, since its panels are small and stay in cache."""
    uk, cut = work.uk, work.cut
    n_heads, latent, rope = work.query_nope.shape[1], work.query_nope.shape[2], work.query_rope.shape[2]
    n_panels = ceil_div(latent, NR)
    n_blocks, n_walks = ceil_div(q.n, cut.mc_uk), ceil_div(n_panels, cut.walk_uk)
    depth = Depth(np.int64(0), uk.kp, cut.kc_uk)
    for ib in range(n_blocks):
        first, rows = block_of(q.n, n_blocks, ib)
        magnitude = _min_nope_magnitude(q, first, rows, rope, uk.kp)
        no_subnormals = sums_stay_normal(magnitude, uk.min_magnitude)
        nope_at = ((q.token + first) * n_heads + q.head) * latent
        a = A(q.rows, first * q.step + rope, q.step)
        # Loop 4 again
        for iw in range(n_walks):
            panel, n = block_of(n_panels, n_walks, iw)
            walk = Walk(uk.panels, uk.kp, q.head * n_panels + panel, n, n)
            y = Y(
                work.query_nope, nope_at + panel * NR, n_heads * latent, work.a.scale, np.int64(0), uk.col_scale,
                uk.offset, np.int64(0),
            )  # fmt: skip
            multiply_block(a, rows, walk, depth, c, no_subnormals, y, min(n * NR, latent - panel * NR))


@callee
def head_task(task: Index, n_tasks: Index, worker: Index, work: Heads) -> None:
    """A head of a block of tokens. Heads are outside, blocks inside, so that a head's weights are read once."""
    n_blocks, legs = ceil_div(work.t, work.cut.mc), work.cut.legs
    relay, leg = task % (n_tasks // legs), task // (n_tasks // legs)
    row0, rows = block_of(work.t, n_blocks, relay % n_blocks)
    _, most, ldq = work.q_head.shape
    owner = relay if legs > 1 else worker
    q = HeadRows(
        window(work.q_head, owner * most * ldq, most * ldq), np.int64(ldq), rows, relay // n_blocks, work.t0 + row0
    )
    n_columns = work.query_rope.shape[2] + work.nope_dim
    up_head(work.a, work.up, work.cut, n_columns, q, row0, leg, C(row_of(work.c_up, worker), np.int64(0), False))
    if leg == legs - 1:
        mark(work.laps, HEADS, task, LAP_MARKS)
        _rope_head(work, q, row_of(work.y, worker))
        mark(work.laps, HEADS, task, LAP_MARKS + 1)
        _uk_head(work, q, C(row_of(work.c_uk, worker), np.int64(0), False))


@outlined
def heads(worker: Index, team: Team, tasks: Tasks, work: Heads) -> None:
    """Phase HEADS: QuantMatmul_qb, Dequant_qb, Rope_qRope, Matmul_qNope_wUk."""
    share_legs(worker, team, tasks, work.cut.legs, work.cut.groups, head_task, work)
