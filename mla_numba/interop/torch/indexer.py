"""The prolog of a lightning indexer for PyTorch: CPU tensors in and out, over their own memory."""

from __future__ import annotations

from typing import NamedTuple, Self

from torch import Tensor

from ...base.checks import expect_type
from ...base.indexer_dims import IndexerDims
from ...base.modes import PagedMode
from ...base.short_repr import arrays_text, indexer_dims_text, short_repr
from ...indexer import IndexerProlog
from ...indexer_cache import IndexerCache
from ...weights.indexer import IndexerWeights
from ...weights.packed_indexer import PackedIndexer
from .index_operators import indexer_prolog
from .layer_module import LayerModule
from .tensors import check_mode, check_tensors, to_numpy, to_torch

__all__ = ["TorchIndexer", "TorchIndexerCache", "TorchIndexerOutput"]


class TorchIndexerOutput(NamedTuple):
    """The tensors of an `IndexerOutput`: query (T, Ni, Di) int8, query_scale (T, Ni, 1) and weights (T, Ni) fp16.

    `TorchIndexer` has an example.
    """

    query: Tensor
    query_scale: Tensor
    weights: Tensor

    def __repr__(self) -> str:
        return short_repr(self, arrays_text(self._asdict()))


class TorchIndexerCache(NamedTuple):
    """The tensors of an `IndexerCache`, whose shapes, dtypes and modes these are.

    | tensor  | shape                         | dtype      |
    |---------|-------------------------------|------------|
    | k       | (n_blocks, block_size, 1, Di) | int8 codes |
    | k_scale | (n_blocks, block_size, 1, 1)  | fp16       |

    `cache_mode` is "PA_BSND" or "PA_NZ". All are checked in each call, and by `numpy`. `TorchIndexer` has an example.
    """

    k: Tensor
    k_scale: Tensor
    cache_mode: PagedMode = "PA_BSND"

    def __repr__(self) -> str:
        return short_repr(self, str(self.cache_mode), arrays_text({"k": self.k, "k_scale": self.k_scale}))

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
        """
        return cls.from_numpy(IndexerCache.allocate(dims, n_blocks, block_size, cache_mode))

    @classmethod
    def from_numpy(cls, cache: IndexerCache) -> Self:
        """A cache over the same memory.

        Args:
            cache: The cache.

        Returns:
            Its arrays as tensors.

        Raises:
            TypeError: It is of another type.
            ValueError: An array is read-only.
        """
        expect_type("cache", cache, IndexerCache)
        return cls(to_torch(cache.k, "k_cache"), to_torch(cache.k_scale, "k_scale_cache"), cache.cache_mode)

    def check_types(self) -> None:
        """Raises unless the fields are of their types, which is all that an operator's arguments have to be.

        Raises:
            TypeError: A tensor, named in the message, is none, or `cache_mode` no string.
        """
        check_tensors({"k_cache": self.k, "k_scale_cache": self.k_scale})
        check_mode(self.cache_mode)

    def numpy(self) -> IndexerCache:
        """The `IndexerCache` over the same memory.

        Returns:
            The cache, checked.

        Raises:
            TypeError: A tensor is of another type or dtype.
            ValueError: It has another shape, layout or device.
        """
        return IndexerCache(to_numpy(self.k, "k_cache"), to_numpy(self.k_scale, "k_scale_cache"), self.cache_mode)


class TorchIndexer(LayerModule):
    """The prolog of a lightning indexer as a module.

    The packed weights are not parameters, and a copy of the module shares them.

    Args:
        source: An `IndexerProlog`, or the weights of one.

    Raises:
        TypeError: It is of another type.

    Examples:
        >>> import torch
        >>> import mla_numba as mla
        >>> from mla_numba.inputs import random_inputs
        >>> from mla_numba.interop.torch import TorchCache, TorchIndexer, TorchIndexerCache, TorchProlog, to_torch
        >>> from mla_numba.interop.torch import lightning_index, sparse_attention
        >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
        >>> prolog = TorchProlog(mla.MlaWeights.random(dims))
        >>> indexer = TorchIndexer(mla.IndexerWeights.random(dims, n_heads=8, head_dim=64))
        >>> cache = TorchCache.allocate(dims, n_blocks=2, block_size=16)
        >>> keys = TorchIndexerCache.allocate(indexer.prolog.dims, n_blocks=2, block_size=16)
        >>> x, cos, sin, _ = map(to_torch, random_inputs(dims, t=3, seed=0, capacity=32))
        >>> slots, table, act_seq = torch.arange(16, 19), torch.tensor([[1]]), torch.tensor([3])
        >>> out = prolog(x, cos, sin, slots, cache)
        >>> wanted = indexer(x, out.q_norm, out.q_norm_scale, cos, sin, slots, keys)
        >>> index = lightning_index(wanted, keys, table, act_seq, k=2)
        >>> sparse_attention(out, cache, index, table, act_seq, softmax_scale=0.125).shape
        torch.Size([3, 4, 64])
    """

    prolog: IndexerProlog

    def __init__(self, source: IndexerProlog | IndexerWeights | PackedIndexer) -> None:
        super().__init__()
        if not isinstance(source, (IndexerProlog, IndexerWeights, PackedIndexer)):
            kind = type(source).__name__
            raise TypeError(f"source: expected IndexerProlog, IndexerWeights or PackedIndexer, got {kind}")
        self.prolog = source if isinstance(source, IndexerProlog) else IndexerProlog(source)
        self._take_handle()

    def _take_handle(self) -> None:
        super()._take_handle()
        self._n_heads = self.prolog.dims.n_heads

    def forward(
        self, x: Tensor, q_norm: Tensor, q_norm_scale: Tensor, cos: Tensor, sin: Tensor, cache_index: Tensor,
        cache: TorchIndexerCache,
    ) -> TorchIndexerOutput:  # fmt: skip
        """Computes T tokens and writes their keys, as `IndexerProlog` does. All are contiguous tensors on the CPU.

        Args:
            x: Hidden states (T, H) bf16.
            q_norm: Codes (T, Rq) int8, as `TorchProlog` gives them.
            q_norm_scale: Their scales (T, 1) float32.
            cos: Cosines (T, R) bf16.
            sin: Sines (T, R) bf16.
            cache_index: Flat slots (T,) int64 or int32, -1 for none.
            cache: The cache, whose keys are written in place.

        Returns:
            What the lightning index takes.

        Raises:
            TypeError: An argument, named in the message, is of another type or dtype; the cache is unchanged.
            ValueError: It has another shape, layout, device or value, or requires grad where gradients are recorded;
                the cache is unchanged.
        """
        named = {
            "x": x, "q_norm": q_norm, "q_norm_scale": q_norm_scale, "cos": cos, "sin": sin, "cache_index": cache_index
        }  # fmt: skip
        check_tensors(named)
        expect_type("cache", cache, TorchIndexerCache)
        cache.check_types()
        made = indexer_prolog(self._handle, *named.values(), *cache, self._n_heads)
        return TorchIndexerOutput(*made)

    def extra_repr(self) -> str:
        """What `print` says within the brackets."""
        return indexer_dims_text(self.prolog.dims)
