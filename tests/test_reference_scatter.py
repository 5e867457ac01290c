"""The paged caches of the reference: slots, padding, duplicates and NZ bytes by hand."""

import ml_dtypes
import numpy as np
import pytest

from mla_numba import reference

BF16 = ml_dtypes.bfloat16


def index(*slots, dtype=np.int64):
    return np.array(slots, dtype)


def test_rows_go_to_flat_slots_and_the_rest_stays():
    cache = np.full((2, 2, 1, 3), 9, np.int8)
    rows = np.array([[1, 2, 3], [4, 5, 6]], np.int8)
    result = reference.scatter(cache, index(3, 0), rows, "PA_BSND")
    assert result.tolist() == [[[[4, 5, 6]], [[9, 9, 9]]], [[[9, 9, 9]], [[1, 2, 3]]]]
    assert (cache == 9).all()


def test_minus_one_is_padding_and_the_later_of_two_tokens_wins():
    cache = np.zeros((1, 3, 1, 1), np.int8)
    rows = np.array([[1], [2], [3], [4], [5]], np.int8)
    result = reference.scatter(cache, index(2, -1, 2, 0, -1, dtype=np.int32), rows, "PA_BSND")
    assert result.ravel().tolist() == [4, 0, 3]


@pytest.mark.parametrize("cache_mode", ["PA_BSND", "PA_NZ"])
@pytest.mark.parametrize(("slot", "token"), [(-2, 0), (4, 1), (2**40, 2)])
def test_slots_out_of_range(slot, token, cache_mode):
    slots = index(0, 1, 3)
    slots[token] = slot
    with pytest.raises(ValueError, match=rf"cache_index: .* capacity 4, got {slot} at token {token}"):
        reference.scatter(np.zeros((2, 2, 1, 32), np.int8), slots, np.ones((3, 32), np.int8), cache_mode)


def test_no_tokens_and_no_blocks():
    cache = np.zeros((0, 2, 1, 3), np.int8)
    assert reference.scatter(cache, index(-1), np.ones((1, 3), np.int8), "PA_BSND").shape == (0, 2, 1, 3)
    cache = np.full((1, 2, 1, 3), 7, np.int8)
    result = reference.scatter(cache, index(), np.ones((0, 3), np.int8), "PA_BSND")
    assert result.tolist() == cache.tolist()
    assert not np.shares_memory(result, cache)


def test_nz_addresses_by_hand():
    # bf16: 16 elements in a run. BS = 2, d = 32: a block is [2 runs, 2 slots, 16]. Slot 3: block 1 (from 64), place 1.
    addresses = reference.nz_addresses(3, 2, 32, 16).tolist()
    assert addresses == list(range(80, 96)) + list(range(112, 128))
    # int8: 32 in a run. BS = 4, d = 64: slot 1 is block 0, place 1; the second run lies 4 * 32 behind the first.
    addresses = reference.nz_addresses(1, 4, 64, 32).tolist()
    assert addresses == list(range(32, 64)) + list(range(160, 192))


@pytest.mark.parametrize(("dtype", "d"), [(np.int8, 96), (BF16, 48)])
def test_nz_addresses_visit_every_element_once(dtype, d):
    c0 = 32 // np.dtype(dtype).itemsize
    seen = [a for slot in range(6) for a in reference.nz_addresses(slot, 3, d, c0).tolist()]
    assert sorted(seen) == list(range(6 * d))


def test_nz_bytes():
    cache = np.zeros((2, 2, 1, 32), BF16)
    row = np.arange(1, 33, dtype=np.float32).astype(BF16)[None]
    raw = reference.scatter(cache, index(2), row, "PA_NZ").tobytes()
    # Slot 2 is block 1, place 0: element 64 = byte 128; its second run begins 2 * 16 elements = 64 bytes later.
    assert raw[:128] == bytes(128)
    assert raw[128:136] == bytes.fromhex("803f 0040 4040 8040")  # 1, 2, 3, 4 in bf16, low byte first
    assert raw[160:192] == bytes(32)
    assert raw[192:196] == bytes.fromhex("8841 9041")  # 17, 18
    codes = np.arange(64, dtype=np.int8)[None]
    raw = reference.scatter(np.full((1, 2, 1, 64), -1, np.int8), index(1), codes, "PA_NZ").tobytes()
    assert raw == b"\xff" * 32 + bytes(range(32)) + b"\xff" * 32 + bytes(range(32, 64))


def test_strided_blocks_and_a_cache_of_fp16():
    store = np.zeros((4, 1, 1, 4), np.float16)
    scales = np.array([[1.0, 2049.0, 70000.0, np.nan]], np.float32)
    result = reference.scatter(store[::2], index(1), scales, "PA_BSND")
    # fp16 holds the even integers from 2048 on, so 2049 ties to 2048; 70,000 lies beyond its range.
    assert result[1, 0, 0, :3].tolist() == [1.0, 2048.0, np.inf]
    assert np.isnan(result[1, 0, 0, 3])
    assert not store.any()


@pytest.mark.parametrize(("cache_mode", "shape"), [("BSND", (2, 2, 1, 3)), ("TND", (4, 1, 3))])
def test_without_an_index_rows_lie_in_the_order_of_the_tokens(cache_mode, shape):
    cache = np.full(shape, 9, np.int8)
    rows = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 0]], np.int8)
    result = reference.scatter(cache, None, rows, cache_mode)
    assert result.shape == shape
    assert result.ravel().tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 9, 9]
    assert (cache == 9).all()
    assert reference.scatter(cache, None, rows[:0], cache_mode).tolist() == cache.tolist()
    with pytest.raises(ValueError, match=f"cache_index: expected None for {cache_mode}"):
        reference.scatter(cache, index(0, 1, 2), rows, cache_mode)
    with pytest.raises(ValueError, match=r"rows: expected \(T, 3\) of at most 4 tokens, got \(5, 3\)"):
        reference.scatter(cache, None, np.zeros((5, 3), np.int8), cache_mode)
    with pytest.raises(ValueError, match=r"rows: expected \(T, 3\) of at most 4 tokens, got \(2, 4\)"):
        reference.scatter(cache, None, np.zeros((2, 4), np.int8), cache_mode)


def test_arguments_that_do_not_fit():
    cache = np.zeros((1, 2, 1, 24), np.int8)
    rows = np.zeros((1, 24), np.int8)
    with pytest.raises(ValueError, match="cache_mode: expected PA_BSND, PA_NZ, BSND or TND, got BNSD"):
        reference.scatter(cache, index(0), rows, "BNSD")
    for cache_mode in ("PA_BSND", "PA_NZ"):
        with pytest.raises(TypeError, match=f"cache_index: expected integers for {cache_mode}, got None"):
            reference.scatter(cache, None, rows, cache_mode)
    with pytest.raises(ValueError, match="multiple of 32 elements for PA_NZ"):
        reference.scatter(cache, index(0), rows, "PA_NZ")
    with pytest.raises(ValueError, match=r"expected \(T, 24\) and \(T,\), got \(1, 24\) and \(2,\)"):
        reference.scatter(cache, index(0, 1), rows, "PA_BSND")
    with pytest.raises(TypeError, match="cache_index: expected integers, got float64"):
        reference.scatter(cache, index(0, dtype=np.float64), rows, "PA_BSND")
