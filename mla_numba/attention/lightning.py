"""The lightning index: of the keys that a token sees, the positions of the best."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from ..base.checks import (
    FP16,
    INT8,
    Array,
    check_array,
    check_int,
    check_threads,
    expect_type,
    usual_shape,
)
from ..base.memory import UINT16, as_bits, writable_alias
from ..call.indexer import IndexerOutput
from ..indexer_cache import IndexerCache
from ..kernels.launch import max_threads, plain
from ..kernels.lightning.keys import TILE, KeyCache
from ..kernels.lightning.panel import RUN
from ..kernels.lightning.tile import Groups, Queries, lightning_tile
from ..kernels.lightning.vector_code import load_lightning
from ..kernels.row.scatter import Slots
from .index_memory import Sizes, give_back, memory_bytes, take_memory
from .pages import Pages, recent_pages

__all__ = ["MAX_HEAD_DIM", "MAX_K", "lightning_index", "lightning_memory_bytes"]

MAX_K = 4096
MAX_HEAD_DIM = (65520 * 2048 - 1) // 128**2  # whose dot products stay below what fp16 rounds to Inf
TOKENS = 64  # of a tile: each worker has a buffer for each
GROUP = 16  # tokens that share a packed tile of keys
_LONGEST_RUN = 8  # tiles of keys a task
_TASKS_PER_WORKER = 4
_KEPT = "lightning"  # by what name a cache keeps what is made of it here
LEAST_PRODUCTS = 2**24  # of codes that a thread multiplies: as long as another thread takes to wake up


def lightning_index(
    out: IndexerOutput,
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
        out: Queries, scales and weights of T tokens.
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
    query = _checked_queries(out, cache)
    t = len(query.codes)
    pages, kept = recent_pages(
        t, block_table, act_seq, query_start_loc, block_size=cache.sizes.block_size,
        n_blocks=cache.sizes.capacity // cache.sizes.block_size,
    )  # fmt: skip
    k = check_int("k", k, 1, MAX_K)
    n_threads = check_threads("n_threads", n_threads, max_threads())
    pages.check_mapped()
    index = np.empty((t, k), np.int32)
    _run(query, cache, pages, kept, index, n_threads)
    return index


class _Queries(NamedTuple):
    """Queries (T, Ni, Di), their scales (T, Ni, 1) and weights (T, Ni) as kernels take them: see `tile.Queries`."""

    codes: Array
    scale: Array
    weights: Array


def _checked_queries(out: object, cache: object) -> _Queries:
    if not isinstance(out, IndexerOutput) or not isinstance(cache, IndexerCache):
        expect_type("out", out, IndexerOutput)
        expect_type("cache", cache, IndexerCache)
        raise AssertionError("one of the two is of another type")
    width = cache.sizes.width
    if width > MAX_HEAD_DIM:
        raise ValueError(f"cache: expected keys of at most {MAX_HEAD_DIM} elements, got {width}")
    query, scale, weights = out
    if _are_usual(query, scale, weights, width):
        return _Queries(query, scale.view(UINT16), weights.view(UINT16))
    check_array("query", query, (INT8,), (None, None, width))
    t, n_heads, _ = query.shape
    if not n_heads:
        raise ValueError(f"query: expected at least one head, got shape {query.shape}")
    check_array("query_scale", scale, (FP16,), (t, n_heads, 1))
    check_array("weights", weights, (FP16,), (t, n_heads))
    return _Queries(writable_alias(query), as_bits(scale), as_bits(weights))


def _are_usual(query: object, scale: object, weights: object, width: int) -> bool:
    """Whether the first look says that all is right: see `usual_shape`."""
    shape = usual_shape(query, INT8)
    if shape is None or len(shape) != 3 or shape[2] != width or not shape[1]:
        return False
    t, n_heads, _ = shape
    return usual_shape(scale, FP16) == (t, n_heads, 1) and usual_shape(weights, FP16) == (t, n_heads)


def _run(
    given: _Queries, cache: IndexerCache, pages: Pages, kept: dict[Any, Any], index: Array, n_threads: int
) -> None:
    """The tiles of tokens; kept: what stays of the pages' earlier calls."""
    load_lightning()
    t, n_heads, width = given.codes.shape
    kp = -(-width // RUN) * RUN
    keys = KeyCache(*_slots_of(cache), width, pages.block_table)
    for t0 in range(0, t, TOKENS):
        n = min(t - t0, TOKENS)
        how = t0, n_heads * kp, n_threads
        groups, n_workers = kept[how] if how in kept else kept.setdefault(how, _cut(pages, t0, n, *how[1:]))
        memory = take_memory(Sizes(n_workers, n, n_heads, kp, index.shape[1]))
        try:
            of_tile = (memory.rows, memory.head_weights, memory.offsets)
            queries = Queries(*given, pages.limits, index, *of_tile)
            lightning_tile(n_workers, n_workers, queries, keys, groups, t0, *memory.kept)
        finally:
            give_back(memory)


def _slots_of(cache: IndexerCache) -> tuple[Any, Any]:
    """Codes and scales of a cache, as kernels take them."""
    kept: tuple[Any, Any] | None = cache.kept.get(_KEPT)
    if kept is None:
        codes, scale = (
            plain(Slots(writable_alias(cache.views[name].flat), cache.views[name].layout))
            for name in ("k_cache", "k_scale_cache")
        )
        kept = cache.kept[_KEPT] = codes, scale
    return kept


def lightning_memory_bytes(pages: Pages, n_heads: int, width: int, k: int, n_threads: int) -> int:
    """What the largest tile of tokens of a call works in: queries as operands, each worker's scratch, the best keys."""
    kp = -(-width // RUN) * RUN
    most = 0
    for t0 in range(0, len(pages.limits), TOKENS):
        n = min(len(pages.limits) - t0, TOKENS)
        _, n_workers = _cut(pages, t0, n, n_heads * kp, n_threads)
        most = max(most, memory_bytes(Sizes(n_workers, n, n_heads, kp, k)))
    return most


def _cut(pages: Pages, t0: int, n: int, products_per_key: int, n_threads: int) -> tuple[Any, int]:
    """How the tokens t0..t0+n are shared: `Groups` as kernels take them, and how many threads have enough to do.

    Runs of keys are so long that each thread has some tasks.
    """
    sequences, limits = pages.sequences[t0 : t0 + n].tolist(), pages.limits[t0 : t0 + n].tolist()
    first = [0]
    for token in range(1, n):
        if sequences[token] != sequences[first[-1]] or token - first[-1] == GROUP:
            first.append(token)
    n_tiles = [-(-limits[end - 1] // TILE) for end in (*first[1:], n)]
    n_threads = max(1, min(n_threads, sum(limits) * products_per_key // LEAST_PRODUCTS))
    run = max(1, min(_LONGEST_RUN, sum(n_tiles) // (n_threads * _TASKS_PER_WORKER)))
    task = [0, *accumulate(-(-tiles // run) for tiles in n_tiles)]
    starts, of_tasks, of_groups = (
        np.array(values, np.int64) for values in ((*first, n), task, [sequences[token] for token in first])
    )
    return plain(Groups(starts, of_tasks, of_groups, run * TILE)), max(1, min(n_threads, task[-1]))
