"""The lightning index: of the keys that a token sees, the positions of the best."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..base.checks import (
    FP16,
    INT8,
    Array,
    check_array,
    check_int,
    check_threads,
    expect_type,
)
from ..base.memory import aligned_empty, writable_alias
from ..call.indexer import IndexerOutput
from ..indexer_cache import IndexerCache
from ..kernels.launch import max_threads
from ..kernels.lightning.best import ALL_RANKS, N_BINS
from ..kernels.lightning.keys import PANELS, TILE, KeyCache
from ..kernels.lightning.panel import RUN, load_lightning
from ..kernels.lightning.tile import PHASES, Best, Groups, Queries, Scratch, lightning_tile
from ..kernels.micro.ukernel import A_INT8_DTYPE, NR
from ..kernels.row.scatter import Slots
from ..kernels.sweeps.phase import Team
from ..kernels.threads.tasks import n_counters
from .pages import Pages

__all__ = ["MAX_HEAD_DIM", "MAX_K", "lightning_index"]

MAX_K = 4096
MAX_HEAD_DIM = (65520 * 2048 - 1) // 128**2  # whose dot products stay below what fp16 rounds to Inf
_TOKENS = 64  # of a tile: each worker has a buffer for each
_GROUP = 16  # tokens that share a packed tile of keys
_LONGEST_RUN = 8  # tiles of keys a task
_TASKS_PER_WORKER = 4


def lightning_index(
    indexer_output: IndexerOutput,
    cache: IndexerCache,
    block_table: Array,
    act_seq: Array,
    k: int = 2048,
    *,
    query_start_loc: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """The k best keys of each token, by the scores of the lightning indexer.

    The score of a key is `key_scale * sum over heads of (query_scale * weight) * half(max(query . key, 0) / 2048)`. A
    token sees the keys of its own sequence up to its own: token i of the s1 of a sequence the first
    `act_seq - (s1 - 1 - i)`. Of equal scores the lower position is the better. A score that is NaN counts as the best,
    and concerns its own token only.

    Args:
        indexer_output: Queries, scales and weights of T tokens.
        cache: The keys, with those of these tokens.
        block_table: Blocks of each sequence (B, blocks) int32 or int64: position p is in block
            `block_table[b, p // block_size]`. Entries that no token needs may be anything, as -1.
        act_seq: Keys of each sequence (B,) int32 or int64, those of this call's tokens included.
        k: Positions a token, from 1 to 4096.
        query_start_loc: First token of each sequence, and T: (B + 1,) int32 or int64. Without it each sequence has as
            many of the tokens, T / B.
        n_threads: Threads, at most; by default all that Numba has.

    Returns:
        Positions in the sequence (T, k) int32, the best first. Where a token sees fewer than k keys, all of them and
        then -1.

    Raises:
        TypeError: An argument, named in the message, is of another type or dtype.
        ValueError: An argument has another shape, layout or value; or the block of a key that is needed is not in the
            cache.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> cache = mla.IndexerCache.allocate(mla.IndexerDims(256, 96, 2, 32, 16), n_blocks=2, block_size=4)
        >>> cache.k[...] = np.arange(8).reshape(2, 4, 1, 1)  # slot s holds the code s, 32 times
        >>> cache.k_scale[...] = 1
        >>> one = np.ones((1, 2, 1), np.float16)
        >>> out = mla.IndexerOutput(np.ones((1, 2, 32), np.int8), one, one[:, :, 0])
        >>> mla.lightning_index(out, cache, np.array([[1, 0]]), np.array([6]), k=8)
        array([[ 3,  2,  1,  0,  5,  4, -1, -1]], dtype=int32)
    """
    query = _checked_queries(indexer_output, cache)
    t = query.query.shape[0]
    pages = Pages.of(
        t, block_table, act_seq, query_start_loc, block_size=cache.sizes.block_size,
        n_blocks=cache.sizes.capacity // cache.sizes.block_size,
    )  # fmt: skip
    k = check_int("k", k, 1, MAX_K)
    n_threads = check_threads("n_threads", n_threads, max_threads())
    pages.check_mapped()
    index = aligned_empty((t, k), np.int32)
    _run(query, cache, pages, index, n_threads)
    return index


def _checked_queries(output: object, cache: object) -> IndexerOutput:
    expect_type("indexer_output", output, IndexerOutput)
    expect_type("cache", cache, IndexerCache)
    assert isinstance(output, IndexerOutput)  # for the type checker
    assert isinstance(cache, IndexerCache)
    width = cache.sizes.width
    if width > MAX_HEAD_DIM:
        raise ValueError(f"cache: expected keys of at most {MAX_HEAD_DIM} elements, got {width}")
    query = check_array("query", output.query, (INT8,), (None, None, width))
    t, n_heads, _ = query.shape
    if not n_heads:
        raise ValueError(f"query: expected at least one head, got shape {query.shape}")
    scale = check_array("query_scale", output.query_scale, (FP16,), (t, n_heads, 1))
    weights = check_array("weights", output.weights, (FP16,), (t, n_heads))
    return IndexerOutput(query, scale.reshape(t, n_heads), weights)


class _Cut(NamedTuple):
    """How a tile of tokens is shared: its groups, and the workers that there is work for."""

    groups: Groups
    n_workers: int


def _run(output: IndexerOutput, cache: IndexerCache, pages: Pages, index: Array, n_threads: int) -> None:
    load_lightning()
    t, n_heads, width = output.query.shape
    if not t:
        return
    kp = -(-width // RUN) * RUN
    codes, scale = cache.views["k_cache"], cache.views["k_scale_cache"]
    keys = KeyCache(
        Slots(writable_alias(codes.flat), codes.layout), Slots(writable_alias(scale.flat), scale.layout), width,
        pages.block_table,
    )  # fmt: skip
    bits = [writable_alias(a.view(np.uint16)) for a in (output.query_scale, output.weights)]
    rows = min(t, _TOKENS)
    memory = (aligned_empty((rows, n_heads, kp), A_INT8_DTYPE), aligned_empty((rows, n_heads), np.float32))
    queries = Queries(writable_alias(output.query), bits[0], bits[1], pages.limits, memory[0], memory[1])
    scratch: Scratch | None = None
    for t0 in range(0, t, _TOKENS):
        n = min(t - t0, _TOKENS)
        cut = _cut(pages, t0, n, n_threads)
        if scratch is None or len(scratch.codes) < cut.n_workers:
            scratch = _scratch(cut.n_workers, kp, index.shape[1])
        of_tile = queries._replace(rows=memory[0][:n], head_weights=memory[1][:n])
        team = Team(cut.n_workers, np.zeros(n_counters(cut.n_workers, len(PHASES)), np.int64), _NO_SPANS, False)
        best = _buffers(cut.n_workers, n, index)
        lightning_tile(cut.n_workers, cut.n_workers, of_tile, keys, cut.groups, best, scratch, team, t0)


_NO_SPANS = np.zeros((1, 1, 3), np.int64)


def _room(k: int) -> int:
    """Ranks that a buffer holds: each time that it is full, all but about k are dropped."""
    return 3 * k + TILE


def _buffers(n_workers: int, t: int, index: Array) -> Best:
    ranks = aligned_empty((n_workers, t, _room(index.shape[1])), np.uint64)
    return Best(ranks, np.zeros((n_workers, t), np.int64), np.full((n_workers, t), ALL_RANKS), index)


def _scratch(n_workers: int, kp: int, k: int) -> Scratch:
    def rows(n: int, dtype: type) -> Array:
        return aligned_empty((n_workers, n), dtype)

    return Scratch(
        codes=rows(PANELS * NR * kp, np.int8), places=rows(TILE, np.int64), offset=rows(TILE, np.int32),
        scale=rows(TILE, np.float32), rest=rows(NR * RUN, np.int8), scores=rows(TILE, np.float32),
        keys=rows(TILE, np.uint32), sorted=rows(2 * _room(k), np.uint64), counts=rows(N_BINS, np.int64),
    )  # fmt: skip


def _cut(pages: Pages, t0: int, n: int, n_threads: int) -> _Cut:
    """Groups of the tokens t0..t0+n, and runs of keys that give each thread some tasks."""
    tokens = np.arange(n)
    sequences = pages.sequences[t0 : t0 + n]
    within = t0 + tokens - pages.query_start_loc[sequences]
    begins = (tokens == 0) | (np.diff(sequences, prepend=-1) != 0) | (within % _GROUP == 0)
    first = np.append(np.flatnonzero(begins), n)
    n_tiles = -(-pages.limits[t0 + first[1:] - 1] // TILE)
    total = int(n_tiles.sum())
    run = max(1, min(_LONGEST_RUN, total // (n_threads * _TASKS_PER_WORKER)))
    task = np.append(0, np.cumsum(-(-n_tiles // run)))
    groups = Groups(first, task, sequences[first[:-1]], run * TILE)
    return _Cut(groups, max(1, min(n_threads, int(task[-1]))))
