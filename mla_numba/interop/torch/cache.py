"""A KV cache whose arrays are tensors."""

from __future__ import annotations

from typing import NamedTuple, Self

from torch import Tensor

from ...base.checks import expect_type
from ...base.dims import MlaDims
from ...base.modes import CacheMode
from ...base.short_repr import arrays_text, short_repr
from ...cache import PagedCache
from .tensors import to_numpy, to_torch

__all__ = ["TorchCache", "TorchKeyRows"]


class TorchKeyRows(NamedTuple):
    """Rows read from a cache: kv (n, C), float32 `code * scale` or the bf16 values of a bf16 one; kr (n, R) bf16."""

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

    A tuple of tensors and nothing else, so that one can be made within a compiled graph; they are checked in each call,
    and by `numpy`.
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
        """A cache of zeros for `n_blocks * block_size` tokens; in BSND they are B and S, in TND rows."""
        return cls.from_numpy(PagedCache.allocate(dims, n_blocks, block_size, cache_mode, quantized))

    @classmethod
    def from_numpy(cls, cache: PagedCache) -> Self:
        """The same cache: tensors over its arrays. Raises `ValueError` for one that is read-only."""
        expect_type("cache", cache, PagedCache)
        k_scale = None if cache.k_scale is None else to_torch(cache.k_scale, "k_scale_cache")
        return cls(to_torch(cache.kv, "kv_cache"), to_torch(cache.kr, "kr_cache"), k_scale, cache.cache_mode)

    def numpy(self) -> PagedCache:
        """The same cache: arrays over its tensors.

        Raises `TypeError` or `ValueError` naming the tensor that is not on the CPU or does not fit a `PagedCache`.
        """
        k_scale = None if self.k_scale is None else to_numpy(self.k_scale, "k_scale_cache")
        return PagedCache(to_numpy(self.kv, "kv_cache"), to_numpy(self.kr, "kr_cache"), k_scale, self.cache_mode)

    def gather(self, slots: Tensor) -> TorchKeyRows:
        """Copies of the rows of `slots`, dequantised: `PagedCache.gather`, with its errors."""
        return TorchKeyRows(*map(to_torch, self.numpy().gather(to_numpy(slots, "slots"))))
