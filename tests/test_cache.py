"""The paged cache: what it allocates, what it refuses by name, and what it accepts without a copy."""

import re

import numpy as np
import pytest
from helpers import BF16, assert_same_bits, make_cache

from mla_numba import MlaDims, PagedCache

DIMS = MlaDims(130, 3, 50, 64, 33, 32)
LEAD = (3, 16, 1)
NAMES = ("kv_cache", "kr_cache", "k_scale_cache")


def arrays(quantized=True, lead=LEAD):
    kv = np.zeros((*lead, 64), np.int8 if quantized else BF16)
    return [kv, np.zeros((*lead, 32), BF16), np.zeros((*lead, 4), np.float32) if quantized else None]


def refuses(error, match, given, cache_mode="PA_BSND"):
    with pytest.raises(error) as caught:
        PagedCache(*given, cache_mode=cache_mode)
    assert type(caught.value) is error
    assert re.search(match, str(caught.value)), str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("cache_mode", ["PA_BSND", "PA_NZ"])
@pytest.mark.parametrize("quantized", [True, False])
def test_allocate(quantized, cache_mode):
    cache = PagedCache.allocate(DIMS, 5, 7, cache_mode, quantized)
    assert (cache.block_size, cache.capacity, cache.cache_mode, cache.quantized) == (7, 35, cache_mode, quantized)
    assert (cache.kv.shape, cache.kv.dtype) == ((5, 7, 1, 64), np.int8 if quantized else BF16)
    assert (cache.kr.shape, cache.kr.dtype) == ((5, 7, 1, 32), BF16)
    if quantized:
        assert (cache.k_scale.shape, cache.k_scale.dtype) == ((5, 7, 1, 4), np.float32)
    else:
        assert cache.k_scale is None
    assert tuple(cache.arrays()) == (NAMES if quantized else NAMES[:2])
    assert not any(array.view(np.uint8).any() for array in cache.arrays().values())


def test_allocate_defaults():
    cache = PagedCache.allocate(DIMS, 2)
    assert (cache.block_size, cache.capacity, cache.cache_mode, cache.quantized) == (128, 256, "PA_BSND", True)


def test_allocate_errors():
    for name in ("n_blocks", "block_size"):
        sizes = {"n_blocks": 2, "block_size": 16}
        for wrong in (0, -1):
            with pytest.raises(ValueError, match=f"^{name}: expected at least 1, got {wrong}"):
                PagedCache.allocate(DIMS, **(sizes | {name: wrong}))
        for wrong in (2.0, None, True):
            with pytest.raises(TypeError, match=f"^{name}: expected int, got {type(wrong).__name__}"):
                PagedCache.allocate(DIMS, **(sizes | {name: wrong}))
    with pytest.raises(ValueError, match=r"^cache_mode: expected one of PA_BSND, PA_NZ, BSND, TND, got 'PA'"):
        PagedCache.allocate(DIMS, 2, cache_mode="PA")
    with pytest.raises(TypeError, match=r"^cache_mode: expected str, got NoneType"):
        PagedCache.allocate(DIMS, 2, cache_mode=None)


@pytest.mark.parametrize("quantized", [True, False])
def test_keeps_the_given_arrays(quantized):
    given = arrays(quantized)
    cache = PagedCache(*given)
    assert (cache.kv, cache.kr, cache.k_scale) == (*given,)
    assert all(a is b for a, b in zip(cache.arrays().values(), given, strict=False))


