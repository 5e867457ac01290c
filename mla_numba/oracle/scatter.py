"""New rows of a cache, in plain NumPy."""

from math import prod

import numpy as np

from ..base.modes import CacheMode
from .arrays import I64, Array

NZ_C0_BYTES = 32  # the contiguous run of a PA_NZ cache


def nz_addresses(slot: int, block_size: int, d: int, c0: int) -> I64:
    """Where the d elements of a slot's row lie in a flat PA_NZ cache, whose order is [blocks, d/c0, BS, c0].

    Args:
        slot: The flat slot.
        block_size: BS.
        d: Elements of a row.
        c0: Elements of the innermost run.

    Returns:
        Their places (d,) int64.

    Examples:
        >>> from mla_numba.reference import nz_addresses
        >>> nz_addresses(1, 4, 4, 2).tolist()
        [2, 3, 10, 11]
    """
    c = np.arange(d, dtype=np.int64)
    return (slot // block_size) * block_size * d + (c // c0) * block_size * c0 + (slot % block_size) * c0 + c % c0


@np.errstate(all="ignore")
def scatter(cache: Array, cache_index: Array | None, rows: Array, cache_mode: CacheMode) -> Array:
    """Copy the cache with row t of rows at flat slot cache_index[t]; a later token wins, and slot -1 is padding.

    Args:
        cache: An array (blocks, BS, 1, d); with BSND (B, S, 1, d), with TND (n, 1, d).
        cache_index: Slots (T,) of integers; None with BSND and TND, where row t goes to slot t.
        rows: Rows (T, d), cast to the cache's dtype.
        cache_mode: "PA_BSND", "PA_NZ", "BSND" or "TND".

    Returns:
        A new cache.

    Raises:
        TypeError: There is no index, or one that holds no integers.
        ValueError: A shape does not fit, a slot is outside the cache, or the mode is none of the four.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.reference import scatter
        >>> cache, rows = np.zeros((1, 4, 1, 1), np.float32), np.array([[1], [2], [3]], np.float32)
        >>> scatter(cache, np.array([2, -1, 0]), rows, "PA_BSND").reshape(-1).tolist()
        [3.0, 0.0, 1.0, 0.0]
    """
    if cache_mode in ("BSND", "TND"):
        if cache_index is not None:
            raise ValueError(f"cache_index: expected None for {cache_mode}, got an array")
        capacity, d = prod(cache.shape[:-2]), cache.shape[-1]
        if rows.shape[1:] != (d,) or len(rows) > capacity:
            raise ValueError(f"rows: expected (T, {d}) of at most {capacity} tokens, got {rows.shape}")
        flat = cache.flatten()
        flat[: rows.size] = rows.astype(cache.dtype).reshape(-1)
        return flat.reshape(cache.shape)
    n_blocks, block_size, _, d = cache.shape
    capacity = n_blocks * block_size
    c0 = NZ_C0_BYTES // cache.itemsize
    if cache_mode not in ("PA_BSND", "PA_NZ"):
        raise ValueError(f"cache_mode: expected PA_BSND, PA_NZ, BSND or TND, got {cache_mode}")
    if cache_index is None:
        raise TypeError(f"cache_index: expected integers for {cache_mode}, got None")
    if cache_mode == "PA_NZ" and d % c0:
        raise ValueError(f"cache: expected rows of a multiple of {c0} elements for PA_NZ, got shape {cache.shape}")
    if rows.shape[1:] != (d,) or cache_index.shape != rows.shape[:1]:
        raise ValueError(f"rows, cache_index: expected (T, {d}) and (T,), got {rows.shape} and {cache_index.shape}")
    if cache_index.dtype.kind not in "iu":
        raise TypeError(f"cache_index: expected integers, got {cache_index.dtype}")
    for token, slot in enumerate(cache_index.tolist()):
        if not -1 <= slot < capacity:
            raise ValueError(
                f"cache_index: expected -1 or a slot below capacity {capacity}, got {slot} at token {token}"
            )
    flat = cache.flatten()
    for row, slot in zip(rows.astype(cache.dtype), cache_index.tolist(), strict=True):
        if slot == -1:
            continue
        if cache_mode == "PA_NZ":
            flat[nz_addresses(slot, block_size, d, c0)] = row
        else:
            flat[slot * d : (slot + 1) * d] = row
    return flat.reshape(cache.shape)
