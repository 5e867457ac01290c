"""Blocks of 1 to 1024 slots in both paged modes, strided and not: every byte of the buffer is as it should be."""

import numpy as np
import pytest
from helpers import BF16, assert_none, assert_same_bits, make_inputs, make_weights, random_bytes

from mla_numba import MlaDims, MlaProlog, PagedCache
from mla_numba.oracle.bits import check_output, reference_run
from tiling import ceil_div

DIMS = MlaDims(130, 3, 50, 64, 33, 32)
BLOCK_SIZES = (1, 3, 16, 128, 1000, 1024)
T = 23


def make_blocks(quantized, block_size, cache_mode, strided):
    """A cache of at least T slots, and the whole arrays that its blocks are cut out of."""
    n = max(3, ceil_div(T, block_size))
    kinds = [(64, np.int8 if quantized else BF16), (32, BF16)] + [(4, np.float32)] * quantized
    lead = (2 * n, block_size + 2) if strided else (n, block_size)
    rng = np.random.default_rng(block_size)
    whole = [random_bytes(rng, np.empty((*lead, 1, d), dtype)) for d, dtype in kinds]
    cut = [array[1::2, 1:-1] if strided else array for array in whole]
    assert not strided or not any(array.flags.c_contiguous for array in cut)
    return PagedCache(*cut, *([] if quantized else [None]), cache_mode), whole


def spread_slots(cache):
    """The first and the last slots of blocks, and others; all distinct but for one padding."""
    size, capacity = cache.block_size, cache.capacity
    edges = [0, size - 1, size, 2 * size - 1, 2 * size, capacity - 1]
    rest = np.random.default_rng(0).permutation(capacity)
    slots = list(dict.fromkeys([s for s in edges if s < capacity] + rest.tolist()))[: T - 1]
    return np.array([*slots, -1])


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("cache_mode", ["PA_BSND", "PA_NZ"])
@pytest.mark.parametrize("mode", ["none", "b"])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_equals_the_reference(block_size, mode, cache_mode, strided):
    weights = make_weights(DIMS, mode)
    cache, whole = make_blocks("b" in mode, block_size, cache_mode, strided)
    inputs = make_inputs(DIMS, T, cache.capacity)._replace(cache_index=spread_slots(cache))
    want = reference_run(weights, *inputs, cache)
    expected = [array.copy() for array in whole]
    for array, name in zip(expected, cache.arrays(), strict=True):
        array[np.s_[1::2, 1:-1] if strided else np.s_[:]] = getattr(want, name)
    assert_none(check_output(MlaProlog(weights)(*inputs, cache), cache, want))
    for name, array, all_of_it in zip(cache.arrays(), whole, expected, strict=True):
        assert_same_bits(name, array, all_of_it)
    written = inputs.cache_index[:-1]
    placed = PagedCache.allocate(DIMS, 1, T - 1, quantized="b" in mode)
    MlaProlog(weights)(*(a[: T - 1] for a in inputs[:3]), np.arange(T - 1), placed)
    for got, row in zip(cache.gather(written), placed.gather(np.arange(T - 1)), strict=True):
        assert_same_bits("gathered rows", got, row)
