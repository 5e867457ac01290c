"""transformers' cache protocol on paged caches of latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicIndexedLayer

from ...base.dims import MlaDims
from ...base.indexer_dims import IndexerDims
from ...base.short_repr import short_repr
from .blocks import BlockPool

__all__ = ["CacheSettings", "LatentCache", "LatentLayer", "check_cache_kind", "latent_layer", "restored_on_failure"]


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What the caches of a patched model have in common; see `patch`.

    `indexed`: whether there are keys of indexers; with `indexers`, of each layer's or None, they are in the blocks.
    """

    dims: MlaDims
    n_layers: int
    quantized: bool
    indexed: bool
    block_size: int
    n_blocks: int | None
    indexers: tuple[IndexerDims | None, ...] = ()

    def make_layers(self) -> list[LatentLayer]:
        """The layers of a new cache, over one pool of blocks."""
        pool = BlockPool(self.dims, self.n_layers, self.block_size, self.n_blocks, self.quantized, self.indexers)
        return [LatentLayer(self, pool, index) for index in range(self.n_layers)]


class LatentLayer(CacheLayerMixin):
    """The keys of one layer: `length` rows a sequence in `pool.cache(index)`.

    The layers of a cache share their pool, so what moves blocks is done by the first of them. Keys of an indexer
    (DeepSeek-V3.2) are in the pool's blocks where the index is int8, else beside it as transformers keeps them.
    """

    is_croppable = True
    is_sliding = False
    supports_early_init = False  # its caches have their sizes from the start

    def __init__(self, settings: CacheSettings, pool: BlockPool, index: int) -> None:
        super().__init__()
        self.settings = settings
        self.pool = pool
        self.index = index
        self.length = 0
        self.indexer = DynamicIndexedLayer() if settings.indexed and not settings.indexers else None

    def __repr__(self) -> str:
        return short_repr(self, f"layer {self.index}", f"{self.length} tokens", repr(self.pool))

    @property
    def batch_size(self) -> int:
        """Sequences; -1 as long as there are none."""
        return self.pool.batch or -1

    def state(self) -> tuple[int, Any, dict[str, Any] | None]:
        """What `restore` takes: tokens, block tables and the indexer's keys, none of which is changed in place."""
        return self.length, self.pool.tables, None if self.indexer is None else vars(self.indexer).copy()

    def restore(self, state: tuple[int, Any, dict[str, Any] | None]) -> None:
        """Makes the layer what it was at `state()`; blocks that were taken since then are free again."""
        self.length, self.pool.tables, indexer = state
        if self.indexer is not None and indexer is not None:
            vars(self.indexer).clear()
            vars(self.indexer).update(indexer)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Refused, as `update` is."""
        self.update(key_states, value_states)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Refused: rows are written by the prolog of a patched model."""
        raise TypeError("cache: expected a DynamicCache in a model that is not patched, got a LatentCache")

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Adds keys (B, S, index_head_dim) of the indexer and gives all of them."""
        if self.indexer is None:
            raise TypeError("cache: expected one of a model with an indexer, got one without")
        keys: torch.Tensor = self.indexer.update_indexer(indexer_key_states)
        return keys

    def get_seq_length(self) -> int:
        """Tokens a sequence."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask has to cover."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Tokens a sequence can have where the number of blocks is given, else -1."""
        pool = self.pool
        return -1 if pool.grows else pool.n_blocks // max(pool.batch, 1) * pool.block_size

    def offload(self) -> None:
        """Refused: the cache is in the memory of the CPU."""
        raise ValueError("cache: expected no offloading with paged caches on the CPU, got a request to offload")

    prefetch = offload

    def reset(self) -> None:
        """Forgets all tokens and gives their blocks back."""
        self.length = 0
        if self.index == 0:
            self.pool.reset()
        if self.indexer is not None:
            self.indexer.reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens; the number is 0 or negative, as in transformers."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove: expected 0 or a negative number, got {tokens_to_remove}")
        self.length = max(self.length + tokens_to_remove, 0)
        if self.index == 0:
            self.pool.truncate(self.length)
        if self.indexer is not None:
            self.indexer.crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Sequence i becomes what sequence `beam_idx[i]` was: tables are exchanged, no row is moved."""
        if self.index == 0:
            self.pool.select(beam_idx.cpu().numpy())
        if self.indexer is not None:
            self.indexer.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times, side by side."""
        if self.index == 0:
            self.pool.select(np.arange(self.pool.batch).repeat(repeats))
        if self.indexer is not None:
            self.indexer.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these sequences, in this order."""
        if self.index == 0:
            self.pool.select(np.arange(self.pool.batch)[indices.cpu().numpy()])
        if self.indexer is not None:
            self.indexer.batch_select_indices(indices)


