"""A paged KV cache: three arrays of blocks, addressed by flat slots."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from ._checks import BF16, FP16, FP32, INT8, Array, check_choice, check_flag, check_int, expect_array, expect_type
from .dims import MlaDims

__all__ = ["PagedCache"]

CACHE_MODES = ("PA_BSND", "PA_NZ")
C0_BYTES = 32  # the innermost fractal of an NZ layout
N_SCALES = 4


@dataclass(frozen=True, slots=True, eq=False)
class CacheView:
    """One cache array as the kernels take it: flat memory, and int64 [block_size, block_stride, c0, chunk_stride,
    slot_stride] in elements (see `kernels.scatter`).
    """

    flat: Array
    layout: Array

    @classmethod
    def of(cls, array: Array, cache_mode: str) -> Self:
        blocks, block_size, _, d = array.shape
        flat = array.view(np.uint16) if array.dtype in (BF16, FP16) else array
        if array.flags.c_contiguous:
            block_stride = block_size * d
            flat = flat.reshape(-1)
        else:
            block_stride = array.strides[0] // array.itemsize
            length = (blocks - 1) * block_stride + block_size * d
            flat = np.lib.stride_tricks.as_strided(flat, (length,), (array.itemsize,))
        if cache_mode == "PA_NZ":
            c0 = C0_BYTES // array.itemsize
            inner = (c0, block_size * c0, c0)
        else:
            inner = (d, 0, d)
        return cls(flat, np.array((block_size, block_stride, *inner), np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class PagedCache:
    """Slot s is row `s % block_size` of block `s // block_size`.

    | array   | shape                        | dtype                                                           |
    |---------|------------------------------|-----------------------------------------------------------------|
    | kv      | (n_blocks, block_size, 1, C) | int8 codes of the normalised latent, or bf16 when unquantised   |
    | kr      | (n_blocks, block_size, 1, R) | bf16 rotated key                                                |
    | k_scale | (n_blocks, block_size, 1, 4) | float32 or fp16, one a group of C / 4; or None when unquantised |

    Blocks may be strided along axis 0 (a slice of a larger buffer); within a block the arrays are contiguous. With
    `cache_mode="PA_NZ"` a block of kv and of kr is ordered [d / c0][block_size][c0], c0 = 32 bytes, under the same
    shape; k_scale has no such order. Raises `TypeError` or `ValueError` naming the array that does not fit.
    """

    kv: Array
    kr: Array
    k_scale: Array | None = None
    cache_mode: str = "PA_BSND"
    views: dict[str, CacheView] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("cache_mode", self.cache_mode, CACHE_MODES)
        _check_blocks("kv_cache", self.kv, None, INT8, BF16)
        quantised = self.kv.dtype == INT8
        _check_blocks("kr_cache", self.kr, self.kv, BF16)
        if self.k_scale is None:
            if quantised:
                raise ValueError("k_scale_cache: expected an array beside an int8 kv_cache, got None")
        else:
            _check_blocks("k_scale_cache", self.k_scale, self.kv, FP32, FP16)
            if self.k_scale.shape[3] != N_SCALES:
                raise ValueError(f"k_scale_cache: expected {N_SCALES} scales a slot, got {self.k_scale.shape[3]}")
        if self.cache_mode == "PA_NZ":
            for name, array in (("kv_cache", self.kv), ("kr_cache", self.kr)):
                c0 = C0_BYTES // array.itemsize
                if array.shape[3] % c0:
                    raise ValueError(
                        f"{name}: expected rows of a multiple of {c0} elements in PA_NZ, got {array.shape[3]}"
                    )
        modes = {"k_scale_cache": "PA_BSND"}
        views = {name: CacheView.of(a, modes.get(name, self.cache_mode)) for name, a in self.arrays().items()}
        object.__setattr__(self, "views", views)

    @classmethod
    def allocate(
        cls,
        dims: MlaDims,
        n_blocks: int,
        block_size: int = 128,
        cache_mode: str = "PA_BSND",
        quantized: bool = True,
    ) -> Self:
        """A cache of zeros for `n_blocks * block_size` tokens."""
        expect_type("dims", dims, MlaDims)
        check_flag("quantized", quantized)
        row_bytes = 2 * max(dims.kv_lora_rank, dims.qk_rope_head_dim, N_SCALES * 2)
        most = sys.maxsize // row_bytes  # slots of one array that can be addressed
        check_int("block_size", block_size, 1, most)
        lead = (check_int("n_blocks", n_blocks, 1, most // int(block_size)), int(block_size), 1)
        return cls(
            kv=np.zeros((*lead, dims.kv_lora_rank), INT8 if quantized else BF16),
            kr=np.zeros((*lead, dims.qk_rope_head_dim), BF16),
            k_scale=np.zeros((*lead, N_SCALES), FP32) if quantized else None,
            cache_mode=cache_mode,
        )

    @property
    def block_size(self) -> int:
        """Slots a block."""
        return int(self.kv.shape[1])

    @property
    def capacity(self) -> int:
        """Slots in all."""
        return int(self.kv.shape[0] * self.kv.shape[1])

    @property
    def quantized(self) -> bool:
        """Whether kv holds int8 codes."""
        return bool(self.kv.dtype == INT8)

    def arrays(self) -> dict[str, Array]:
        """The arrays by the reference operator's names."""
        named = {"kv_cache": self.kv, "kr_cache": self.kr, "k_scale_cache": self.k_scale}
        return {name: array for name, array in named.items() if array is not None}

    def copy(self) -> Self:
        """A cache with arrays of its own."""
        k_scale = None if self.k_scale is None else self.k_scale.copy()
        return type(self)(self.kv.copy(), self.kr.copy(), k_scale, self.cache_mode)


def _check_blocks(name: str, array: object, like: Array | None, *dtypes: np.dtype[Any]) -> None:
    """A (blocks, block_size, 1, d) array, contiguous within a block, with `like`'s blocks and of one of `dtypes`."""
    array = expect_array(name, array, dtypes)
    if array.ndim != 4 or array.shape[2] != 1 or 0 in array.shape:
        raise ValueError(f"{name}: expected shape (blocks, block_size, 1, d), got {array.shape}")
    if like is not None and array.shape[:2] != like.shape[:2]:
        raise ValueError(
            f"{name}: expected {like.shape[:2]} blocks and slots a block as kv_cache, got {array.shape[:2]}"
        )
    strided = array.shape[0] > 1 and (array.strides[0] < array[0].nbytes or array.strides[0] % array.itemsize)
    if strided or not array[0].flags.c_contiguous:
        raise ValueError(f"{name}: expected blocks that are contiguous within, got strides {array.strides}")
