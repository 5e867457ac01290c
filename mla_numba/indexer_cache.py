"""A cache of the lightning indexer's keys: two arrays of blocks addressed by flat slots."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np

from .base.checks import FP16, FP32, INT8, Array, check_choice, check_int, expect_type
from .base.indexer_dims import IndexerDims
from .base.modes import PAGED_MODES, PagedMode
from .base.short_repr import arrays_text, short_repr
from .cache_blocks import CacheView, check_blocks, check_nz_rows, check_slots_to_read, rows_of

__all__ = ["IndexerCache"]


class IndexerCacheSizes(NamedTuple):
    """What a call relies on: slots, slots a block, and elements of a key."""

    capacity: int
    block_size: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class IndexerCache:
    """Keys of earlier tokens as the lightning index reads them: int8 codes with one scale a token.

    | array   | shape                         | dtype                                   |
    |---------|-------------------------------|-----------------------------------------|
    | k       | (n_blocks, block_size, 1, Di) | int8 codes, `real = code * k_scale`     |
    | k_scale | (n_blocks, block_size, 1, 1)  | fp16                                    |

    Slot s is row `s % block_size` of block `s // block_size`. In `cache_mode` "PA_NZ" a block of k is ordered
    `[Di / 32][block_size][32]`, in "PA_BSND" row by row; k_scale has no NZ order. A layer's `PagedCache` and its
    `IndexerCache` have the same slots, so one block table serves both. Blocks may be strided along axis 0 (a slice of a
    larger buffer); within a block the arrays are contiguous. The other fields are for calls: `kept` is what they made
    of the arrays, which stay the same, by who made it.

    Args:
        k: The codes, see the table.
        k_scale: Their scales.
        cache_mode: "PA_BSND" or "PA_NZ".

    Raises:
        TypeError: An array, named in the message, is of another type or dtype.
        ValueError: It has another shape or layout, or the mode is neither.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> dims = mla.IndexerDims(256, 96, 8, 64, 32)
        >>> cache = mla.IndexerCache.allocate(dims, n_blocks=4, block_size=16)
        >>> cache.k.shape, cache.k_scale.shape
        ((4, 16, 1, 64), (4, 16, 1, 1))
        >>> cache.gather(np.array([0, 17])).shape  # the first row of block 0, the second of block 1
        (2, 64)
        >>> mla.IndexerCache(cache.k[2:], cache.k_scale[2:]).capacity  # two of the blocks, no copy
        32
    """

    k: Array
    k_scale: Array
    cache_mode: PagedMode = "PA_BSND"
    views: Mapping[str, CacheView] = field(init=False, repr=False)
    sizes: IndexerCacheSizes = field(init=False, repr=False)
    kept: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        mode = check_choice("cache_mode", self.cache_mode, PAGED_MODES)
        check_blocks("k_cache", self.k, mode, None, INT8)
        check_blocks("k_scale_cache", self.k_scale, mode, self.k, FP16, like_name="k_cache")
        if self.k_scale.shape[-1] != 1:
            raise ValueError(f"k_scale_cache: expected one scale a slot, got {self.k_scale.shape[-1]}")
        if mode == "PA_NZ":
            check_nz_rows("k_cache", self.k)
        views = {"k_cache": CacheView.of(self.k, mode), "k_scale_cache": CacheView.of(self.k_scale, "PA_BSND")}
        object.__setattr__(self, "views", MappingProxyType(views))
        # Kept beside the views: an array's own shape and dtype may be assigned later.
        object.__setattr__(self, "sizes", IndexerCacheSizes(self.capacity, self.block_size, self.k.shape[-1]))
        object.__setattr__(self, "kept", {})

    def __repr__(self) -> str:
        arrays = {"k": self.k, "k_scale": self.k_scale}
        return short_repr(self, self.cache_mode, f"{self.capacity} slots", arrays_text(arrays))

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickle: of the arrays alone, since views belong to their memory."""
        return type(self), (self.k, self.k_scale, self.cache_mode)

    @classmethod
    def allocate(
        cls, dims: IndexerDims, n_blocks: int, block_size: int = 128, cache_mode: PagedMode = "PA_BSND"
    ) -> Self:
        """A cache of zeros for `n_blocks * block_size` tokens.

        Args:
            dims: Dimensions of the indexer that writes it.
            n_blocks: Blocks.
            block_size: Slots a block.
            cache_mode: "PA_BSND" or "PA_NZ".

        Returns:
            The cache.

        Raises:
            TypeError: An argument is of another type.
            ValueError: A count is below 1, the mode is neither, or a key is no multiple of PA_NZ's 32 elements.

        Examples:
            >>> import mla_numba as mla
            >>> mla.IndexerCache.allocate(mla.IndexerDims.deepseek_v32(), n_blocks=2)
            <IndexerCache: PA_BSND, 256 slots, k (2, 128, 1, 128) int8, k_scale (2, 128, 1, 1) float16, 33.3 kB>
        """
        expect_type("dims", dims, IndexerDims)
        check_choice("cache_mode", cache_mode, PAGED_MODES)
        most = sys.maxsize // max(dims.head_dim, FP16.itemsize)  # slots of one array that can be addressed
        check_int("block_size", block_size, 1, most)
        lead = (check_int("n_blocks", n_blocks, 1, most // int(block_size)), int(block_size), 1)
        return cls(np.zeros((*lead, dims.head_dim), INT8), np.zeros((*lead, 1), FP16), cache_mode)

    @property
    def block_size(self) -> int:
        """Slots a block."""
        return int(self.k.shape[1])

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return int(self.k.shape[0] * self.k.shape[1])

    def arrays(self) -> dict[str, Array]:
        """The arrays by the reference operator's names.

        Returns:
            `k_cache` and `k_scale_cache`: the cache's own arrays, not copies.
        """
        return {"k_cache": self.k, "k_scale_cache": self.k_scale}

    def copy(self) -> Self:
        """A cache of the same rows with arrays of its own, contiguous ones."""
        return type(self)(self.k.copy(), self.k_scale.copy(), self.cache_mode)

    def gather(self, slots: Array) -> Array:
        """Copies the keys of `slots` out of the cache, dequantised: `float32(code) * float32(scale)`.

        A slot that no call wrote has whatever the arrays held before.

        Args:
            slots: Slots (n,) int64 or int32, each in [0, capacity), in any order, repeated or not.

        Returns:
            Their keys (n, Di) float32.

        Raises:
            TypeError: `slots` is of another type or dtype.
            ValueError: It has another shape, or a slot is outside the cache. So is -1, for which a call writes no row.
        """
        slots = check_slots_to_read(slots, self.capacity)
        scale = rows_of(self.k_scale, slots, "PA_BSND").astype(FP32)
        codes = rows_of(self.k, slots, self.cache_mode).astype(FP32)
        with np.errstate(all="ignore"):  # the scale of a token that was NaN or Inf
            keys: Array = codes * scale
        return keys