class LatentCache(Cache):
    """The cache of a patched model: a `PagedCache` a layer with block tables that all layers share.

    `Patched.new_cache()` makes one; a fresh `DynamicCache`, such as `generate` makes, is given the same layers when a
    patched model meets it. It takes what `generate` does with a cache: beams, `crop`, chunks of a prompt, another call
    that goes on where the last one ended.
    """

    def __init__(self, settings: CacheSettings) -> None:
        super().__init__(layers=settings.make_layers())

    def __repr__(self) -> str:
        return short_repr(self, f"{len(self.layers)} layers", f"{self.get_seq_length()} tokens", repr(self.pool))

    @property
    def pool(self) -> BlockPool:
        """Block tables and paged caches."""
        pool: BlockPool = self.layers[0].pool
        return pool


@contextmanager
def restored_on_failure(cache: Any, index: int | None = None) -> Iterator[None]:
    """Whatever is raised within, an interrupt included, leaves the cache with the tokens that it held before.

    `index`: the only layer that can change within; None for all of them. What is no `Cache` is left alone.
    """
    if not isinstance(cache, Cache) or not hasattr(cache, "layers"):
        yield
        return
    layers, made = list(cache.layers), cache.layer_class_to_replicate
    changing = layers if index is None else layers[index : index + 1]
    states = [(layer, layer.state()) for layer in changing if isinstance(layer, LatentLayer)]
    try:
        yield
    except BaseException:
        cache.layers[:] = layers  # a DynamicCache that was given paged layers is a fresh one again
        cache.layer_class_to_replicate = made
        for layer, state in states:
            layer.restore(state)
        raise


def check_cache_kind(cache: Any) -> None:
    """Raises `TypeError` for what is no `DynamicCache` and has no paged layers: static, quantised, of another model."""
    layers = getattr(cache, "layers", ()) if isinstance(cache, Cache) else ()
    if type(cache) is not DynamicCache and not any(isinstance(layer, LatentLayer) for layer in layers):
        raise TypeError(f"cache: expected an empty DynamicCache or a LatentCache, got {type(cache).__name__}")


def latent_layer(cache: Cache | None, settings: CacheSettings, index: int) -> LatentLayer:
    """The layer of a model's cache; without a cache, one that lasts for a call.

    Raises `TypeError` or `ValueError` for a cache of another kind, one that an unpatched model has filled, and one of
    other settings.
    """
    if cache is None:
        own = settings.indexers[index : index + 1]
        return replace(settings, n_layers=1, n_blocks=None, indexers=own).make_layers()[0]
    check_cache_kind(cache)
    if type(cache) is DynamicCache and not any(isinstance(layer, LatentLayer) for layer in cache.layers):
        if cache.offloading:
            raise ValueError(
                "cache: expected a DynamicCache without offloading or a LatentCache, got an offloading one"
            )
        if cache.get_seq_length():
            raise ValueError(
                "cache: expected an empty DynamicCache or a LatentCache, got a DynamicCache with "
                f"{cache.get_seq_length()} tokens of an unpatched model"
            )
        # In place: whoever passed the cache finds the tokens in it afterwards.
        cache.layers[:] = settings.make_layers()
        cache.layer_class_to_replicate = None
    if index >= len(cache.layers) or not isinstance(cache.layers[index], LatentLayer):
        raise TypeError(f"cache: expected an empty DynamicCache or a LatentCache, got {type(cache).__name__}")
    layer: LatentLayer = cache.layers[index]
    if layer.settings != settings:
        raise ValueError(f"cache: expected one of this model, of {settings}, got one of {layer.settings}")
    return layer
