"""The edges of a call: empty batches, zeros, sizes beyond all bounds, NaN, and memory that is shared or read-only."""

import tracemalloc

import numpy as np
import pytest
from helpers import (
    BF16,
    MODES,
    THREADS,
    assert_none,
    assert_same_bits,
    make_cache,
    make_call,
    make_inputs,
    make_weights,
    spread,
)
from helpers.edge_calls import (
    NOT_FINITE,
    SHARED,
    SMALL,
    WITH_SCALES,
    T,
    check_zero_tokens,
    other_tokens,
    run,
    tiny,
)

from mla_numba import MlaDims, MlaProlog, reference
from mla_numba.oracle.bits import check_output, reference_run

NUMERICS = pytest.mark.parametrize("numerics", reference.NUMERICS)


@pytest.mark.parametrize("mode", MODES)
def test_no_tokens(mode):
    weights = make_weights(SMALL, mode)
    quantized = "b" in weights.quant
    cache = make_cache(SMALL, quantized, 3, 16)
    before = cache.copy()
    prolog = MlaProlog(weights, check_finite=True)
    out = prolog(*make_inputs(SMALL, 0, 48), cache)
    assert out.query_nope.shape == (0, 3, 68)
    assert out.query_rope.shape == (0, 3, 34)
    assert out.q_norm.shape == (0, 50)
    assert out.q_norm_scale.shape == (0, 1) if quantized else out.q_norm_scale is None
    for name, array in before.arrays().items():
        assert_same_bits(name, cache.arrays()[name], array)
    assert prolog(*make_inputs(SMALL, 0, 48), cache, out) is out
    assert prolog.plan(0).tiles == ()


@NUMERICS
@pytest.mark.parametrize("mode", MODES)
def test_zero_tokens_among_others(mode, numerics):
    check_zero_tokens(mode, SMALL, T, numerics)


@NUMERICS
@pytest.mark.parametrize("mode", WITH_SCALES)
@pytest.mark.parametrize("groups", [[0], [1], [3], [0, 2], [0, 1, 2, 3]])
def test_zero_groups_of_the_key(mode, groups, numerics):
    gamma = spread(np.random.default_rng(0), 68)
    for g in groups:
        gamma[17 * g : 17 * (g + 1)] = 0
    inputs = make_inputs(SMALL, T, 48)._replace(cache_index=np.arange(T))
    call, want = run(make_weights(SMALL, mode, gamma_ckv=gamma), inputs, T, numerics=numerics)
    call.assert_equals(want)
    written = call.cache.k_scale.reshape(48, 4)[:T]
    assert not written[:, groups].any()
    assert (np.delete(written, groups, axis=1) > 0).all()
    assert np.isfinite(written).all()


@NUMERICS
@pytest.mark.parametrize("mode", WITH_SCALES)
@pytest.mark.parametrize("exponent", [-133, -130, -128, -126, -125, -124, -123, -122, -121, -120, -118, -110])
def test_a_norm_so_small_that_its_scale_overflows(mode, exponent, numerics):
    """127 / amax is Inf below about 2**-121: codes and scale are then 0, and between it and 2**-126 they are not.

    In "cann" amax / 127 may be no zero where 127 / amax overflows: codes and scale are 0 all the same.
    """
    weights = make_weights(SMALL, mode, gamma_cq=tiny(exponent, 50), gamma_ckv=tiny(exponent, 68))
    call, want = run(weights, make_inputs(SMALL, T, 48), T, numerics=numerics)
    call.assert_equals(want)
    assert np.isfinite(call.out.q_norm_scale).all()
    with_codes = call.out.q_norm.any(axis=1)
    assert (with_codes == (call.out.q_norm_scale[:, 0] != 0)).all()
    if exponent in (-133, -110):
        assert with_codes.all() == (exponent == -110)
    if exponent <= -126 and numerics == "pypto":
        assert not call.out.q_norm_scale.any()
        assert not call.out.q_norm.any()
        assert not call.out.query_nope.astype(np.float32).any()


@NUMERICS
@pytest.mark.parametrize("exponent", [-133, -130, -126, -122, -120, -110])
def test_hidden_states_so_small_that_their_scale_overflows(exponent, numerics):
    weights = make_weights(SMALL, "ab")
    inputs = make_inputs(SMALL, T, 48)
    inputs.x[2] = tiny(exponent, 130)
    inputs.x[3] = -tiny(exponent, 130)
    call, want = run(weights, inputs, T, numerics=numerics)
    call.assert_equals(want)
    assert np.isfinite(call.out.q_norm_scale).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("power", [-100, -60, 60, 100])
