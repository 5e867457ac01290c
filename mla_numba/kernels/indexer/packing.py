"""x and q_norm as activations: rows of the operands of the indexer's products, where the prolog's are not there.

| array  | shape          | dtype         | notes                       |
|--------|----------------|---------------|-----------------------------|
| x      | (T, H)         | uint16        | bf16 bits                   |
| q_norm | (T, Rq)        | int8          | codes, of the prolog        |
| a_x    | (t, lda >= kp) | A_BF16_DTYPE  | see `operand`               |
| a_q    | (t, lda >= kp) | A_INT8_DTYPE  | likewise                    |
"""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee
from ..kinds import Index
from ..launch import outlined
from ..row.operand import bf16_operand_row, int8_operand_row
from ..scalars import min_magnitude, row_of, window
from ..sweeps.arguments import TokenTile
from ..sweeps.phase import Tasks, Team, share
from ..threads.tasks import block_start
from .arguments import Indexer, IndexPacking


@callee
def packing_of(index: Indexer, tile: TokenTile) -> IndexPacking:
    """What phase INDEX_PACK of a tile takes."""
    tokens, buffers, layer = index.tokens, index.buffers, index.layer
    return IndexPacking(
        tokens.x, tokens.q_norm, buffers.x, buffers.q, layer.down.kp, layer.up.kp, index.packs_x, index.packs_q,
        np.int64(tile.t0), np.int64(tile.t),
    )  # fmt: skip


@callee
def _pack_task(task: Index, n_tasks: Index, worker: Index, work: IndexPacking) -> None:
    for row in range(block_start(work.t, n_tasks, task), block_start(work.t, n_tasks, task + 1)):
        if work.packs_x:
            x = row_of(work.x, work.t0 + row)
            bf16_operand_row(x, 1, window(row_of(work.a_x.rows, row), 0, work.kp_x))
            work.a_x.min_magnitude[row] = min_magnitude(x)
        if work.packs_q:
            int8_operand_row(row_of(work.q_norm, work.t0 + row), row_of(work.a_q.rows, row), work.kp_q)


@outlined
def index_pack(worker: Index, team: Team, tasks: Tasks, work: IndexPacking) -> None:
    """Phase INDEX_PACK."""
    share(worker, team, tasks, _pack_task, work)
