"""Run by test_isa.py: the kernels of the instruction set that is named, against the reference."""

import sys
from itertools import product

import numpy as np
from helpers import (
    MODES,
    THREADS,
    assert_exact,
    assert_none,
    assert_same_bits,
    make_cache,
    make_inputs,
    make_weights,
    most_workers,
)
from helpers.edge_calls import check_zero_tokens
from helpers.indexer_calls import assert_indexer_exact, make_indexer

from mla_numba import (
    MlaDims,
    MlaProlog,
    MlaQuantInputs,
    MlaTileConfig,
    PagedCache,
    pre_compute_2d,
    preset,
    reference,
)
from mla_numba.call.planning import MICRO_TILES, this_machine
from mla_numba.kernels import ISA
from mla_numba.oracle.bits import check_output, reference_run

MR, NR = ISA.mr, ISA.nr
DIMS = (MlaDims(2, 1, 1, 4, 1, 2), MlaDims(50, 5, 17, 20, 10, 10), MlaDims(130, 3, NR + 1, NR + 4, 33, 34))
TOKENS = (0, 1, MR - 1, MR, MR + 1, 3 * MR + 1)
INDEXERS = ((1, 4), (NR + 1, NR - 1), (3, NR), (2, 2 * NR + 1))  # heads, and their width


def check_tiles_of_the_planner():
    """Plans cut as the kernels of this instruction set do."""
    for tile, kr, a_bytes in (
        (MICRO_TILES["bf16"], ISA.kr_bf16, ISA.a_bf16_bytes),
        (MICRO_TILES["int8"], ISA.kr_int8, ISA.a_int8_bytes),
    ):
        assert (tile.mr, tile.nr, tile.kr, tile.a_bytes) == (ISA.mr, ISA.nr, kr, a_bytes)
    assert MlaProlog(make_weights(DIMS[0], "b")).isa == this_machine().isa == ISA.name


def plain_python():
    """The same bodies, not compiled."""
    for mode in MODES:
        for dims in (MlaDims(16, 2, 5, 8, 3, 4), MlaDims(6, 1, 17, 4, 1, 2), MlaDims(10, 1, 3, 12, 5, 6)):
            for t in (0, 1, 2, 3):
                assert_exact(make_weights(dims, mode, seed=t), t, threads=(1,), n_blocks=2, block_size=3, seed=t)
    for mode in MODES:
        plain_caches(mode)
        plain_projections(mode)
        weights = make_weights(MlaDims(16, 2, 5, 8, 3, 4), mode)
        for config in (MlaTileConfig(unroll_list=[2]), preset("decode_b4_s2")):
            assert_exact(weights, 5, threads=(1,), block_size=3, n_blocks=2, tile_config=config)


def plain_cann():
    for mode in MODES:
        for dims in (MlaDims(16, 2, 5, 8, 3, 4), MlaDims(6, 1, 17, 4, 1, 2)):
            for t in (0, 1, 3):
                assert_exact(make_weights(dims, mode, seed=t), t, threads=(1,), block_size=3, seed=t, numerics="cann")
        check_zero_tokens(mode, MlaDims(16, 2, 5, 8, 3, 4), 5, "cann")


def plain_caches(mode):
    """Every kind of cache: order, gaps between blocks, and fp16 scales."""
    weights = make_weights(MlaDims(8, 1, 5, 32, 3, 16), mode)
    quantized = "b" in weights.quant
    inputs = make_inputs(weights.dims, 3, 6)
    for cache_mode, step, fp16 in product(("PA_BSND", "PA_NZ"), (1, 2), (False, True)):
        if fp16 and not quantized:
            continue
        whole = make_cache(weights.dims, quantized, 2 * step, 3, cache_mode)
        arrays = [
            np.ones(a.shape, np.float16) if fp16 and a.dtype == np.float32 else a for a in whole.arrays().values()
        ]
        cache = PagedCache(*(a[::step] for a in arrays), *[None] * (3 - len(arrays)), cache_mode=cache_mode)
        want = reference_run(weights, *inputs, cache)
        out = MlaProlog(weights, n_threads=1)(*inputs, cache)
        assert_none(check_output(out, cache, want))


def plain_projections(mode):
    weights = make_weights(MlaDims(16, 1, 5, 8, 3, 4), mode)
    names = ("dequant_scale_w_dq", "dequant_scale_w_dkv_kr", "dequant_scale_w_uq_qr", "smooth_scales_cq")
    scales = {name: getattr(weights, name) for name in names}
    x = make_inputs(weights.dims, 3, 6).x
    arguments = (x, weights.w_dq, weights.w_uq_qr, weights.w_dkv_kr, weights.gamma_cq, 1e-5)
    got = pre_compute_2d(*arguments, MlaQuantInputs(**scales))
    for i, (g, w) in enumerate(zip(got, reference.pre_compute_2d(*arguments, **scales), strict=False)):
        assert_same_bits(f"result {i}", g, w)


def indexers(modes, shapes, tokens, threads=THREADS):
    """The indexer's prolog alone, and beside that of each mode."""
    for i, (mode, (n_heads, head_dim), t) in enumerate(product(modes, shapes, tokens)):
        dims = MlaDims(18, 2, 5, 8, 3, 4)
        indexer = make_indexer(dims, n_heads, head_dim, ("half", "interleaved")[i % 2], seed=i)
        weights = make_weights(dims, mode, seed=i)
        assert_indexer_exact(weights, indexer, t, threads=threads, block_size=3, n_blocks=5, seed=i)


def small(modes):
    for mode in modes:
        for dims in DIMS:
            for t in TOKENS:
                assert_exact(make_weights(dims, mode, seed=t), t, block_size=5, n_blocks=3, seed=t)


def larger(modes):
    """Work enough to be shared among threads."""
    for mode in modes:
        for t in (1, MR + 1, 40):
            prologs = assert_exact(make_weights(MlaDims(512, 4, 192, 64, 32, 16), mode), t, cache_mode="PA_NZ")
        assert [most_workers(p, 40) for p in prologs] == list(THREADS)


if __name__ == "__main__":
    expected, scope = sys.argv[1:]
    assert expected == ISA.name, f"expected the kernels of {expected}, got those of {ISA.name}"
    check_tiles_of_the_planner()
    if scope == "plain Python":
        plain_python()
        indexers(["b", "ab"], [(2, 5), (3, 4)], (0, 1, 3), threads=(1,))
    elif scope == "plain Python, cann":
        plain_cann()
    elif scope == "one mode":
        small(["b"])
        indexers(["b"], INDEXERS, TOKENS)
    else:
        small(MODES)
        indexers(["b", "ab"], INDEXERS, TOKENS)
        larger(["ab smooth"])
