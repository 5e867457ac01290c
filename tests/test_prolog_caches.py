"""What a call writes into its caches: paddings, duplicates, strided caches and fp16 scales."""

import numpy as np
import pytest
from helpers import (
    BF16,
    QUANTS,
    THREADS,
    assert_exact,
    assert_none,
    assert_same_bits,
    make_cache,
    make_call,
    make_inputs,
    make_output,
    make_weights,
    random_bytes,
    spread,
)
from helpers.edge_calls import FRACTAL, SHARED, SMALL, WITH_SCALES, T, run

from mla_numba import MlaDims, MlaProlog, MlaTileConfig, PagedCache
from mla_numba.oracle.bits import check_output, reference_run
from tiling import round_up


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("mode", ["none", "b"])
def test_paddings_write_no_row(mode, threads):
    weights = make_weights(SMALL, mode)
    inputs = make_inputs(SMALL, T, 48)
    inputs.cache_index[...] = -1
    call, want = run(weights, inputs, T, threads=threads)
    call.assert_equals(want)
    for name, array in make_cache(SMALL, "b" in mode, 3, 16).arrays().items():
        assert_same_bits(name, call.cache.arrays()[name], array)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("mode", ["none", "b", "ab smooth"])
@pytest.mark.parametrize("n_slots", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "config", [None, MlaTileConfig(unroll_list=[2]), MlaTileConfig(unroll_list=[64, 3], k_vec_tile0=1)]
)
def test_of_tokens_with_one_slot_the_last_wins(config, n_slots, mode, threads):
    t = 203
    weights = make_weights(SHARED, mode)
    rng = np.random.default_rng(n_slots)
    inputs = make_inputs(SHARED, t, 48)._replace(cache_index=rng.choice([-1, *range(n_slots)], t))
    call, want = run(weights, inputs, t, dims=SHARED, threads=threads, tile_config=config)
    call.assert_equals(want)


