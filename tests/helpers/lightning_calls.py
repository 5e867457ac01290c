"""Calls of the lightning index, small and random, and their comparison with the oracle's list."""

from typing import Any, NamedTuple

import numpy as np

from mla_numba import IndexerCache, IndexerOutput, lightning_index
from mla_numba.kernels.lightning.keys import TILE
from mla_numba.oracle.lightning_index import lightning_index_reference

KINDS = ("random", "ties", "zeros", "extreme", "not numbers")


class IndexCall(NamedTuple):
    """The arguments of a call."""

    out: IndexerOutput
    cache: IndexerCache
    block_table: Any
    act_seq: Any
    k: int
    query_start_loc: Any = None

    def __str__(self):
        t, n_heads, width = self.out.query.shape
        return (
            f"{t} tokens, {n_heads} heads of {width}, k {self.k}, {self.cache!r}, act_seq {self.act_seq}, "
            f"query_start_loc {self.query_start_loc}"
        )

    def index(self, n_threads):
        return lightning_index(*self[:5], query_start_loc=self.query_start_loc, n_threads=n_threads)


class Shape(NamedTuple):
    """What a call is made of: `tokens` of each sequence, the most keys of one, and the sizes."""

    tokens: tuple[int, ...]
    n_keys: int
    n_heads: int
    width: int
    block_size: int
    k: int
    cache_mode: str = "PA_BSND"


def random_shape(rng):
    """Sizes about those of the kernels: rows of 32 codes, panels, tiles of keys, register tiles of heads."""
    n_sequences = int(rng.integers(1, 4))
    cache_mode = str(rng.choice(["PA_BSND", "PA_NZ"]))
    width = int(rng.choice([32, 64, 96])) if cache_mode == "PA_NZ" else int(rng.integers(1, 140))
    return Shape(
        tokens=tuple(int(n) for n in rng.integers(0, 5, n_sequences)),
        n_keys=int(rng.choice([rng.integers(1, 40), rng.integers(1, TILE + 2), rng.integers(TILE, 3 * TILE)])),
        n_heads=int(rng.integers(1, 28)),
        width=width,
        block_size=int(rng.integers(1, 40)),
        k=int(rng.choice([1, 2, 5, rng.integers(1, 300)])),
        cache_mode=cache_mode,
    )


def make_call(shape, kind="random", seed=0, gap=1):
    """A call with blocks in any order; `gap` > 1 leaves other blocks between those of the cache."""
    rng = np.random.default_rng(seed)
    t, n_sequences = sum(shape.tokens), len(shape.tokens)
    per_sequence = -(-shape.n_keys // shape.block_size)
    n_blocks = per_sequence * n_sequences + 1
    lead = (n_blocks * gap, shape.block_size, 1)
    low, high = {"ties": (-1, 2), "zeros": (-1, 1), "extreme": (-128, -126)}.get(kind, (-128, 128))
    query = rng.integers(0 if kind == "zeros" else low, high, (t, shape.n_heads, shape.width)).astype(np.int8)
    keys = rng.integers(low, high, (*lead, shape.width)).astype(np.int8)
    scales = rng.uniform(0.5, 2, (t, shape.n_heads, 1)).astype(np.float16)
    weights = rng.standard_normal((t, shape.n_heads)).astype(np.float16)
    key_scales = rng.uniform(-0.1, 1, (*lead, 1)).astype(np.float16)
    if kind == "ties":
        scales[...], weights[...], key_scales[...] = 1, np.sign(weights), 1
    if kind == "not numbers":
        for array, share in ((key_scales, 0.1), (weights, 0.03), (scales, 0.03)):
            where = rng.random(array.shape) < share
            array[where] = rng.choice(np.array([np.nan, np.inf, -np.inf, 0, 6e-8], np.float16), where.sum())
    cache = IndexerCache(keys[::gap], key_scales[::gap], shape.cache_mode)
    table = rng.permutation(n_blocks)[:-1].reshape(n_sequences, per_sequence).astype(np.int32)
    act_seq = np.array([rng.integers(max(0, shape.n_keys - 20), shape.n_keys + 1) for _ in shape.tokens], np.int32)
    for row, n_keys in zip(table, act_seq, strict=True):
        row[-(-int(n_keys) // shape.block_size) :] = -1
    starts = np.append(0, np.cumsum(shape.tokens)).astype(np.int32)
    uniform = len(set(shape.tokens)) == 1 and bool(rng.integers(2))
    out = IndexerOutput(query, scales, weights)
    return IndexCall(out, cache, table, act_seq, shape.k, None if uniform else starts)


def reference_of(call):
    return lightning_index_reference(*call[:5], query_start_loc=call.query_start_loc)


def assert_same_list(call, n_threads=(1, 2)):
    """The oracle's list, for each number of threads."""
    want = reference_of(call)
    for n in n_threads:
        got = call.index(n)
        assert got.dtype == np.int32
        wrong = np.argwhere(got != want)
        where = tuple(wrong[0]) if len(wrong) else None
        assert where is None, f"{call}, {n} threads: {len(wrong)} differ, at {where} {got[where]}, not {want[where]}"


def check_random_calls(n, n_threads=(1, 2)):
    """`n` random calls of each kind."""
    for seed in range(n):
        rng = np.random.default_rng(seed)
        for kind in KINDS:
            gap = int(rng.integers(1, 3))
            assert_same_list(make_call(random_shape(rng), kind, seed, gap), n_threads)
