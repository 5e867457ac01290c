import ml_dtypes
import numpy as np
import pytest

from mla_numba import MlaDims, MlaProlog, MlaWeights, PagedCache
from mla_numba.oracle.bits import (
    check_output,
    compare_bits,
    poison,
    reference_run,
)
from mla_numba.oracle.inputs import random_inputs

BF16 = np.dtype(ml_dtypes.bfloat16)
DIMS = MlaDims(64, 2, 32, 32, 16, 16)
DTYPES = [BF16, np.dtype(np.int8), np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.float16)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_bits_are_no_mismatch(dtype):
    a = np.arange(24).reshape(2, 3, 4).astype(dtype)
    assert compare_bits("a", a.copy(), a) is None
    assert compare_bits("a", a[:0], a[:0]) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_and_places_what_differs(dtype):
    want = np.arange(24).reshape(2, 3, 4).astype(dtype)
    got = want.copy()
    got[1, 0, 2] = 99
    got[1, 2, 3] = 98
    found = compare_bits("a", got, want)
    assert (found.n_differ, found.n_total, found.first) == (2, 24, (1, 0, 2))
    assert (float(found.got), float(found.want)) == (99, 14)
    assert str(found).startswith(f"a: 2 of 24 elements differ, first at [1, 0, 2]: expected {want[1, 0, 2]!s}, got ")
    assert "NaN" not in str(found)


def test_negative_zero_is_not_zero():
    want = np.zeros(3, BF16)
    got = want.copy()
    got[1] = -0.0
    found = compare_bits("a", got, want)
    assert (found.n_differ, found.first, found.want, found.got) == (1, (1,), "0", "-0")


def test_a_nan_equals_its_own_bits_only():
    want = np.array([0x7FC0, 0x7FC0], np.uint16).view(BF16)
    assert compare_bits("a", want.copy(), want) is None
    got = np.array([0x7FC0, 0xFFC1], np.uint16).view(BF16)
    found = compare_bits("a", got, want)
    assert (found.n_differ, found.first) == (1, (1,))
    assert "0x7fc0" in found.want
    assert "0xffc1" in found.got


def test_says_where_nans_are():
    want = np.zeros((2, 4), np.float32)
    got = want.copy()
    got[0, 1] = 1
    got[1, 2:] = np.nan
    found = compare_bits("a", got, want)
    assert (found.n_nan_got, found.first_nan_got) == (2, (1, 2))
    assert (found.n_nan_want, found.first_nan_want) == (0, None)
    assert str(found).endswith("NaNs: expected none, got 2, first at [1, 2]")


def test_strided_arrays_are_compared():
    whole = np.arange(48, dtype=np.float32).reshape(4, 3, 4)
    assert compare_bits("a", whole[::2], whole[::2].copy()) is None
    assert compare_bits("a", whole[1::2], whole[::2]).n_differ == 24


def test_other_dtypes_and_shapes_are_errors():
    a = np.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match="a: expected dtype float32, got float64"):
        compare_bits("a", a.astype(np.float64), a)
    with pytest.raises(ValueError, match=r"a: expected shape \(2, 3\), got \(3, 2\)"):
        compare_bits("a", a.reshape(3, 2), a)


def test_poison_fills_with_what_no_call_writes():
    floats, codes = np.zeros((2, 2), BF16), np.zeros(3, np.int8)
    poison(floats, None, codes)
    assert np.isnan(floats).all()
    assert (codes == -128).all()


@pytest.mark.parametrize("quant", ["none", "a", "b", "ab"])
@pytest.mark.parametrize("cache_mode", ["PA_BSND", "PA_NZ"])
def test_a_call_equals_the_reference(quant, cache_mode):
    weights = MlaWeights.random(DIMS, 3, quant, smooth="b" in quant)
    cache = PagedCache.allocate(DIMS, 3, 4, cache_mode, quantized="b" in quant)
    inputs = random_inputs(DIMS, 5, 3, cache.capacity)
    poison(*cache.arrays().values())
    before = cache.copy()
    want = reference_run(weights, *inputs, before)
    for name, array in before.arrays().items():
        assert compare_bits(name, array, cache.arrays()[name]) is None
    output = MlaProlog(weights, n_threads=1)(*inputs, cache)
    assert check_output(output, cache, want) == []


def test_check_output_names_each_array_that_differs():
    weights = MlaWeights.random(DIMS, 3)
    cache = PagedCache.allocate(DIMS, 3, 4)
    inputs = random_inputs(DIMS, 5, 3, cache.capacity)
    want = reference_run(weights, *inputs, cache)
    output = MlaProlog(weights, n_threads=1)(*inputs, cache)
    for name, array in {**output._asdict(), **cache.arrays()}.items():
        kept = array.copy()
        array.view(np.uint8).reshape(-1)[-1] ^= 1
        assert [mismatch.name for mismatch in check_output(output, cache, want)] == [name]
        array[...] = kept
    assert check_output(output, cache, want) == []
    with pytest.raises(TypeError, match="q_norm_scale: expected an array, got None"):
        check_output(output._replace(q_norm_scale=None), cache, want)


def test_inputs_are_the_seeds():
    inputs = random_inputs(DIMS, 7, 1, 20)
    assert [array.shape for array in inputs] == [(7, 64), (7, 16), (7, 16), (7,)]
    assert [array.dtype for array in inputs] == [BF16, BF16, BF16, np.int64]
    assert all((a == b).all() for a, b in zip(inputs, random_inputs(DIMS, 7, 1, 20), strict=True))
    assert (inputs.x != random_inputs(DIMS, 7, 2, 20).x).any()


def test_inputs_have_equal_halves_and_distinct_slots():
    inputs = random_inputs(DIMS, 20, 1, 20)
    for table in (inputs.cos, inputs.sin):
        assert (table[:, :8] == table[:, 8:]).all()
        assert len(np.unique(table[:, 0])) > 1
    square = inputs.cos.astype(np.float32) ** 2 + inputs.sin.astype(np.float32) ** 2
    np.testing.assert_allclose(square, 1, atol=2 * 2**-8)
    assert sorted(inputs.cache_index) == list(range(20))


def test_more_tokens_than_slots_is_an_error():
    with pytest.raises(ValueError, match="capacity: expected at least 8, got 7"):
        random_inputs(DIMS, 8, 0, 7)