def test_hidden_states_of_extreme_size(mode, power):
    """The squares of the norm underflow or overflow, and bits still agree where nothing becomes NaN."""
    weights = make_weights(SMALL, mode)
    inputs = make_inputs(SMALL, T, 48)
    inputs.x[:] = (inputs.x.astype(np.float32) * np.float32(2.0) ** power).astype(BF16)
    call, want = run(weights, inputs, T)
    assert not np.isnan(want.query_nope.astype(np.float32)).any()
    call.assert_equals(want)


@pytest.mark.parametrize("mode", MODES)
def test_zero_gamma_and_zero_weights(mode):
    zero = make_weights(SMALL, mode, gamma_cq=np.zeros(50, BF16), gamma_ckv=np.zeros(68, BF16))
    call, want = run(zero, make_inputs(SMALL, T, 48), T)
    call.assert_equals(want)
    zero = make_weights(SMALL, mode)
    for array in (zero.w_dq, zero.w_dkv_kr, zero.w_uk):
        array[...] = 0
    call, want = run(zero, make_inputs(SMALL, T, 48), T)
    call.assert_equals(want)


def test_smooth_scales_of_zero_and_of_either_sign():
    smooth = np.random.default_rng(0).standard_normal((1, 50)).astype(np.float32)
    smooth[0, ::7] = 0
    for scales in (smooth, smooth * 0):
        call, want = run(make_weights(SMALL, "b", smooth_scales_cq=scales), make_inputs(SMALL, T, 48), T)
        call.assert_equals(want)


def test_the_longest_k_whose_int8_sums_fit():
    """132104 products of 127 and -128 are 2**31 - 1024: one more row and the sum would wrap."""
    k = (2**31 - 1) // (127 * 128)
    for code in (-128, 127):
        dims = MlaDims(k, 1, 1, 4, 1, 2)
        weights = make_weights(dims, "ab")
        weights.w_dq[...] = code
        weights.w_dkv_kr[...] = code
        inputs = make_inputs(dims, 3, 16)
        inputs.x[0] = 1
        inputs.x[1] = -1
        call, want = run(weights, inputs, 3, dims=dims)
        call.assert_equals(want)
        dims = MlaDims(2, 1, k, 4, 1, 2)
        ones = np.ones(k, BF16)
        weights = make_weights(dims, "b", w_dq=np.ones((2, k), BF16), gamma_cq=ones)
        weights.w_uq_qr[...] = code
        inputs = make_inputs(dims, 3, 16)
        call, want = run(weights, inputs, 3, dims=dims)
        assert (np.abs(call.out.q_norm) == 127).all()
        call.assert_equals(want)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(
    ("where", "numerics"), [("x", "pypto"), ("x row", "pypto"), ("cos", "pypto"), ("sin", "pypto"), ("x", "cann")]
)
@pytest.mark.parametrize("bits", NOT_FINITE.values(), ids=NOT_FINITE)
@pytest.mark.parametrize("mode", MODES)
def test_nan_and_inf_stay_in_their_token(mode, bits, where, numerics, threads):
    weights = make_weights(SMALL, mode)
    inputs = make_inputs(SMALL, T, 48)._replace(cache_index=np.random.default_rng(0).permutation(48)[:T])
    clean = reference_run(weights, *inputs, make_cache(SMALL, "b" in weights.quant, 3, 16), numerics=numerics)
    bad = [1, 5, T - 1]
    array = getattr(inputs, where.split()[0])
    array.view(np.uint16)[bad, slice(None) if "row" in where else 7] = bits
    call, _ = run(weights, inputs, T, threads=threads, numerics=numerics)
    assert_none(other_tokens(call, clean, bad, inputs.cache_index))
    if where.startswith("x") and "a" not in weights.quant and mode == "none":
        for name in ("query_nope", "query_rope", "q_norm"):
            got = getattr(call.out, name)[bad].astype(np.float32)
            assert not np.isfinite(got).all(axis=-1).any(), f"{name} of a token that is not finite"


@NUMERICS
@pytest.mark.parametrize("bits", [*NOT_FINITE.values(), 0x7FFF], ids=[*NOT_FINITE, "largest"])
@pytest.mark.parametrize("mode", MODES)
def test_a_token_that_is_not_finite_has_no_finite_query(mode, bits, numerics):
    """In quant_a too, where an Inf makes all codes 0: the scale is Inf, as in the reference, and hides nothing."""
    inputs = make_inputs(SMALL, T, 48)._replace(cache_index=np.arange(T))
    inputs.x.view(np.uint16)[3] = bits
    call, want = run(make_weights(SMALL, mode), inputs, T, numerics=numerics)
    for name in ("query_nope", "query_rope"):
        for array in (getattr(call.out, name), getattr(want, name)):
            assert np.isnan(array[3].astype(np.float32)).all()
    if np.isnan(inputs.x[3].astype(np.float32)).all():
        assert np.isnan(call.cache.kr.reshape(48, -1)[3].astype(np.float32)).all()


