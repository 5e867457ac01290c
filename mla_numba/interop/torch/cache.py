"""A KV cache whose arrays are tensors."""

from __future__ import annotations

from typing import NamedTuple, Self

from torch import Tensor

from ...base.checks import expect_type
from ...base.dims import MlaDims
from ...base.modes import CacheMode
from ...base.short_repr import arrays_text, short_repr
from ...cache import PagedCache
from .tensors import check_mode, check_tensors, to_numpy, to_torch

__all__ = ["TorchCache", "TorchKeyRows"]


class TorchKeyRows(NamedTuple):
    """Rows read from a cache: kv (n, C), float32 `code * scale` or the bf16 values of a bf16 one; kr (n, R) bf16.

    `TorchProlog` has an example.
    """

    kv: Tensor
    kr: Tensor

    def __repr__(self) -> str:
        return short_repr(self, arrays_text(self._asdict()))


class TorchCache(NamedTuple):
    """The tensors of a `PagedCache`, whose shapes, dtypes and modes these are.

    | tensor  | shape                        | dtype                                                         |
    |---------|------------------------------|---------------------------------------------------------------|
    | kv      | (n_blocks, block_size, 1, C) | int8 codes of the normalised latent, or bf16 when unquantised |
    | kr      | (n_blocks, block_size, 1, R) | bf16 rotated key                                              |
    | k_scale | (n_blocks, block_size, 1, 4) | float32 or fp16; or None when unquantised                     |

    A tuple of tensors and `cache_mode`, and nothing else, so that one can be made within a compiled graph; they are
    checked in each call, and by `numpy`. `TorchProlog` has an example.
    """

    kv: Tensor
    kr: Tensor
    k_scale: Tensor | None = None
    cache_mode: CacheMode = "PA_BSND"

    def __repr__(self) -> str:
        tensors = {"kv": self.kv, "kr": self.kr, "k_scale": self.k_scale}
        return short_repr(self, str(self.cache_mode), arrays_text(tensors))

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
            dims: As for `PagedCache.allocate`.
            n_blocks: As for `PagedCache.allocate`.
            block_size: As for `PagedCache.allocate`.
            cache_mode: As for `PagedCache.allocate`.
            quantized: As for `PagedCache.allocate`.

        Returns:
            The cache.

        Raises:
            TypeError: As `PagedCache.allocate`.
            ValueError: As `PagedCache.allocate`.
        """
        return cls.from_numpy(PagedCache.allocate(dims, n_blocks, block_size, cache_mode, quantized))

    @classmethod
    def from_numpy(cls, cache: PagedCache) -> Self:
        """The same cache: tensors over its arrays.

        Args:
            cache: The cache.

        Returns:
            Tensors that share its memory.

        Raises:
            TypeError: It is no `PagedCache`.
            ValueError: An array is read-only.
        """
        expect_type("cache", cache, PagedCache)
        k_scale = None if cache.k_scale is None else to_torch(cache.k_scale, "k_scale_cache")
        return cls(to_torch(cache.kv, "kv_cache"), to_torch(cache.kr, "kr_cache"), k_scale, cache.cache_mode)

    def check_types(self) -> None:
        """Raises unless the fields are of their types, which is all that an operator's arguments have to be.

        Raises:
            TypeError: A tensor, named in the message, is none, or `cache_mode` no string.
        """
        named = {"kv_cache": self.kv, "kr_cache": self.kr, "k_scale_cache": self.k_scale}
        check_tensors(named, or_none=("k_scale_cache",))
        check_mode(self.cache_mode)

    def numpy(self) -> PagedCache:
        """The same cache: arrays over its tensors.

        Raises:
            TypeError: A tensor, named in the message, is of another dtype.
            ValueError: It is not on the CPU, or does not fit a `PagedCache`.
        """
        k_scale = None if self.k_scale is None else to_numpy(self.k_scale, "k_scale_cache")
        return PagedCache(to_numpy(self.kv, "kv_cache"), to_numpy(self.kr, "kr_cache"), k_scale, self.cache_mode)

    def gather(self, slots: Tensor) -> TorchKeyRows:
        """Copies of the rows of `slots`, dequantised, as `PagedCache.gather` makes them.

        Args:
            slots: Slots (n,) int64 or int32, each in [0, capacity).

        Returns:
            Their rows: kv (n, C) float32 or bf16, kr (n, R) bf16.

        Raises:
            TypeError: `slots` is no tensor, or of another dtype.
            ValueError: It has another shape, or a slot is outside the cache.
        """
        return TorchKeyRows(*map(to_torch, self.numpy().gather(to_numpy(slots, "slots"))))
