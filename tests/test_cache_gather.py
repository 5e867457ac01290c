"""Reading rows of a cache: by hand, against the reference's addresses, and against what a call wrote."""

import re

import numpy as np
import pytest
from helpers import BF16, MODES, assert_same_bits, make_cache, make_inputs, make_weights

from mla_numba import (
    KeyRows,
    MlaDims,
    MlaProlog,
    PagedCache,
    reference,
)

DIMS = MlaDims(130, 3, 50, 64, 33, 32)
CACHE_MODES = ("PA_BSND", "PA_NZ", "BSND", "TND")
SLOTS = np.array([40, 0, 15, 16, 47, 0, 7])


def sane_cache(quantized, cache_mode, part=None, fp16=False):
    """48 slots of random codes and finite values; `part` cuts the blocks out of larger arrays."""
    whole = make_cache(DIMS, quantized, 6, 19)
    rng = np.random.default_rng(5)
    arrays = {"kv": whole.kv, "kr": whole.kr}
    for array in (whole.kr, *([] if quantized else [whole.kv])):
        array[...] = rng.standard_normal(array.shape).astype(BF16)
    if quantized:
        scale = rng.uniform(1e-3, 1, whole.k_scale.shape)
        arrays["k_scale"] = scale.astype(np.float16 if fp16 else np.float32)
    if cache_mode == "TND":
        cut = {name: np.ascontiguousarray(a.reshape(-1, 1, a.shape[3])[:48]) for name, a in arrays.items()}
    else:
        cut = {name: a[np.s_[:3, :16] if part is None else part] for name, a in arrays.items()}
        cut = {name: a if part is not None else a.copy() for name, a in cut.items()}
    return PagedCache(**cut, cache_mode=cache_mode)


