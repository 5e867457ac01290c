"""The lightning index: of the keys that a token sees, the positions of the best."""

from __future__ import annotations

import functools
from collections import deque
from itertools import accumulate

import numpy as np

from tiling.gemm import apart

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
from ..kernels.lightning.keys import TILE, KeyCache
from ..kernels.lightning.panel import RUN, load_lightning
from ..kernels.lightning.tile import PHASES, Best, Groups, Queries, Scratch, lightning_tile
from ..kernels.micro.ukernel import A_INT8_DTYPE, NR
from ..kernels.row.scatter import Slots
from ..kernels.sweeps.phase import NO_LAPS, Team
from ..kernels.threads.tasks import n_counters
from .pages import Pages

__all__ = ["MAX_HEAD_DIM", "MAX_K", "lightning_index", "lightning_memory_bytes"]

MAX_K = 4096
MAX_HEAD_DIM = (65520 * 2048 - 1) // 128**2  # whose dot products stay below what fp16 rounds to Inf
TOKENS = 64  # of a tile: each worker has a buffer for each
GROUP = 16  # tokens that share a packed tile of keys
_LONGEST_RUN = 4  # tiles of keys a task
_TASKS_PER_WORKER = 4
LEAST_PRODUCTS = 2**24  # of codes that a thread multiplies: as long as another thread takes to wake up
_APART = apart(0) // 8  # int64 elements between the counts of two workers


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


def _checked_queries(out: object, cache: object) -> IndexerOutput:
    expect_type("out", out, IndexerOutput)
    expect_type("cache", cache, IndexerCache)
    assert isinstance(out, IndexerOutput)  # for the type checker
    assert isinstance(cache, IndexerCache)
    width = cache.sizes.width
    if width > MAX_HEAD_DIM:
        raise ValueError(f"cache: expected keys of at most {MAX_HEAD_DIM} elements, got {width}")
    query = check_array("query", out.query, (INT8,), (None, None, width))
    t, n_heads, _ = query.shape
    if not n_heads:
        raise ValueError(f"query: expected at least one head, got shape {query.shape}")
    scale = check_array("query_scale", out.query_scale, (FP16,), (t, n_heads, 1))
    weights = check_array("weights", out.weights, (FP16,), (t, n_heads))
    return IndexerOutput(query, scale.reshape(t, n_heads), weights)