def test_not_finite_weights_of_one_head_stay_in_it():
    weights = make_weights(SMALL, "b")
    inputs = make_inputs(SMALL, T, 48)
    _, clean = run(weights, inputs, T)
    weights.w_uk[1, 4, 9] = np.nan
    call, _ = run(weights, inputs, T)
    keep = np.ones(68, bool)
    keep[9] = False
    got = call.out.query_nope
    assert_same_bits("other heads", got[:, [0, 2]], clean.query_nope[:, [0, 2]])
    assert_same_bits("other columns", got[:, 1, keep], clean.query_nope[:, 1, keep])
    assert np.isnan(got[:, 1, 9].astype(np.float32)).all()


def test_read_only_inputs():
    weights = make_weights(SMALL, "b")
    inputs = make_inputs(SMALL, T, 48)
    for array in inputs:
        array.setflags(write=False)
    for name in ("w_dq", "w_uq_qr", "w_uk", "w_dkv_kr", "gamma_cq", "gamma_ckv", "dequant_scale_w_uq_qr"):
        getattr(weights, name).setflags(write=False)
    call, want = run(weights, inputs, T)
    call.assert_equals(want)


def test_inputs_and_weights_are_not_written():
    weights = make_weights(SMALL, "ab smooth")
    inputs = make_inputs(SMALL, T, 48)
    before = [a.copy() for a in inputs]
    run(weights, inputs, T)
    for name, array, old in zip(inputs._fields, inputs, before, strict=True):
        assert_same_bits(name, array, old)
    again = make_weights(SMALL, "ab smooth")
    for name in ("w_dq", "w_uq_qr", "w_uk", "w_dkv_kr", "gamma_cq", "gamma_ckv", "smooth_scales_cq"):
        assert_same_bits(name, getattr(weights, name), getattr(again, name))


def test_inputs_may_share_memory():
    weights = make_weights(SMALL, "b")
    inputs = make_inputs(SMALL, T, 48)
    inputs = inputs._replace(sin=inputs.cos)
    call, want = run(weights, inputs, T)
    call.assert_equals(want)


def test_slices_of_larger_inputs():
    weights = make_weights(SMALL, "b")
    whole = make_inputs(SMALL, 3 * T, 48)
    for start in (0, 1, T):
        part = type(whole)(*(a[start : start + T] for a in whole))
        call, want = run(weights, part, T)
        call.assert_equals(want)


def test_outputs_that_are_rows_of_larger_arrays():
    weights = make_weights(SMALL, "b")
    inputs = make_inputs(SMALL, T, 48)
    call = make_call(SMALL, True, 3 * T, 3, 16)
    before = [a.copy() for a in call.out]
    want = reference_run(weights, *inputs, call.cache)
    part = type(call.out)(*(a[T : 2 * T] for a in call.out))
    MlaProlog(weights)(*inputs, call.cache, part)
    assert_none(check_output(part, call.cache, want))
    for name, array, old in zip(part._fields, call.out, before, strict=True):
        assert_same_bits(name, array[:T], old[:T])
        assert_same_bits(name, array[2 * T :], old[2 * T :])


def test_a_call_may_be_run_again():
    weights = make_weights(SMALL, "b")
    prolog = MlaProlog(weights)
    for seed in range(5):
        call = make_call(SMALL, True, T, 3, 16, seed=seed)
        inputs = make_inputs(SMALL, T, 48, seed)
        want = reference_run(weights, *inputs, call.cache)
        for _ in range(2):
            prolog(*inputs, call.cache, call.out)
            call.assert_equals(want)


def test_epsilon_is_read():
    for changes in ({"epsilon_cq": 0.5}, {"epsilon_ckv": 0.5}, {"epsilon_cq": 0.0, "epsilon_ckv": 0.0}):
        call, want = run(make_weights(SMALL, "b", **changes), make_inputs(SMALL, T, 48), T)
        call.assert_equals(want)


def test_a_call_with_outputs_allocates_no_arrays():
    t = 200
    weights = make_weights(SHARED, "b")
    inputs = make_inputs(SHARED, t, 256)
    call = make_call(SHARED, True, t, 16, 16)
    prolog = MlaProlog(weights)
    prolog(*inputs, call.cache, call.out)
    tracemalloc.start()
    prolog(*inputs, call.cache, call.out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < inputs.x.nbytes / 8
