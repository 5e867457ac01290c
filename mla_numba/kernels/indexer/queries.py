"""The indexer's queries, head by head, all steps fused.

    QuantMatmul_indexQ -> Dequant_indexQ -> Rope_indexQ -> Hadamard_indexQ -> Quant_indexQ

    q[t] = bf16(float32(A[t] @ w_qb[:, head]) * token_scale[t] * channel_scale),  its first R columns rotated
    query[t, head], query_scale[t, head] = quant(bf16(q[t] @ hadamard_q))

A task is a token block and a head, as in `sweeps.heads`. The head's q exists only in the worker's scratch.

| array       | shape                        | dtype          | notes                                                |
|-------------|------------------------------|----------------|------------------------------------------------------|
| a           | (t, lda)                     | A_INT8_DTYPE   | activations of q_norm; its scales by T               |
| up          | [head][panel][kp/KR][NR][KR] | int8           | the columns to be rotated first, as halves           |
| hadamard    | see `hadamard`               | uint16         |                                                      |
| cos, sin    | (T, R)                       | uint16         | bf16 bits                                            |
| query       | (T, Ni, Di)                  | int8           | rows t0..t0+t are written                            |
| query_scale | (T * Ni,)                    | uint16         | bits of fp16, likewise                               |
| rows        | (n_workers, n, ldq)          | A_BF16_DTYPE   | scratch: the head's q, in whole panels               |
| bits        | (n_workers, >= n * Di)       | uint16         | scratch: bf16 products with the Hadamard matrix      |
| y           | (n_workers, 2 * Di + 16)     | float32        | scratch                                              |
"""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee
from ..kinds import F32, Bits, Index
from ..launch import outlined
from ..micro.operands import C
from ..row.operand import bf16_operand_row
from ..row.rmsnorm_quant import quant_row, quant_scales
from ..row.rope import rotate_row
from ..scalars import round_f16, round_row, row_of, window
from ..sweeps.arguments import Activations, TokenTile
from ..sweeps.heads import HeadRows, up_head
from ..sweeps.phase import INDEX_HEADS, Tasks, Team, share
from ..threads.tasks import block_of, ceil_div
from .arguments import Indexer, IndexQueries
from .hadamard import HadamardRows, multiply_rows, widen_row


@callee
def queries_of(index: Indexer, tile: TokenTile) -> IndexQueries:
    """What phase INDEX_HEADS of a tile takes."""
    tokens, buffers, layer = index.tokens, index.buffers, index.layer
    return IndexQueries(
        Activations(buffers.q.rows, tokens.q_norm_scale, buffers.q.min_magnitude), layer.up, layer.hadamard_q,
        tokens.cos, tokens.sin, tokens.query, tokens.query_scale, buffers.c_up, buffers.c_hadamard, buffers.rows,
        buffers.bits, buffers.y, index.cuts.heads, np.int64(tile.t0), np.int64(tile.t),
    )  # fmt: skip


@callee
def query_tasks(work: IndexQueries) -> Tasks:
    """The tasks of phase INDEX_HEADS."""
    n_tasks = work.query.shape[1] * ceil_div(work.t, work.cut.mc)
    return Tasks(np.int64(INDEX_HEADS), np.int64(n_tasks), np.int64(work.cut.grain))


@callee
def _rope_head(work: IndexQueries, q: HeadRows, bits: Bits, y: F32) -> None:
    """Rope_indexQ: the first R columns of q in place, as operands."""
    rope = work.cos.shape[1]
    rotated, rounded = window(y, 0, rope), window(bits, 0, rope)
    for i in range(q.n):
        here = window(q.rows, i * q.step, rope)
        rotate_row(here, row_of(work.cos, q.token + i), row_of(work.sin, q.token + i), rotated)
        round_row(rotated, rounded)
        bf16_operand_row(rounded, 1, here)


@callee
def _quant_head(work: IndexQueries, q: HeadRows, bits: Bits, y: F32) -> None:
    """Quant_indexQ: the codes and the scale of each token's q of a head."""
    _, n_heads, head_dim = work.query.shape
    values = window(y, 0, head_dim)
    for i in range(q.n):
        at = (q.token + i) * n_heads + q.head
        widen_row(window(bits, i * head_dim, head_dim), values)
        s, scale = quant_scales(values, False)
        quant_row(values, s, row_of(work.query, at))
        work.query_scale[at] = round_f16(scale)


@callee
def _query_task(task: Index, n_tasks: Index, worker: Index, work: IndexQueries) -> None:
    """A head of a block of tokens. Heads are outside, blocks inside, so that a head's weights are read once."""
    n_blocks, head_dim = ceil_div(work.t, work.cut.mc), work.query.shape[2]
    row0, rows = block_of(work.t, n_blocks, task % n_blocks)
    _, n_rows, ldq = work.rows.shape
    bits, y = row_of(work.bits, worker), row_of(work.y, worker)
    q = HeadRows(
        window(work.rows, worker * n_rows * ldq, n_rows * ldq), np.int64(ldq), rows, task // n_blocks, work.t0 + row0
    )
    up_head(work.a, work.up, work.cut, head_dim, q, row0, np.int64(0), C(row_of(work.c_up, worker), np.int64(0), False))
    _rope_head(work, q, bits, y)
    turned = HadamardRows(q.rows, q.step, rows, bits)
    multiply_rows(turned, work.hadamard, work.cut, head_dim, row_of(work.c_hadamard, worker))
    _quant_head(work, q, bits, y)


@outlined
def index_heads(worker: Index, team: Team, tasks: Tasks, work: IndexQueries) -> None:
    """Phase INDEX_HEADS: QuantMatmul_indexQ, Dequant_indexQ, Rope_indexQ, Hadamard_indexQ, Quant_indexQ."""
    share(worker, team, tasks, _query_task, work)