def row_of(array, slot, cache_mode):
    """One row by the addresses of the reference."""
    d = array.shape[-1]
    flat = np.ascontiguousarray(array).reshape(-1)
    if cache_mode != "PA_NZ":
        return flat[slot * d : (slot + 1) * d]
    return flat[reference.nz_addresses(slot, array.shape[1], d, 32 // array.itemsize)]


def test_by_hand():
    kv = np.arange(1, 17, dtype=np.int8).reshape(1, 2, 1, 8)
    kr = np.array([[1, 2], [3, 4]]).astype(BF16).reshape(1, 2, 1, 2)
    k_scale = np.array([[1, 2, 0.5, -1], [0, 0.25, 3, 1]], np.float32).reshape(1, 2, 1, 4)
    rows = PagedCache(kv, kr, k_scale).gather(np.array([1, 0]))
    assert isinstance(rows, KeyRows)
    assert rows.kv.dtype == np.float32
    assert rows.kv.tolist() == [[0, 0, 2.75, 3, 39, 42, 15, 16], [1, 2, 6, 8, 2.5, 3, -7, -8]]
    assert rows.kr.dtype == BF16
    assert rows.kr.tolist() == [[3, 4], [1, 2]]


def test_by_hand_in_nz():
    """Two slots of two runs of 32 codes, stored run by run; groups of 16 share a scale."""
    kv = np.repeat(np.array([1, 2, 3, 4], np.int8), 32).reshape(1, 2, 1, 64)
    kr = np.repeat(np.array([5, 6, 7, 8]), 16).astype(BF16).reshape(1, 2, 1, 32)
    k_scale = np.array([[1, 10, 100, 1000], [2, 20, 200, 2000]], np.float32).reshape(1, 2, 1, 4)
    rows = PagedCache(kv, kr, k_scale, "PA_NZ").gather(np.array([0, 1], np.int32))
    assert [list(dict.fromkeys(row)) for row in rows.kv.tolist()] == [[1, 10, 300, 3000], [4, 40, 800, 8000]]
    assert [list(dict.fromkeys(row)) for row in rows.kr.tolist()] == [[5, 7], [6, 8]]


@pytest.mark.parametrize("part", [None, np.s_[::2, :16], np.s_[1:4, 3:]], ids=str)
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("cache_mode", CACHE_MODES)
def test_equals_rows_taken_one_by_one(cache_mode, quantized, part):
    cache = sane_cache(quantized, cache_mode, part)
    before = cache.copy()
    rows = cache.gather(SLOTS)
    assert (rows.kv.shape, rows.kr.shape) == ((7, 64), (7, 32))
    for i, slot in enumerate(SLOTS):
        want = row_of(cache.kv, slot, cache_mode)
        if quantized:
            scale = row_of(cache.k_scale, slot, "PA_BSND")
            want = want.astype(np.float32) * np.repeat(scale, 16)
        assert_same_bits("kv", rows.kv[i], want)
        assert_same_bits("kr", rows.kr[i], row_of(cache.kr, slot, cache_mode))
    for name, array in before.arrays().items():
        assert_same_bits(name, cache.arrays()[name], array)
    for array in rows:
        assert array.flags.writeable
        assert not any(np.shares_memory(array, other) for other in cache.arrays().values())


@pytest.mark.parametrize("cache_mode", CACHE_MODES)
def test_fp16_scales_are_widened_first(cache_mode):
    cache = sane_cache(True, cache_mode, fp16=True)
    rows = cache.gather(SLOTS)
    wide = PagedCache(cache.kv, cache.kr, cache.k_scale.astype(np.float32), cache_mode).gather(SLOTS)
    assert rows.kv.dtype == np.float32
    assert_same_bits("kv", rows.kv, wide.kv)


def test_the_scales_of_an_unquantised_cache_are_not_read():
    cache = sane_cache(False, "PA_BSND")
    scaled = PagedCache(cache.kv, cache.kr, np.full((3, 16, 1, 4), np.nan, np.float32))
    assert_same_bits("kv", scaled.gather(SLOTS).kv, cache.gather(SLOTS).kv)


def test_scales_that_are_not_finite_are_read_without_a_warning():
    cache = sane_cache(True, "PA_BSND")
    cache.kv[0, 0, 0, :32] = 0
    cache.k_scale[0, 0, 0, :2] = np.inf, np.nan
    assert np.isnan(cache.gather(np.array([0])).kv[0, :32]).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cache_mode", CACHE_MODES)
def test_reads_what_a_call_wrote(cache_mode, mode):
    """The latent within half a step of its group, and the rotated key to the bit."""
    weights = make_weights(DIMS, mode)
    quantized = "b" in weights.quant
    t = 19
    inputs = make_inputs(DIMS, t, 48)._replace(cache_index=np.arange(t)[::-1].copy() + 3)
    cache = PagedCache.allocate(DIMS, 3, 16, cache_mode, quantized)
    slots = inputs.cache_index if cache.paged else np.arange(t)
    MlaProlog(weights)(*inputs._replace(cache_index=inputs.cache_index if cache.paged else None), cache)
    rows = cache.gather(slots)
    scales = {name: getattr(weights, name) for name in ("dequant_scale_w_dq", "dequant_scale_w_dkv_kr")}
    _, latent, _, _ = reference.pre_compute_2d(
        inputs.x, weights.w_dq, weights.w_uq_qr, weights.w_dkv_kr, weights.gamma_cq, weights.epsilon_cq,
        **scales, dequant_scale_w_uq_qr=weights.dequant_scale_w_uq_qr,
    )  # fmt: skip
    want = reference.rms_norm(latent[:, :64], weights.gamma_ckv, weights.epsilon_ckv)
    assert_same_bits("kr", rows.kr, reference.rope_v2(latent[:, 64:], inputs.cos, inputs.sin))
    if not quantized:
        assert_same_bits("kv", rows.kv, want)
        return
    want = want.astype(np.float32).reshape(t, 4, 16)
    half_step = np.abs(want).max(axis=-1, keepdims=True) / 254
    error = np.abs(rows.kv.reshape(want.shape) - want)
    assert (error <= half_step * 1.001).all()
    assert error.any()


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("cache_mode", CACHE_MODES)
class TestSlots:
    def test_none(self, cache_mode, quantized):
        rows = sane_cache(quantized, cache_mode).gather(np.zeros(0, np.int64))
        assert (rows.kv.shape, rows.kr.shape) == ((0, 64), (0, 32))
        assert (rows.kv.dtype, rows.kr.dtype) == (np.float32 if quantized else BF16, BF16)

    def test_all(self, cache_mode, quantized):
        cache = sane_cache(quantized, cache_mode)
        rows = cache.gather(np.arange(48, dtype=np.int32))
        again = cache.gather(np.arange(47, -1, -1))
        for a, b in zip(rows, again, strict=True):
            assert_same_bits("rows", a, b[::-1].copy())

    @pytest.mark.parametrize("slot", [-1, -2, 48, 2**40, np.iinfo(np.int64).min])
    @pytest.mark.parametrize("at", [0, 3, 6])
    def test_range(self, cache_mode, quantized, at, slot):
        slots = SLOTS.copy()
        slots[at:] = slot
        text = re.escape(f"slots[{at}]: expected a slot from 0 to below the capacity 48, got {slot}")
        with pytest.raises(ValueError, match=f"^{text}$"):
            sane_cache(quantized, cache_mode).gather(slots)

    def test_types_and_shapes(self, cache_mode, quantized):
        cache = sane_cache(quantized, cache_mode)
        for wrong in (None, [0, 1], 3, np.int64(3)):
            with pytest.raises(TypeError, match=f"^slots: expected a NumPy array, got {type(wrong).__name__}"):
                cache.gather(wrong)
        for dtype in ("f8", "u4", "i2", "?", ">i8"):
            with pytest.raises(TypeError, match=r"^slots: expected dtype int64 or int32, got "):
                cache.gather(np.zeros(3, dtype))
        for shape in ((), (2, 3)):
            with pytest.raises(ValueError, match=r"^slots: expected shape \(n,\), got \("):
                cache.gather(np.zeros(shape, np.int64))
        with pytest.raises(ValueError, match=r"^slots: expected a contiguous array, got strides"):
            cache.gather(np.arange(8)[::2])


def test_a_cache_without_rows():
    cache = PagedCache(
        np.zeros((0, 1, 64), np.int8), np.zeros((0, 1, 32), BF16), np.zeros((0, 1, 4), np.float32), "TND"
    )
    assert cache.gather(np.zeros(0, np.int64)).kv.shape == (0, 64)
    with pytest.raises(ValueError, match=r"^slots\[0\]: .*capacity 0, got 0"):
        cache.gather(np.zeros(1, np.int64))
