"""A KV cache: three arrays of blocks addressed by flat slots, or of rows in the order of the tokens."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np

from .base.checks import (
    BF16,
    FP16,
    FP32,
    INT8,
    Array,
    check_choice,
    check_flag,
    check_int,
    expect_type,
)
from .base.dims import MlaDims
from .base.modes import CACHE_MODES, CONTIGUOUS_MODES, PAGED_MODES, CacheMode
from .base.short_repr import arrays_text, short_repr
from .cache_blocks import CacheView, check_blocks, check_nz_rows, check_slots_to_read, rows_of

__all__ = ["CACHE_MODES", "CONTIGUOUS_MODES", "PAGED_MODES", "KeyRows", "PagedCache"]

N_SCALES = 4


class KeyRows(NamedTuple):
    """Rows read from a cache, as numbers. `PagedCache.gather` has an example.

    | field | shape  | dtype                                                    |
    |-------|--------|----------------------------------------------------------|
    | kv    | (n, C) | float32 `code * scale`, or the bf16 values of a bf16 one |
    | kr    | (n, R) | bf16 rotated key                                         |
    """

    kv: Array
    kr: Array

    def __repr__(self) -> str:
        return short_repr(self, arrays_text(self._asdict()))


class CacheSizes(NamedTuple):
    """What a call relies on: slots, elements of a row of kv and of kr, and whether kv holds int8 codes."""

    capacity: int
    kv_width: int
    kr_width: int
    quantized: bool


@dataclass(frozen=True, slots=True, eq=False)
class PagedCache:
    """Keys of earlier tokens: the normalised latent, its scales, and the rotated part.

    | array   | shape                        | dtype                                                           |
    |---------|------------------------------|-----------------------------------------------------------------|
    | kv      | (n_blocks, block_size, 1, C) | int8 codes of the normalised latent, or bf16 when unquantised   |
    | kr      | (n_blocks, block_size, 1, R) | bf16 rotated key                                                |
    | k_scale | (n_blocks, block_size, 1, 4) | float32 or fp16, one a group of C / 4; or None when unquantised |

    | cache_mode | slot s is                                                             | token t writes      |
    |------------|-----------------------------------------------------------------------|---------------------|
    | PA_BSND    | row `s % block_size` of block `s // block_size`                       | slot cache_index[t] |
    | PA_NZ      | the same, kv and kr ordered `[d / c0][block_size][c0]` within a block | slot cache_index[t] |
    | BSND       | as PA_BSND, arrays (B, S, 1, d): B is n_blocks, S block_size          | slot t, no index    |
    | TND        | row s, arrays (rows, 1, d)                                            | slot t, no index    |

    c0 is 32 bytes. k_scale has no NZ order. Blocks may be strided along axis 0 (a slice of a larger buffer); within a
    block the arrays are contiguous. BSND and TND may have no rows at all. The other fields are for calls: `kept` is
    what they made of the arrays, which stay the same, by who made it.

    Args:
        kv: The latents, see the table.
        kr: The rotated keys.
        k_scale: The scales of an int8 `kv`.
        cache_mode: "PA_BSND", "PA_NZ", "BSND" or "TND".

    Raises:
        TypeError: An array, named in the message, is of another type or dtype.
        ValueError: It has another shape or layout, `k_scale` is missing, or the mode is none of the four.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
        >>> cache = mla.PagedCache.allocate(dims, n_blocks=4, block_size=16)
        >>> cache.kv.shape, cache.kr.shape, cache.k_scale.shape
        ((4, 16, 1, 64), (4, 16, 1, 32), (4, 16, 1, 4))
        >>> slots = np.array([0, 17])  # the first row of block 0, the second of block 1
        >>> cache.gather(slots).kr.shape
        (2, 32)
        >>> upper = mla.PagedCache(cache.kv[2:], cache.kr[2:], cache.k_scale[2:])  # two of the blocks, no copy
        >>> upper.capacity
        32
    """

    kv: Array
    kr: Array
    k_scale: Array | None = None
    cache_mode: CacheMode = "PA_BSND"
    views: Mapping[str, CacheView] = field(init=False, repr=False)
    sizes: CacheSizes = field(init=False, repr=False)
    kept: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        mode = check_choice("cache_mode", self.cache_mode, CACHE_MODES)
        check_blocks("kv_cache", self.kv, mode, None, INT8, BF16)
        if self.quantized and self.kv.shape[-1] % N_SCALES:
            raise ValueError(f"kv_cache: expected rows of {N_SCALES} equal groups, got {self.kv.shape[-1]} elements")
        check_blocks("kr_cache", self.kr, mode, self.kv, BF16)
        if self.k_scale is None:
            if self.quantized:
                raise ValueError("k_scale_cache: expected an array beside an int8 kv_cache, got None")
        else:
            check_blocks("k_scale_cache", self.k_scale, mode, self.kv, FP32, FP16)
            if self.k_scale.shape[-1] != N_SCALES:
                raise ValueError(f"k_scale_cache: expected {N_SCALES} scales a slot, got {self.k_scale.shape[-1]}")
        if mode == "PA_NZ":
            for name, array in (("kv_cache", self.kv), ("kr_cache", self.kr)):
                check_nz_rows(name, array)
        views = {
            name: CacheView.of(array, "PA_BSND" if name == "k_scale_cache" else mode)
            for name, array in self.arrays().items()
        }
        object.__setattr__(self, "views", MappingProxyType(views))
        # Kept beside the views: an array's own shape and dtype may be assigned later.
        widths = self.kv.shape[-1], self.kr.shape[-1]
        object.__setattr__(self, "sizes", CacheSizes(self.capacity, *widths, self.quantized))
        object.__setattr__(self, "kept", {})

    def __repr__(self) -> str:
        arrays = {"kv": self.kv, "kr": self.kr, "k_scale": self.k_scale}
        return short_repr(self, self.cache_mode, f"{self.capacity} slots", arrays_text(arrays))

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickle: of the arrays alone, since views belong to their memory."""
        return type(self), (self.kv, self.kr, self.k_scale, self.cache_mode)

    @classmethod
    def allocate(
        cls,
        dims: MlaDims,
        n_blocks: int,
        block_size: int = 128,
        cache_mode: CacheMode = "PA_BSND",
        quantized: bool = True,
    ) -> Self:
        """A cache of zeros for `n_blocks * block_size` tokens; in BSND they are B and S, in TND rows.

        Args:
            dims: Dimensions of the prolog that writes it.
            n_blocks: Blocks.
            block_size: Slots a block.
            cache_mode: "PA_BSND", "PA_NZ", "BSND" or "TND".
            quantized: Whether kv holds int8 codes with scales, for the modes "b" and "ab", or bf16.

        Returns:
            A cache with float32 scales.

        Raises:
            TypeError: An argument is of another type.
            ValueError: A count is below 1, the mode is none of the four, or its rows do not fit PA_NZ's runs.

        Examples:
            >>> import mla_numba as mla
            >>> cache = mla.PagedCache.allocate(mla.MlaDims.deepseek_v32(), n_blocks=2, quantized=False)
            >>> cache
            <PagedCache: PA_BSND, 256 slots, kv (2, 128, 1, 512) bf16, kr (2, 128, 1, 64) bf16, 294.9 kB>
        """
        expect_type("dims", dims, MlaDims)
        check_choice("cache_mode", cache_mode, CACHE_MODES)
        check_flag("quantized", quantized)
        row_bytes = 2 * max(dims.kv_lora_rank, dims.qk_rope_head_dim, N_SCALES * 2)
        most = sys.maxsize // row_bytes  # slots of one array that can be addressed
        check_int("block_size", block_size, 1, most)
        blocks = (check_int("n_blocks", n_blocks, 1, most // int(block_size)), int(block_size))
        lead = (prod(blocks), 1) if cache_mode == "TND" else (*blocks, 1)
        return cls(
            kv=np.zeros((*lead, dims.kv_lora_rank), INT8 if quantized else BF16),
            kr=np.zeros((*lead, dims.qk_rope_head_dim), BF16),
            k_scale=np.zeros((*lead, N_SCALES), FP32) if quantized else None,
            cache_mode=cache_mode,
        )

    @property
    def block_size(self) -> int:
        """Slots a block: S in BSND, all of them in TND."""
        return int(self.kv.shape[-3])

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return prod(self.kv.shape[:-2])

    @property
    def paged(self) -> bool:
        """Whether a call needs a cache_index; without one, token t writes slot t."""
        return self.cache_mode in PAGED_MODES

    @property
    def quantized(self) -> bool:
        """Whether kv holds int8 codes."""
        return bool(self.kv.dtype == INT8)

    def arrays(self) -> dict[str, Array]:
        """The arrays by the reference operator's names.

        Returns:
            `kv_cache`, `kr_cache` and, where there is one, `k_scale_cache`: the cache's own arrays, not copies.
        """
        named = {"kv_cache": self.kv, "kr_cache": self.kr, "k_scale_cache": self.k_scale}
        return {name: array for name, array in named.items() if array is not None}

    def copy(self) -> Self:
        """A cache of the same rows with arrays of its own, contiguous ones."""
        k_scale = None if self.k_scale is None else self.k_scale.copy()
        return type(self)(self.kv.copy(), self.kr.copy(), k_scale, self.cache_mode)

    def gather(self, slots: Array) -> KeyRows:
        """Copies the rows of `slots` out of the cache, dequantised.

        Codes are widened to float32 and multiplied by their group's scale, with one rounding; bf16 values are copied. A
        slot that no call wrote has whatever the arrays held before.

        Args:
            slots: Slots (n,) int64 or int32, each in [0, capacity), in any order, repeated or not.

        Returns:
            Their rows: kv (n, C) float32 or bf16, kr (n, R) bf16.

        Raises:
            TypeError: `slots` is of another type or dtype.
            ValueError: It has another shape, or a slot is outside the cache. So is -1, for which a call writes no row:
                zeros in its place could be taken for a key.

        Examples:
            >>> import numpy as np
            >>> import mla_numba as mla
            >>> cache = mla.PagedCache.allocate(mla.MlaDims(256, 4, 96, 64, 32, 32), n_blocks=2, block_size=16)
            >>> cache.gather(np.array([17, 0, 17]))
            <KeyRows: kv (3, 64) float32, kr (3, 32) bf16, 960 bytes>
        """
        slots = check_slots_to_read(slots, self.capacity)
        kv = rows_of(self.kv, slots, self.cache_mode)
        if self.quantized and self.k_scale is not None:
            scale = rows_of(self.k_scale, slots, "PA_BSND").astype(FP32)
            groups = kv.astype(FP32).reshape(len(slots), N_SCALES, kv.shape[1] // N_SCALES)
            with np.errstate(all="ignore"):  # the scale of a token that was NaN or Inf
                kv = (groups * scale[:, :, None]).reshape(kv.shape)
        return KeyRows(kv, rows_of(self.kr, slots, self.cache_mode))
