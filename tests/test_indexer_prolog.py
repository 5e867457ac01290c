"""The indexer's prolog against the reference, bit for bit: alone, and in one region with the prolog."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import BF16, THREADS, assert_same_bits, make_cache, make_inputs, make_weights
from helpers.indexer_calls import (
    assert_as_reference,
    assert_indexer_exact,
    expect_indexer,
    make_indexer,
    make_indexer_cache,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import mla_numba as mla
from mla_numba.kernels import ISA
from mla_numba.oracle.indexer import indexer_prolog_reference

MR, NR = ISA.mr, ISA.nr
TOKENS = sorted({0, 1, 2, MR - 1, MR, MR + 1, 3 * MR + 1})
DIMS = mla.MlaDims(130, 3, 50, 68, 10, 10)
# Heads and their width: single ones, one more and one fewer than a panel, all columns rotated, odd widths.
SHAPES = [(1, 10), (2, 11), (3, NR - 1), (NR + 1, NR), (5, 2 * NR + 1), (32, 33)]


@pytest.mark.parametrize("t", TOKENS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_edges_of_the_tiles(shape, t):
    n_heads, head_dim = shape[0], max(shape[1], DIMS.qk_rope_head_dim)
    rope = ("half", "interleaved")[(n_heads + TOKENS.index(t)) % 2]
    indexer = make_indexer(DIMS, n_heads, head_dim, rope, seed=t)
    assert_indexer_exact(make_weights(DIMS, "b", seed=t), indexer, t, block_size=3, n_blocks=5, seed=t)


@settings(max_examples=40)
@given(
    hidden=st.integers(1, 40),
    q_rank=st.integers(1, 3 * NR),
    rope=st.integers(1, 20),
    others=st.integers(0, 3 * NR),
    n_heads=st.integers(1, 9),
    t=st.integers(0, 3 * MR),
    style=st.sampled_from(["half", "interleaved"]),
    mode=st.sampled_from(["b", "ab", "b smooth"]),
    seed=st.integers(0, 1000),
)
def test_any_dimensions(hidden, q_rank, rope, others, n_heads, t, style, mode, seed):
    dims = mla.MlaDims(2 * hidden, 2, q_rank, 8, 3, 2 * rope)
    indexer = make_indexer(dims, n_heads, 2 * rope + others, style, seed)
    assert_indexer_exact(make_weights(dims, mode, seed), indexer, t, threads=(1,), block_size=7, seed=seed)


@pytest.mark.parametrize("hidden_size", [1, 3, 63, 131])
def test_odd_hidden_size(hidden_size):
    """The prolog has one where w_dq is int8; x is then packed once more, for the indexer."""
    dims = mla.MlaDims(hidden_size, 2, 17, 20, 3, 6)
    assert_indexer_exact(make_weights(dims, "ab"), make_indexer(dims, 3, 8), MR + 1)


@pytest.mark.parametrize("hidden_size", [2, 6, 34, 66])
def test_halves_of_k_that_are_padded(hidden_size):
    """Where half of H is odd the prolog's x has gaps that the indexer's weights have not."""
    dims = mla.MlaDims(hidden_size, 2, 17, 20, 3, 6)
    prolog = assert_indexer_exact(make_weights(dims, "b"), make_indexer(dims, 3, 8), MR + 1)
    packs = prolog.plan(MR + 1).tile_plans[0].indexer.packs_x
    assert packs == (ISA.kr_bf16 == 2)


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("cache_mode", ["PA_BSND", "PA_NZ"])
def test_caches(block_size, cache_mode):
    indexer = make_indexer(DIMS, 3, 64)
    blocks = {"n_blocks": 64 // block_size, "block_size": block_size, "cache_mode": cache_mode}
    assert_indexer_exact(make_weights(DIMS, "b"), indexer, 2 * MR, **blocks)


def test_strided_blocks():
    indexer, weights = make_indexer(DIMS, 3, 32), make_weights(DIMS, "b")
    whole = make_indexer_cache(indexer.dims, 6, 8)
    keys = mla.IndexerCache(whole.k[::2], whole.k_scale[::2])
    gaps = whole.k[1::2].copy()
    inputs, cache = make_inputs(DIMS, 9, 24), make_cache(DIMS, True, 3, 8)
    _, want = expect_indexer(weights, indexer, inputs, cache, keys)
    out = mla.MlaProlog(weights, indexer=indexer)(*inputs, cache, indexer_cache=keys)
    assert_as_reference(out.indexer, keys, want)
    assert_same_bits("gaps", whole.k[1::2], gaps)


@pytest.mark.parametrize("t", [64, 700])
def test_work_that_is_shared_and_several_tiles(t):
    """Enough for all threads, and for more than one tile of tokens."""
    dims = mla.MlaDims(512, 4, 192, 64, 32, 16)
    indexer = make_indexer(dims, 8, 64)
    prolog = assert_indexer_exact(make_weights(dims, "b"), indexer, t, n_blocks=8, block_size=100)
    assert prolog.plan(t).n_workers == THREADS[-1]
    assert len(prolog.plan(t).tiles) == (1 if t == 64 else 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_token(value):
    indexer, weights = make_indexer(DIMS, 3, 33), make_weights(DIMS, "b")
    inputs = make_inputs(DIMS, 2 * MR + 1, 64)
    x = inputs.x.copy()
    x[[1, MR]] = value
    others = np.setdiff1d(np.arange(len(x)), [1, MR])
    prolog = mla.MlaProlog(weights, indexer=indexer)

    def run(hidden):
        cache, keys = make_cache(DIMS, True, 4, 16), make_indexer_cache(indexer.dims, 4, 16)
        slots = np.arange(len(x), dtype=np.int64)
        return prolog(hidden, inputs.cos, inputs.sin, slots, cache, indexer_cache=keys).indexer, keys

    (got, got_keys), (want, want_keys) = run(x), run(inputs.x)
    for name, array in want._asdict().items():
        assert_same_bits(name, getattr(got, name)[others], array[others])
    assert_same_bits("keys", got_keys.k.reshape(64, -1)[others], want_keys.k.reshape(64, -1)[others])
    assert_same_bits("scales", got_keys.k_scale.reshape(-1)[others], want_keys.k_scale.reshape(-1)[others])


@pytest.mark.parametrize("exponent", [-130, -120, -66, -60, 50])
def test_scales_beyond_fp16_and_sums_below_float32(exponent):
    """Scales of 0 and Inf, and products that an instruction might take for 0."""
    small = np.float32(2.0) ** exponent
    indexer = make_indexer(DIMS, 3, 33)
    scaled = {n: (getattr(indexer, n).astype(np.float32) * small).astype(BF16) for n in ("hadamard_q", "hadamard_k")}
    assert_indexer_exact(make_weights(DIMS, "b"), replace(indexer, **scaled), MR + 1)


def test_rows_of_zeros():
    indexer, weights = make_indexer(DIMS, 3, 33), make_weights(DIMS, "b")
    zeros = np.zeros((33, 33), BF16)
    prolog = mla.MlaProlog(weights, indexer=replace(indexer, hadamard_q=zeros, hadamard_k=zeros))
    inputs = make_inputs(DIMS, 5, 32)._replace(cache_index=np.arange(5))
    keys = make_indexer_cache(indexer.dims, 2, 16)
    out = prolog(*inputs, make_cache(DIMS, True, 2, 16), indexer_cache=keys).indexer
    assert not out.query.any()
    assert not out.query_scale.view(np.uint16).any()
    assert not keys.k.reshape(32, -1)[:5].any()
    assert not keys.k_scale.view(np.uint16).reshape(-1)[:5].any()


def test_weights_of_32_heads_take_one_factor():
    """A product with 32^-0.5 and then with Di^-0.5 would round twice, to other bits."""
    dims = mla.MlaDims(64, 2, 8, 8, 3, 8)
    indexer = make_indexer(dims, 32, 64)
    inputs = make_inputs(dims, 40, 64)
    keys = mla.IndexerCache.allocate(indexer.dims, 4, 16)
    codes, scales = np.ones((40, 8), np.int8), np.ones((40, 1), np.float32)
    arguments = (inputs.x, codes, scales, inputs.cos, inputs.sin, inputs.cache_index)
    out = mla.IndexerProlog(indexer)(*arguments, keys)
    want = indexer_prolog_reference(indexer, *arguments, keys)
    assert_same_bits("weights", out.weights, want.weights)


def test_a_single_operator_beside_its_prolog_writes_to_contiguous_caches():
    """BSND: token t writes row t of both caches."""
    indexer, weights = make_indexer(DIMS, 3, 32), make_weights(DIMS, "b")
    inputs = make_inputs(DIMS, 9, 32)._replace(cache_index=np.arange(9))
    keys, same = (make_indexer_cache(indexer.dims, 2, 16) for _ in range(2))
    _, want = expect_indexer(weights, indexer, inputs, make_cache(DIMS, True, 2, 16), same)
    cache = mla.PagedCache.allocate(DIMS, 2, 16, "BSND")
    out = mla.MlaProlog(weights, indexer=indexer)(*inputs._replace(cache_index=None), cache, indexer_cache=keys)
    assert_as_reference(out.indexer, keys, want)


@pytest.mark.parametrize("mode", ["b", "ab"])
def test_beside_a_prolog_whose_tasks_are_cut_in_legs(mode):
    dims = mla.MlaDims(512, 4, 192, 64, 32, 16)
    tiling = mla.CpuTiling(down_legs=3, heads_legs=2)
    prolog = assert_indexer_exact(make_weights(dims, mode), make_indexer(dims, 8, 64), 64, tile_config=tiling)
    tile = prolog.plan(64).tile_plan(64)
    assert (tile.down.legs, tile.heads.legs, tile.indexer.down.legs) == (3, 2, 1)
