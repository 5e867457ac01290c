"""Weights, caches and bitwise comparison for the tests of the indexer's prolog, alone and beside the prolog."""

import numpy as np

import mla_numba as mla
from mla_numba.oracle.bits import poison, reference_run
from mla_numba.oracle.indexer import indexer_prolog_reference

from .calls import THREADS, Fenced, assert_same_bits, make_cache, make_call, make_inputs, random_bytes, spread

OUTPUTS = {"query": np.int8, "query_scale": np.float16, "weights": np.float16}


def make_indexer(dims, n_heads, head_dim, rope="half", seed=0, **changes):
    """Weights for a prolog of `dims`; codes take every value, and no matrix is a Hadamard one."""
    rng = np.random.default_rng((seed, 21))
    query_dim = n_heads * head_dim
    arrays = {
        "w_qb": rng.integers(-128, 128, (dims.q_lora_rank, query_dim), np.int8),
        "w_qb_scale": rng.uniform(1e-4, 1e-2, query_dim).astype(np.float32),
        "wk": spread(rng, dims.hidden_size, head_dim),
        "w_proj": spread(rng, dims.hidden_size, n_heads),
        "ln_gamma_k": spread(rng, head_dim),
        "ln_beta_k": spread(rng, head_dim),
        "hadamard_q": spread(rng, head_dim, head_dim),
        "hadamard_k": spread(rng, head_dim, head_dim),
    }
    return mla.IndexerWeights(**(arrays | {"rope": rope, "qk_rope_head_dim": dims.qk_rope_head_dim} | changes))


def make_indexer_cache(dims, n_blocks, block_size, cache_mode="PA_BSND", seed=0, fenced=None):
    """A cache of random bytes, fenced."""
    rng = np.random.default_rng((seed, 22))
    lead = (n_blocks, block_size, 1)
    made = [Fenced("k_cache", (*lead, dims.head_dim), np.int8), Fenced("k_scale_cache", (*lead, 1), np.float16)]
    if fenced is not None:
        fenced += made
    return mla.IndexerCache(*(random_bytes(rng, f.array) for f in made), cache_mode)


def make_indexer_output(dims, t, fenced=None):
    """Poisoned outputs, fenced."""
    shapes = ((t, dims.n_heads, dims.head_dim), (t, dims.n_heads, 1), (t, dims.n_heads))
    made = [Fenced(name, shape, dtype) for (name, dtype), shape in zip(OUTPUTS.items(), shapes, strict=True)]
    if fenced is not None:
        fenced += made
    poison(*(f.array for f in made))
    return mla.IndexerOutput(*(f.array for f in made))


def assert_as_reference(out, cache, want, fenced=()):
    """Outputs and the whole cache equal those of `indexer_prolog_reference`."""
    got = out._asdict() | cache.arrays()
    for name, array in want._asdict().items():
        assert_same_bits(name, got[name], array)
    for array in fenced:
        array.assert_intact()


def expect_indexer(weights, indexer, inputs, cache, keys, numerics="pypto"):
    """What the reference makes of a call: of the prolog, and of its indexer."""
    want = reference_run(weights, *inputs, cache, numerics=numerics)
    x, cos, sin, slots = inputs
    return want, indexer_prolog_reference(indexer, x, want.q_norm, want.q_norm_scale, cos, sin, slots, keys)


def assert_indexer_exact(
    weights, indexer, t, *, threads=THREADS, n_blocks=2, block_size=16, cache_mode="PA_BSND", seed=0, **settings
):
    """T tokens on each number of threads, the indexer alone and with the prolog: every bit is the reference's."""
    inputs = make_inputs(weights.dims, t, n_blocks * block_size, seed)
    want = of_indexer = None
    x, cos, sin, slots = inputs
    for n in threads:
        keys = make_indexer_cache(indexer.dims, n_blocks, block_size, cache_mode, seed)
        if want is None:
            cache = make_cache(weights.dims, True, n_blocks, block_size, seed=seed)
            want, of_indexer = expect_indexer(weights, indexer, inputs, cache, keys)
        fenced = []
        out = make_indexer_output(indexer.dims, t, fenced)
        alone = mla.IndexerProlog(indexer, n_threads=n)
        assert alone(x, want.q_norm, want.q_norm_scale, cos, sin, slots, keys, out) is out
        assert_as_reference(out, keys, of_indexer, fenced)

        fenced = []
        keys = make_indexer_cache(indexer.dims, n_blocks, block_size, cache_mode, seed, fenced)
        call = make_call(weights.dims, True, t, n_blocks, block_size, seed=seed)
        call.out = mla.IndexedOutput(call.out, make_indexer_output(indexer.dims, t, fenced))
        prolog = mla.MlaProlog(weights, n_threads=n, indexer=indexer, **settings)
        assert prolog(*inputs, call.cache, call.out, indexer_cache=keys) is call.out
        call.assert_equals(want)
        assert_as_reference(call.out.indexer, keys, of_indexer, fenced)
    return prolog