@pytest.mark.parametrize("i", range(3))
class TestArrays:
    def test_type(self, i):
        for wrong in (given := arrays())[i].tolist(), 3, "cache":
            given[i] = wrong
            text = refuses(TypeError, f"^{NAMES[i]}: expected .*array", given)
            assert f"got {type(wrong).__name__}" in text

    def test_dtype(self, i):
        given = arrays()
        right = {0: "int8|bfloat16", 1: "bfloat16", 2: "float32"}[i]
        for dtype in {np.uint8, np.uint16, np.float64, np.int16}:
            given[i] = np.zeros(given[i].shape, dtype)
            text = refuses(TypeError, f"^{NAMES[i]}: expected .*({right})", given)
            assert f"got {np.dtype(dtype)}" in text

    def test_shape(self, i):
        right = arrays()[i]
        for wrong in (right[0], right[None], right[:, :, 0], np.zeros((3, 16, 2, right.shape[3]), right.dtype)):
            given = arrays()
            given[i] = wrong
            text = refuses(ValueError, f"^{NAMES[i]}: expected ", given)
            assert str(wrong.shape) in text
        for axis in (0, 1, 3):
            given = arrays()
            given[i] = np.zeros([0 if k == axis else n for k, n in enumerate(right.shape)], right.dtype)
            refuses(ValueError, f"^{NAMES[i]}: expected ", given)

    def test_layout_within_a_block(self, i):
        n, m, _, d = arrays()[i].shape
        dtype = arrays()[i].dtype
        wrongs = {
            "elements": np.zeros((n, m, 1, 2 * d), dtype)[..., ::2],
            "slots": np.zeros((n, 2 * m, 1, d), dtype)[:, ::2],
            "wider slots": np.zeros((n, m, 1, d + 1), dtype)[..., :d],
            "slots backwards": np.zeros((n, m, 1, d), dtype)[:, ::-1],
            "blocks backwards": np.zeros((n, m, 1, d), dtype)[::-1],
            "one block": np.broadcast_to(np.zeros((1, m, 1, d), dtype), (n, m, 1, d)),
            "blocks that overlap": np.lib.stride_tricks.as_strided(
                np.zeros(n * m * d, dtype),
                (n, m, 1, d),
                ((m * d - 1) * dtype.itemsize, d * dtype.itemsize, 1, dtype.itemsize),
            ),
            "blocks inside": np.zeros((m, n, 1, d), dtype).swapaxes(0, 1),
            "Fortran": np.zeros((n, m, 1, d), dtype, order="F"),
        }
        for what, wrong in wrongs.items():
            given = arrays()
            given[i] = wrong
            text = refuses(ValueError, f"^{NAMES[i]}: expected .*contiguous.*strides", given)
            assert str(wrong.strides) in text, what
            assert ("bytes apart" in text) == (what in ("blocks backwards", "one block", "blocks that overlap")), what

    def test_strided_blocks(self, i):
        n, m, _, d = arrays()[i].shape
        dtype = arrays()[i].dtype
        whole = np.zeros((2 * n, m + 3, 1, d), dtype)
        for part in (whole[:n, :m], whole[::2, 3:], whole[n - 1 : 2 * n - 1, 1 : m + 1]):
            given = arrays()
            given[i] = part
            cache = PagedCache(*given)
            assert cache.arrays()[NAMES[i]] is part
            assert cache.capacity == n * m

    def test_block_strides_of_part_of_an_element(self, i):
        n, m, _, d = arrays()[i].shape
        dtype = arrays()[i].dtype
        if dtype.itemsize == 1:
            return
        raw = np.zeros((n, m * d * dtype.itemsize + 1), np.uint8)
        given = arrays()
        given[i] = np.ndarray(
            (n, m, 1, d), dtype, raw, 0, (raw.strides[0], d * dtype.itemsize, d * dtype.itemsize, dtype.itemsize)
        )
        refuses(ValueError, f"^{NAMES[i]}: expected .*strides", given)


def test_blocks_and_slots_agree():
    for i in (1, 2):
        for lead in ((4, 16, 1), (3, 15, 1)):
            given = arrays()
            given[i] = arrays(lead=lead)[i]
            assert str(lead[:2]) in refuses(ValueError, f"^{NAMES[i]}: expected .*kv_cache", given)


def test_scales():
    given = arrays()
    refuses(ValueError, "^k_scale_cache: expected an array beside an int8 kv_cache, got None", [*given[:2], None])
    given[2] = np.zeros((*LEAD, 5), np.float32)
    refuses(ValueError, "^k_scale_cache: expected 4 scales a slot, got 5", given)


@pytest.mark.parametrize(
    ("quantized", "latent", "rope", "blamed"),
    [(True, 48, 32, "kv_cache"), (True, 64, 24, "kr_cache"), (False, 40, 32, "kv_cache"), (False, 48, 8, "kr_cache")],
)
def test_fractals_are_whole(quantized, latent, rope, blamed):
    dims = MlaDims(130, 3, 50, latent, 33, rope)
    PagedCache.allocate(dims, 2, 16, "PA_BSND", quantized)
    with pytest.raises(ValueError, match=f"^{blamed}: expected .*multiple of (16|32) .*PA_NZ, got "):
        PagedCache.allocate(dims, 2, 16, "PA_NZ", quantized)
    PagedCache.allocate(MlaDims(130, 3, 50, 96, 33, 48), 2, 16, "PA_NZ", quantized)


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("cache_mode", ["PA_BSND", "PA_NZ"])
def test_copy(quantized, cache_mode):
    cache = make_cache(DIMS, quantized, 3, 16, cache_mode)
    twin = cache.copy()
    assert twin.cache_mode == cache_mode
    for name, array in cache.arrays().items():
        assert_same_bits(name, twin.arrays()[name], array)
        assert not np.shares_memory(array, twin.arrays()[name])


def test_copy_of_strided_blocks():
    whole = make_cache(DIMS, True, 6, 16)
    part = PagedCache(whole.kv[::2], whole.kr[::2], whole.k_scale[::2])
    twin = part.copy()
    for name, array in part.arrays().items():
        assert_same_bits(name, twin.arrays()[name], array)
        assert twin.arrays()[name].flags.c_contiguous


def test_is_frozen():
    cache = PagedCache.allocate(DIMS, 2)
    with pytest.raises(AttributeError):
        cache.kv = cache.kv.copy()


def test_fp16_scales():
    given = arrays()
    given[2] = np.zeros((*LEAD, 4), np.float16)
    cache = PagedCache(*given)
    assert cache.k_scale is given[2]
    assert cache.copy().k_scale.dtype == np.float16
    given[2] = np.zeros((*LEAD, 4), ">f2")
    refuses(TypeError, "^k_scale_cache: expected .*float16.*byte order", given)