@pytest.mark.parametrize("threads", THREADS)
def test_the_last_token_wins_every_time(threads):
    """The same race again and again: a row of a loser that is written late would show sooner or later."""
    t = 64
    weights = make_weights(SHARED, "b")
    inputs = make_inputs(SHARED, t, 48)._replace(cache_index=np.tile([5, 6], t // 2))
    prolog = MlaProlog(weights, n_threads=threads, tile_config=MlaTileConfig(unroll_list=[64], k_vec_tile0=1))
    cache = make_cache(SHARED, True, 3, 16)
    want = reference_run(weights, *inputs, cache)
    out = make_output(SHARED, True, t)
    for _ in range(100):
        random_bytes(np.random.default_rng(1), cache.kv[:1])
        prolog(*inputs, cache, out)
        assert_same_bits("kv_cache", cache.kv.reshape(48, -1)[5:7], want.kv_cache.reshape(48, -1)[5:7])
        assert_same_bits("kr_cache", cache.kr.reshape(48, -1)[5:7], want.kr_cache.reshape(48, -1)[5:7])
        assert_same_bits("k_scale_cache", cache.k_scale.reshape(48, -1)[5:7], want.k_scale_cache.reshape(48, -1)[5:7])


def test_int32_slots():
    weights = make_weights(SMALL, "b")
    inputs = make_inputs(SMALL, T, 48)
    call, want = run(weights, inputs._replace(cache_index=inputs.cache_index.astype(np.int32)), T)
    assert_none(check_output(call.out, call.cache, reference_run(weights, *inputs, make_cache(SMALL, True, 3, 16))))
    call.assert_equals(want)


def test_the_first_and_the_last_slot():
    weights = make_weights(SMALL, "b")
    inputs = make_inputs(SMALL, 2, 48)._replace(cache_index=np.array([47, 0]))
    call, want = run(weights, inputs, 2)
    call.assert_equals(want)


def interleaved(dims, quantized, n_blocks, block_size, cache_mode, gap=0):
    """A cache whose arrays lie block by block in one buffer of random bytes, and that buffer."""
    widths = {"kv": dims.kv_lora_rank * (1 if quantized else 2), "kr": dims.qk_rope_head_dim * 2}
    if quantized:
        widths["k_scale"] = 16
    sizes = {name: round_up(block_size * width, 4) for name, width in widths.items()}
    buffer = random_bytes(np.random.default_rng(3), np.empty((n_blocks, sum(sizes.values()) + gap), np.uint8))
    dtypes = {"kv": np.int8 if quantized else BF16, "kr": BF16, "k_scale": np.float32}
    arrays, at = {}, 0
    for name, size in sizes.items():
        part = buffer[:, at : at + block_size * widths[name]].view(dtypes[name])
        arrays[name] = part.reshape(n_blocks, block_size, 1, -1)
        assert np.shares_memory(arrays[name], buffer)
        at += size
    return PagedCache(**arrays, cache_mode=cache_mode), buffer


@pytest.mark.parametrize("cache_mode", ["PA_BSND", "PA_NZ"])
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("gap", [0, 4, 100])
@pytest.mark.parametrize("block_size", [1, 7, 16])
def test_caches_interleaved_in_one_buffer(block_size, gap, quant, cache_mode):
    weights = make_weights(FRACTAL, quant)
    quantized = "b" in quant
    cache, buffer = interleaved(FRACTAL, quantized, 5, block_size, cache_mode, gap)
    inputs = make_inputs(FRACTAL, T, 5 * block_size)
    twin, expected = interleaved(FRACTAL, quantized, 5, block_size, cache_mode, gap)
    want = reference_run(weights, *inputs, cache)
    for name, array in twin.arrays().items():
        array[...] = getattr(want, name)
    out = make_output(FRACTAL, quantized, T)
    MlaProlog(weights)(*inputs, cache, out)
    assert_none(check_output(out, cache, want))
    assert_same_bits("the buffer", buffer, expected)


@pytest.mark.parametrize("cache_mode", ["PA_BSND", "PA_NZ"])
@pytest.mark.parametrize("quant", ["none", "b"])
@pytest.mark.parametrize("part", [np.s_[::2], np.s_[1:4], np.s_[:, :16], np.s_[1::3, :16], np.s_[5:]], ids=str)
def test_a_cache_that_is_a_slice_of_larger_arrays(part, quant, cache_mode):
    weights = make_weights(FRACTAL, quant)
    whole = make_cache(FRACTAL, "b" in quant, 6, 16 if not isinstance(part, tuple) else 19)
    names = {"kv_cache": "kv", "kr_cache": "kr", "k_scale_cache": "k_scale"}
    arrays = whole.arrays()
    cache = PagedCache(**{names[n]: a[part] for n, a in arrays.items()}, cache_mode=cache_mode)
    inputs = make_inputs(FRACTAL, T, cache.capacity)
    want = reference_run(weights, *inputs, cache)
    expected = {name: array.copy() for name, array in arrays.items()}
    for name, array in expected.items():
        array[part] = getattr(want, name)
    MlaProlog(weights)(*inputs, cache)
    for name, array in arrays.items():
        assert_same_bits(name, array, expected[name])


def test_an_unquantised_cache_may_have_scales_which_are_left_alone():
    weights = make_weights(SMALL, "none")
    call = make_call(SMALL, False, T, 3, 16)
    scales = random_bytes(np.random.default_rng(0), np.empty((3, 16, 1, 4), np.float32))
    before = scales.copy()
    cache = PagedCache(call.cache.kv, call.cache.kr, scales)
    inputs = make_inputs(SMALL, T, 48)
    want = reference_run(weights, *inputs, cache)
    MlaProlog(weights)(*inputs, cache, call.out)
    assert_none(check_output(call.out, cache, want))
    assert_same_bits("k_scale_cache", scales, before)


@pytest.mark.parametrize("t", [1, T, 45])
def test_more_tokens_than_slots_is_fine(t):
    assert_exact(make_weights(SMALL, "b"), t, n_blocks=2, block_size=3)


@pytest.mark.parametrize("power", [0, -14, -20, -26, 12, 18])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("mode", "numerics"), [("b", "pypto"), *((mode, "cann") for mode in WITH_SCALES)])
def test_fp16_scale_caches(mode, numerics, strided, power):
    """Scales are rounded into it, once: to subnormals, to zero and to Inf as well."""
    weights = make_weights(SMALL, mode, gamma_ckv=spread(np.random.default_rng(1), 68) * BF16.type(2.0**power))
    call = make_call(SMALL, True, T, 3, 16)
    whole = random_bytes(np.random.default_rng(2), np.empty((6, 17, 1, 4), np.float16))
    halves = whole[::2, :16] if strided else whole.reshape(-1)[: 3 * 16 * 4].reshape(3, 16, 1, 4)
    cache = PagedCache(call.cache.kv, call.cache.kr, halves)
    inputs = make_inputs(SMALL, T, 48)
    want = reference_run(weights, *inputs, cache, numerics=numerics)
    assert want.k_scale_cache.dtype == np.float16
    expected = whole.copy()
    if strided:
        expected[::2, :16] = want.k_scale_cache
    else:
        expected.reshape(-1)[: want.k_scale_cache.size] = want.k_scale_cache.reshape(-1)
    MlaProlog(weights, numerics=numerics)(*inputs, cache, call.out)
    assert_none(check_output(call.out, cache, want))
    assert_same_bits("k_scale_cache", whole, expected)
    for fenced in call.fenced[:2]:
        fenced.assert_intact()


@pytest.mark.parametrize("first", range(0, 1 << 16, 1 << 14))
def test_scales_of_every_exponent_round_into_fp16(first):
    """Gammas of every exponent, subnormal ones too, give scales that round as NumPy rounds them."""
    bits = np.arange(first, first + (1 << 14), 7, dtype=np.uint16)
    gammas = bits.view(BF16)
    gammas = gammas[np.isfinite(gammas.astype(np.float32))][: 4 * 500]
    dims = MlaDims(2, 1, 1, 4, 1, 2)
    for start in range(0, len(gammas) - 3, 4):
        weights = make_weights(dims, "b", gamma_ckv=gammas[start : start + 4].copy())
        cache = make_cache(dims, True, 1, 2)
        cache = PagedCache(cache.kv, cache.kr, np.zeros((1, 2, 1, 4), np.float16))
        inputs = make_inputs(dims, 2, 2)._replace(cache_index=np.arange(2))
        want = reference_run(weights, *inputs, cache)
        out = MlaProlog(weights, n_threads=1)(*inputs, cache)
        assert_none(check_output(out, cache, want))
