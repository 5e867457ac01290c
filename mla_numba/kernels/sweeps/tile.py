"""One tile of tokens through all sweeps, in one parallel region.

| phase | a task                        | waits for | stages                                                           |
|-------|-------------------------------|-----------|------------------------------------------------------------------|
| PACK  | some rows of x                |           | Quant_x, where w_dq is int8                                      |
| DOWN  | token block x walk of columns | PACK      | Matmul_qa, Matmul_kva                                            |
| QUERY | some rows of q_a              | DOWN      | RmsNorm_qa, Quant_qMnRes                                         |
| KEY   | some rows of kv_a             | DOWN      | RmsNorm_compressedkv, Quant_knope, RotaryPosEmb, ScatterUpdate_* |
| HEADS | token block x head            | QUERY     | QuantMatmul_qb, Dequant_qb, Rope_qRope, Matmul_qNope_wUk         |

Threads are woken once a tile; a worker that wakes late finds its share of the work taken (see `tasks`).
"""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee
from ..kinds import Index
from ..launch import kernel
from ..threads.tasks import ceil_div, linger
from .arguments import Activations, Buffers, Caches, Cuts, Layer, Tokens, TokenTile
from .gemm import Pair, down, pair_tasks
from .heads import Heads, heads
from .phase import DOWN, HEADS, KEY, PACK, QUERY, Tasks, Team, wait
from .rows import KeyRows, PackRows, QueryRows, key, pack, query


@callee
def _row_tasks(phase: Index, t: Index, rows: Index) -> Tasks:
    """The tasks of a phase that takes `rows` rows at a time."""
    return Tasks(np.int64(phase), np.int64(ceil_div(t, rows)), np.int64(1))


@kernel
def prolog_tile(
    worker: Index, tokens: Tokens, caches: Caches, layer: Layer, buffers: Buffers, cuts: Cuts, tile: TokenTile
) -> None:
    """One worker's way through the phases of a tile."""
    t0, t, y, cann = np.int64(tile.t0), np.int64(tile.t), buffers.y, layer.cann
    team = Team(cuts.n_workers, buffers.counters, buffers.spans, tile.traced)
    pair = Pair(buffers.x, layer.down, buffers.q_a, buffers.kv_a, buffers.c_down, cuts.down)
    of_pack, of_down = _row_tasks(PACK, t, cuts.rows_x), pair_tasks(DOWN, pair)
    of_query, of_key = _row_tasks(QUERY, t, cuts.rows_q), _row_tasks(KEY, t, cuts.rows_k)

    if tile.first == PACK:
        pack(worker, team, of_pack, PackRows(tokens.x, buffers.x, layer.down.kp, layer.down.n_parts, cann, y, t0, t))
        wait(team, of_pack)
        down(worker, team, of_down, pair)
        wait(team, of_down)
    if tile.last >= QUERY:
        rows = QueryRows(
            buffers.q_a, layer.query_norm, cann, tokens.q_norm, tokens.q_norm_scale, buffers.q, layer.up.kp, y, t0, t
        )
        query(worker, team, of_query, rows)
    if tile.last >= HEADS:
        keys = KeyRows(buffers.kv_a, layer.key_norm, cann, tokens.cos, tokens.sin, tokens.cache_index, caches, y, t0, t)
        key(worker, team, of_key, keys)
        wait(team, of_query)
        q = Activations(buffers.q.rows, tokens.q_norm_scale, buffers.q.min_magnitude)
        n_tasks = tokens.query_nope.shape[1] * ceil_div(t, cuts.heads.mc) * cuts.heads.legs
        of_heads = Tasks(np.int64(HEADS), np.int64(n_tasks), np.int64(cuts.heads.grain))
        work = Heads(
            q, layer.up, layer.uk, tokens.cos, tokens.sin, tokens.query_nope, tokens.query_rope, buffers.c_up,
            buffers.c_uk, buffers.q_head, y, cuts.heads, layer.qk_nope_head_dim, t0, t,
        )  # fmt: skip
        heads(worker, team, of_heads, work)
        if worker == 0:
            # The caller's own thread, that would fall asleep at the end of the region and have to be woken.
            linger(team.counters, HEADS, team.n_workers, of_heads.n)
