"""Block tables over the caches of all layers of a model: which blocks hold a sequence, and which are free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tiling import ceil_div

from ...base.checks import Array
from ...base.dims import MlaDims
from ...base.indexer_dims import IndexerDims
from ...base.short_repr import short_repr, size_text
from ...cache import PagedCache
from ...indexer_cache import IndexerCache

__all__ = ["BlockPool"]


class BlockPool:
    """A `PagedCache` a layer, and one table of blocks for all of them: the layers of a model hold the same tokens.

    - `block_size`: slots a block.
    - `n_blocks`: blocks of each layer, allocated at once; None begins without any and doubles as often as needed.
    - `quantized`: whether the caches hold int8 codes.
    - `indexers`: of each layer, the dimensions of the indexer whose keys an `IndexerCache` holds in the same slots, or
      None; empty for none at all.

    `tables` (B, K) int64 are the blocks of B sequences, in order; None before the first `reserve`. Sequences may share
    blocks, as beams of one prompt do; a shared block is copied before one of them writes into it.
    """

    def __init__(
        self,
        dims: MlaDims,
        n_layers: int,
        block_size: int,
        n_blocks: int | None,
        quantized: bool,
        indexers: Sequence[IndexerDims | None] = (),
    ) -> None:
        self.dims = dims
        self.block_size = block_size
        self.quantized = quantized
        self.grows = n_blocks is None
        self.n_blocks = n_blocks or 0
        self.tables: Array | None = None
        self.caches: list[PagedCache | None] = [None] * n_layers
        self.indexers = tuple(indexers)
        self.index_caches: list[IndexerCache | None] = [None] * len(self.indexers)
        self._may_share = False
        if not self.grows:
            self.caches = [self._allocate(self.n_blocks) for _ in self.caches]
            self.index_caches = self._allocate_indexers(self.n_blocks)

    def __repr__(self) -> str:
        arrays = self._arrays()
        blocks = f"{self.n_blocks} blocks of {self.block_size} slots{', growing' if self.grows else ''}"
        kind, memory = "int8" if self.quantized else "bf16", size_text(sum(array.nbytes for array in arrays))
        return short_repr(self, f"{self.batch} sequences", blocks, kind, memory)

    @property
    def batch(self) -> int:
        """Sequences; 0 before the first `reserve`."""
        return 0 if self.tables is None else len(self.tables)

    def _allocate(self, n_blocks: int) -> PagedCache:
        return PagedCache.allocate(self.dims, n_blocks, self.block_size, quantized=self.quantized)

    def _allocate_indexers(self, n_blocks: int) -> list[IndexerCache | None]:
        size = self.block_size
        return [None if dims is None else IndexerCache.allocate(dims, n_blocks, size) for dims in self.indexers]

    def _arrays(self) -> list[Array]:
        """All that a block is part of: those of caches, then of indexers."""
        return [array for cache in (*self.caches, *self.index_caches) if cache for array in cache.arrays().values()]

    def index_cache(self, layer: int) -> IndexerCache:
        """The keys of a layer's indexer, once `reserve` was called."""
        cache = self.index_caches[layer]
        assert cache is not None
        return cache

    def cache(self, layer: int) -> PagedCache:
        """The cache of a layer, once `reserve` was called."""
        cache = self.caches[layer]
        assert cache is not None
        return cache

    def reserve(self, batch: int, start: int, n: int) -> None:
        """Makes positions [start, start + n) of `batch` sequences writable; earlier ones are kept.

        From the block of `start` on no two sequences share a block afterwards. New blocks may hold rows of tokens that
        are gone. Raises `ValueError` if the batch differs or there are too few blocks; nothing has changed then.
        """
        tables = np.empty((batch, 0), np.int64) if self.tables is None else self.tables
        if len(tables) != batch:
            raise ValueError(f"hidden_states: expected the {len(tables)} sequences that the cache holds, got {batch}")
        size = self.block_size
        column = start // size
        n_more = max(ceil_div(start + n, size) - tables.shape[1], 0)
        shared = _shared_with_earlier(tables[:, column:], self._may_share and n > 0)
        n_shared = int(shared.sum())
        wanted = batch * n_more + n_shared
        if not wanted:
            self.tables = tables
            return
        free = np.flatnonzero(self._counts() == 0)
        if wanted > len(free):
            if not self.grows:
                raise ValueError(
                    f"n_blocks: expected blocks of {size} slots for {batch} sequences of {start + n} tokens, "
                    f"{wanted} beside the {self.n_blocks - len(free)} in use, got {self.n_blocks} in all"
                )
            self._grow(wanted - len(free))
            free = np.flatnonzero(self._counts() == 0)
        copies, rest = np.split(free[:wanted], [n_shared])
        tables = tables.copy()
        if n_shared:
            last = tables[:, column:]
            sources = last[shared]
            for array in self._arrays():
                array[copies] = array[sources]
            last[shared] = copies
        self.tables = np.concatenate([tables, rest.reshape(batch, n_more)], axis=1)

    def clear(self, layer: int, slots: Array) -> None:
        """Makes the rows of these slots (n,) of a layer zeros: what nobody writes may not stay NaN."""
        arrays = list(self.cache(layer).arrays().values())
        if self.indexers and self.indexers[layer]:
            arrays += self.index_cache(layer).arrays().values()
        for array in arrays:
            array.reshape(-1, array.shape[-1])[slots] = 0

    def _counts(self) -> Array:
        named = np.zeros(0, np.int64) if self.tables is None else self.tables.reshape(-1)
        return np.bincount(named, minlength=self.n_blocks)

    def _grow(self, n_more: int) -> None:
        n_blocks = max(self.n_blocks + n_more, 2 * self.n_blocks)
        grown: list[PagedCache | None] = []
        for old in self.caches:
            new = self._allocate(n_blocks)
            for name, array in old.arrays().items() if old else ():
                new.arrays()[name][: self.n_blocks] = array[: self.n_blocks]
            grown.append(new)
        indexers = self._allocate_indexers(n_blocks)
        for keys, wider in zip(self.index_caches, indexers, strict=True):
            if keys is not None and wider is not None:
                for name, array in keys.arrays().items():
                    wider.arrays()[name][: self.n_blocks] = array[: self.n_blocks]
        self.index_caches = indexers  # first: an indexer's cache may have more slots, and no fewer
        self.caches = grown  # all or, where memory has run out meanwhile, none
        self.n_blocks = n_blocks  # last, so that an interrupt before it leaves caches that are merely too large

    def slots(self, start: int, n: int) -> Array:
        """The slots (B, n) int64 of positions [start, start + n), which `reserve` made writable."""
        assert self.tables is not None
        block, row = np.divmod(np.arange(start, start + n), self.block_size)
        slots: Array = self.tables[:, block] * self.block_size + row
        return slots

    def select(self, sequences: Array) -> None:
        """Sequence i becomes what sequence `sequences[i]` was; their number may change."""
        if self.tables is not None:
            # First, so that no interrupt between the two leaves blocks that are shared unseen.
            self._may_share = self._may_share or len(np.unique(sequences)) < len(sequences)
            self.tables = self.tables[sequences]

    def truncate(self, length: int) -> None:
        """Gives back the blocks behind the first `length` positions."""
        if self.tables is not None:
            self.tables = self.tables[:, : ceil_div(length, self.block_size)]

    def reset(self) -> None:
        """Gives back all blocks."""
        self.tables, self._may_share = None, False


def _shared_with_earlier(tables: Array, may_share: bool) -> Array:
    """Where a sequence names a block that an earlier one names in the same column; the first may keep it."""
    shared = np.full(tables.shape, may_share)
    for i in range(tables.shape[1] if may_share else 0):
        shared[np.unique(tables[:, i], return_index=True)[1], i] = False
    return shared
