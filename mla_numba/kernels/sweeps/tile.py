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
def row_tasks(phase: Index, t: Index, rows: Index) -> Tasks:
    """The tasks of a phase that takes `rows` rows at a time."""
    return Tasks(np.int64(phase), np.int64(ceil_div(t, rows)), np.int64(1))


@callee
def pair_of(layer: Layer, buffers: Buffers, cuts: Cuts) -> Pair:
    """What phase DOWN takes."""
    return Pair(buffers.x, layer.down, buffers.q_a, buffers.kv_a, buffers.c_down, cuts.down)


@callee
def pack_rows_of(tokens: Tokens, layer: Layer, buffers: Buffers, tile: TokenTile) -> PackRows:
    """What phase PACK takes."""
    kp, n_parts = layer.down.kp, layer.down.n_parts
    return PackRows(tokens.x, buffers.x, kp, n_parts, layer.cann, buffers.y, np.int64(tile.t0), np.int64(tile.t))


@callee
def query_rows_of(tokens: Tokens, layer: Layer, buffers: Buffers, tile: TokenTile) -> QueryRows:
    """What phase QUERY takes."""
    return QueryRows(
        buffers.q_a, layer.query_norm, layer.cann, tokens.q_norm, tokens.q_norm_scale, buffers.q, layer.up.kp,
        buffers.y, np.int64(tile.t0), np.int64(tile.t),
    )  # fmt: skip


@callee
def key_rows_of(tokens: Tokens, caches: Caches, layer: Layer, buffers: Buffers, tile: TokenTile) -> KeyRows:
    """What phase KEY takes."""
    return KeyRows(
        buffers.kv_a, layer.key_norm, layer.cann, tokens.cos, tokens.sin, tokens.cache_index, caches, buffers.y,
        np.int64(tile.t0), np.int64(tile.t),
    )  # fmt: skip


@callee
def heads_of(tokens: Tokens, layer: Layer, buffers: Buffers, cuts: Cuts, tile: TokenTile) -> Heads:
    """What phase HEADS takes."""
    q = Activations(buffers.q.rows, tokens.q_norm_scale, buffers.q.min_magnitude)
    return Heads(
        q, layer.up, layer.uk, tokens.cos, tokens.sin, tokens.query_nope, tokens.query_rope, buffers.c_up,
        buffers.c_uk, buffers.q_head, buffers.y, cuts.heads, layer.qk_nope_head_dim, np.int64(tile.t0),
        np.int64(tile.t),
    )  # fmt: skip


@callee
def heads_tasks(work: Heads) -> Tasks:
    """The tasks of phase HEADS."""
    n_tasks = work.query_nope.shape[1] * ceil_div(work.t, work.cut.mc)
    return Tasks(np.int64(HEADS), np.int64(n_tasks), np.int64(work.cut.grain))


@kernel
def prolog_tile(
    worker: Index, tokens: Tokens, caches: Caches, layer: Layer, buffers: Buffers, cuts: Cuts, tile: TokenTile
) -> None:
    """One worker's way through the phases of a tile."""
    t = np.int64(tile.t)
    team = Team(cuts.n_workers, buffers.counters, buffers.spans, tile.traced)
    pair = pair_of(layer, buffers, cuts)
    of_pack, of_down = row_tasks(PACK, t, cuts.rows_x), pair_tasks(DOWN, pair)
    of_query, of_key = row_tasks(QUERY, t, cuts.rows_q), row_tasks(KEY, t, cuts.rows_k)

    if tile.first == PACK:
        pack(worker, team, of_pack, pack_rows_of(tokens, layer, buffers, tile))
        wait(team, of_pack)
        down(worker, team, of_down, pair)
        wait(team, of_down)
    if tile.last >= QUERY:
        query(worker, team, of_query, query_rows_of(tokens, layer, buffers, tile))
    if tile.last >= HEADS:
        key(worker, team, of_key, key_rows_of(tokens, caches, layer, buffers, tile))
        wait(team, of_query)
        work = heads_of(tokens, layer, buffers, cuts, tile)
        of_heads = heads_tasks(work)
        heads(worker, team, of_heads, work)
        if worker == 0:
            # The caller's own thread, that would fall asleep at the end of the region and have to be woken.
            linger(team.counters, HEADS, team.n_workers, of_heads.n)