def _run(output: IndexerOutput, cache: IndexerCache, pages: Pages, index: Array, n_threads: int) -> None:
    load_lightning()
    t, n_heads, width = output.query.shape
    kp = -(-width // RUN) * RUN
    codes, scale = cache.views["k_cache"], cache.views["k_scale_cache"]
    keys = KeyCache(
        Slots(writable_alias(codes.flat), codes.layout), Slots(writable_alias(scale.flat), scale.layout), width,
        pages.block_table,
    )  # fmt: skip
    bits = [writable_alias(a.view(np.uint16)) for a in (output.query_scale, output.weights)]
    for t0 in range(0, t, TOKENS):
        n = min(t - t0, TOKENS)
        groups, n_workers = _cut(pages, t0, n, _threads_for(pages, t0, n, n_heads * kp, n_threads))
        rows, head_weights = aligned_empty((n, n_heads, kp), A_INT8_DTYPE), aligned_empty((n, n_heads), np.float32)
        queries = Queries(writable_alias(output.query), bits[0], bits[1], pages.limits, rows, head_weights)
        team = Team(n_workers, np.zeros(n_counters(n_workers, len(PHASES)), np.int64), _NO_SPANS, False, NO_LAPS)
        scratch = _take_scratch(n_workers, kp, index.shape[1])
        try:
            best = _buffers(n_workers, n, index)
            lightning_tile(n_workers, n_workers, queries, keys, groups, best, scratch, team, t0)
        finally:
            _kept.append(scratch)


_NO_SPANS = np.zeros((1, 1, 3), np.int64)


def _room(k: int) -> int:
    """Ranks that a buffer holds: each time that it is full, all but about k are dropped."""
    return 3 * k + TILE


def _buffers(n_workers: int, t: int, index: Array) -> Best:
    ranks = aligned_empty((n_workers, t, _room(index.shape[1])), np.uint64)
    n = t + _APART
    return Best(ranks, np.zeros((n_workers, n), np.int64), np.full((n_workers, n), ALL_RANKS), index)


# Working memory of earlier calls, for whoever comes next; no two calls have the same.
_kept: deque[Scratch] = deque(maxlen=4)


def _take_scratch(n_workers: int, kp: int, k: int) -> Scratch:
    try:
        scratch = _kept.pop()
    except IndexError:
        return _new_scratch(n_workers, kp, k)
    shapes = _scratch_shapes(n_workers, kp, k)
    fits = scratch.codes.shape == shapes["codes"][0] and scratch.sorted.shape == shapes["sorted"][0]
    return scratch if fits else _new_scratch(n_workers, kp, k)


@functools.lru_cache(maxsize=64)
def _scratch_shapes(n_workers: int, kp: int, k: int) -> dict[str, tuple[tuple[int, int], type]]:
    """Shape and dtype of each array of `Scratch`, a row a worker with room behind what it uses."""
    lengths: dict[str, tuple[int, type]] = {
        "codes": (TILE * kp, np.int8), "places": (TILE, np.int64), "offset": (TILE, np.int32),
        "scale": (2 * TILE, np.float32), "rest": (NR * RUN, np.int8), "scores": (TILE, np.float32),
        "keys": (TILE, np.uint32), "sorted": (2 * _room(k), np.uint64), "counts": (N_BINS, np.int64),
    }  # fmt: skip
    itemsize = {name: np.dtype(dtype).itemsize for name, (_, dtype) in lengths.items()}
    return {
        name: ((n_workers, apart(length * itemsize[name]) // itemsize[name]), dtype)
        for name, (length, dtype) in lengths.items()
    }


def _new_scratch(n_workers: int, kp: int, k: int) -> Scratch:
    return Scratch(**{name: aligned_empty(*each) for name, each in _scratch_shapes(n_workers, kp, k).items()})


def lightning_memory_bytes(pages: Pages, n_heads: int, width: int, k: int, n_threads: int) -> int:
    """What the largest tile of tokens of a call works in: queries as operands, each worker's scratch, the best keys."""
    kp = -(-width // RUN) * RUN
    of_worker = sum(shape[1] * np.dtype(dtype).itemsize for shape, dtype in _scratch_shapes(1, kp, k).values())
    most = 0
    for t0 in range(0, len(pages.limits), TOKENS):
        n = min(len(pages.limits) - t0, TOKENS)
        _, n_workers = _cut(pages, t0, n, _threads_for(pages, t0, n, n_heads * kp, n_threads))
        queries = n * n_heads * (kp * np.dtype(A_INT8_DTYPE).itemsize + 4)
        most = max(most, queries + n_workers * (of_worker + n * 8 * _room(k) + 16 * (n + _APART)))
    return most


def _threads_for(pages: Pages, t0: int, n: int, products_per_key: int, n_threads: int) -> int:
    """Of `n_threads` as many as have enough to do."""
    n_keys = int(pages.limits[t0 : t0 + n].sum())
    return max(1, min(n_threads, n_keys * products_per_key // LEAST_PRODUCTS))


def _cut(pages: Pages, t0: int, n: int, n_threads: int) -> tuple[Groups, int]:
    """How the tokens t0..t0+n are shared: runs of keys that give each thread some tasks, and how many threads."""
    first, sequence, n_tiles = [], [], []
    token, end = t0, t0 + n
    while token < end:
        of = int(pages.sequences[token])
        last = min(token + GROUP, end, int(pages.query_start_loc[of + 1]))
        first.append(token - t0)
        sequence.append(of)
        n_tiles.append(-(-int(pages.limits[last - 1]) // TILE))
        token = last
    run = max(1, min(_LONGEST_RUN, sum(n_tiles) // (n_threads * _TASKS_PER_WORKER)))
    task = [0, *accumulate(-(-tiles // run) for tiles in n_tiles)]
    made = [np.array(values, np.int64) for values in ([*first, n], task, sequence)]
    return Groups(made[0], made[1], made[2], run * TILE), max(1, min(n_threads, task[-1]))
