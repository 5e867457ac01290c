"""One tile of tokens through the indexer's prolog: alone, or with the prolog's own phases in one parallel region.

| phase       | a task               | waits for         | stages                                           |
|-------------|----------------------|-------------------|--------------------------------------------------|
| INDEX_PACK  | rows of x and q_norm |                   | alone, or where the prolog's x is int8           |
| INDEX_DOWN  | token block x walk   | INDEX_PACK, PACK  | Matmul_indexK, Matmul_indexWeights               |
| INDEX_KEY   | rows of the sums     | INDEX_DOWN        | LayerNorm_indexK, Rope_indexK, Hadamard_indexK,  |
|             |                      |                   | Quant_indexK, Scatter_indexK, Scale_indexWeights |
| INDEX_HEADS | token block x head   | INDEX_PACK, QUERY | QuantMatmul_indexQ, Dequant_indexQ, Rope_indexQ, |
|             |                      |                   | Hadamard_indexQ, Quant_indexQ                    |

Beside the prolog they fill the gaps: INDEX_DOWN comes before the wait for DOWN, INDEX_KEY before that for QUERY, and
INDEX_HEADS goes on from HEADS. Where DOWN is cut in legs, INDEX_DOWN comes before it: its few whole walks would be all
that is left at the end.
"""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee
from ..kinds import Index
from ..launch import kernel
from ..sweeps.arguments import Buffers, Caches, Cuts, Layer, Tokens, TokenTile
from ..sweeps.gemm import Pair, down, pair_tasks
from ..sweeps.heads import heads
from ..sweeps.phase import (
    DOWN,
    HEADS,
    INDEX_DOWN,
    INDEX_HEADS,
    INDEX_KEY,
    INDEX_PACK,
    KEY,
    NO_LAPS,
    PACK,
    QUERY,
    Team,
    wait,
)
from ..sweeps.rows import key, pack, query
from ..sweeps.tile import heads_of, heads_tasks, key_rows_of, pack_rows_of, pair_of, query_rows_of, row_tasks
from ..threads.tasks import linger
from .arguments import Indexer
from .keys import index_keys, keys_of
from .packing import index_pack, packing_of
from .queries import index_heads, queries_of, query_tasks


@callee
def _index_pair(index: Indexer) -> Pair:
    buffers = index.buffers
    return Pair(buffers.x, index.layer.down, buffers.k_a, buffers.w_a, buffers.c_down, index.cuts.down)


@kernel
def indexer_tile(worker: Index, index: Indexer, tile: TokenTile) -> None:
    """One worker's way through the indexer's phases of a tile."""
    t, cuts = np.int64(tile.t), index.cuts
    team = Team(cuts.n_workers, index.buffers.counters, index.buffers.spans, tile.traced, NO_LAPS)
    pair = _index_pair(index)
    of_pack, of_down = row_tasks(INDEX_PACK, t, cuts.rows_x), pair_tasks(INDEX_DOWN, pair)
    queries = queries_of(index, tile)
    of_heads = query_tasks(queries)
    index_pack(worker, team, of_pack, packing_of(index, tile))
    wait(team, of_pack)
    down(worker, team, of_down, pair)
    index_heads(worker, team, of_heads, queries)
    wait(team, of_down)
    index_keys(worker, team, row_tasks(INDEX_KEY, t, cuts.rows_k), keys_of(index, tile))
    if worker == 0:
        linger(team.counters, INDEX_KEY, team.n_workers, row_tasks(INDEX_KEY, t, cuts.rows_k).n)


@kernel
def prolog_and_indexer_tile(
    worker: Index,
    tokens: Tokens,
    caches: Caches,
    layer: Layer,
    buffers: Buffers,
    cuts: Cuts,
    index: Indexer,
    tile: TokenTile,
) -> None:
    """One worker's way through the phases of a tile, the indexer's among them: see `sweeps.tile.prolog_tile`."""
    t = np.int64(tile.t)
    team = Team(cuts.n_workers, buffers.counters, buffers.spans, tile.traced, NO_LAPS)
    noting = Team(cuts.n_workers, buffers.counters, buffers.spans, tile.traced, buffers.laps)
    pair, index_pair = pair_of(layer, buffers, cuts), _index_pair(index)
    of_pack, of_down = row_tasks(PACK, t, cuts.rows_x), pair_tasks(DOWN, pair)
    of_index_pack, of_index_down = row_tasks(INDEX_PACK, t, cuts.rows_x), pair_tasks(INDEX_DOWN, index_pair)
    of_query, of_key = row_tasks(QUERY, t, cuts.rows_q), row_tasks(KEY, t, cuts.rows_k)

    if tile.first <= PACK:
        pack(worker, team, of_pack, pack_rows_of(tokens, layer, buffers, tile))
        if index.packs_x:
            index_pack(worker, team, of_index_pack, packing_of(index, tile))
    if tile.first <= DOWN <= tile.last:
        wait(team, of_pack)
        index_first = pair.cut.legs > 1
        if not index_first:
            down(worker, noting, of_down, pair)
        if index.packs_x:
            wait(team, of_index_pack)
        down(worker, team, of_index_down, index_pair)
        if index_first:
            down(worker, noting, of_down, pair)
        wait(team, of_down)
    if tile.first <= QUERY <= tile.last:
        query(worker, team, of_query, query_rows_of(tokens, layer, buffers, tile))
    if tile.first <= KEY <= tile.last:
        key(worker, team, of_key, key_rows_of(tokens, caches, layer, buffers, tile))
        wait(team, of_index_down)
        index_keys(worker, team, row_tasks(INDEX_KEY, t, index.cuts.rows_k), keys_of(index, tile))
    if tile.last >= HEADS:
        wait(team, of_query)
        work, queries = heads_of(tokens, layer, buffers, cuts, tile), queries_of(index, tile)
        of_heads, of_index_heads = heads_tasks(work), query_tasks(queries)
        heads(worker, noting, of_heads, work)
        index_heads(worker, team, of_index_heads, queries)
        if worker == 0:
            linger(team.counters, HEADS, team.n_workers, of_heads.n)
            linger(team.counters, INDEX_HEADS, team.n_workers, of_index_heads.n)
