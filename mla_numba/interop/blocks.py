"""Block tables over the caches of all layers of a model: which blocks hold a sequence, and which are free."""

from __future__ import annotations

import numpy as np

from .._checks import Array
from ..cache import PagedCache
from ..dims import MlaDims

__all__ = ["BlockPool"]


class BlockPool:
    """A `PagedCache` a layer, and one table of blocks for all of them: the layers of a model hold the same tokens.

    - `block_size`: slots a block.
    - `n_blocks`: blocks of each layer, allocated at once; None begins without any and doubles as often as needed.
    - `quantized`: whether the caches hold int8 codes.

    `tables` (B, K) int64 are the blocks of B sequences, in order; None before the first `reserve`. Sequences may share
    blocks, as beams of one prompt do; a shared block is copied before one of them writes into it.
    """

    def __init__(self, dims: MlaDims, n_layers: int, block_size: int, n_blocks: int | None, quantized: bool) -> None:
        self.dims = dims
        self.block_size = block_size
        self.quantized = quantized
        self.grows = n_blocks is None
        self.n_blocks = n_blocks or 0
        self.tables: Array | None = None
        self.caches: list[PagedCache | None] = [None] * n_layers
        self._used = np.zeros(self.n_blocks, bool)  # blocks that were taken since they were zeros
        self._may_share = False
        if not self.grows:
            self.caches = [self._allocate(self.n_blocks) for _ in self.caches]

    @property
    def batch(self) -> int:
        """Sequences; 0 before the first `reserve`."""
        return 0 if self.tables is None else len(self.tables)

    def _allocate(self, n_blocks: int) -> PagedCache:
        return PagedCache.allocate(self.dims, n_blocks, self.block_size, quantized=self.quantized)

    def cache(self, layer: int) -> PagedCache:
        """The cache of a layer, once `reserve` was called."""
        cache = self.caches[layer]
        assert cache is not None
        return cache

    def reserve(self, batch: int, start: int, n: int) -> None:
        """Makes positions [start, start + n) of `batch` sequences writable; earlier ones are kept.

        Blocks that were used before are set to zero, so that rows not yet written are never NaN. Raises `ValueError` if
        the batch differs or there are too few blocks; nothing has changed then.
        """
        tables = np.empty((batch, 0), np.int64) if self.tables is None else self.tables
        if len(tables) != batch:
            raise ValueError(f"hidden_states: expected the {len(tables)} sequences that the cache holds, got {batch}")
        size = self.block_size
        n_more = max(-(-(start + n) // size) - tables.shape[1], 0)
        shared = self._shared_with_earlier(tables, start // size) if self._may_share and n else np.zeros(batch, bool)
        wanted = batch * n_more + int(shared.sum())
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
        taken = free[:wanted]
        for block in taken[self._used[taken]]:
            for cache in self.caches:
                for array in cache.arrays().values() if cache else ():
                    array[block] = 0
        self._used[taken] = True
        tables = tables.copy()
        copies, rest = np.split(taken, [int(shared.sum())])
        if len(copies):
            sources = tables[shared, start // size]
            for cache in self.caches:
                for array in cache.arrays().values() if cache else ():
                    array[copies] = array[sources]
            tables[shared, start // size] = copies
        self.tables = np.concatenate([tables, rest.reshape(batch, n_more)], axis=1)

    def _shared_with_earlier(self, tables: Array, column: int) -> Array:
        """Which sequences name, in this column, a block that an earlier one names too; the first may keep it."""
        shared = np.ones(len(tables), bool)
        if column >= tables.shape[1]:
            return ~shared
        shared[np.unique(tables[:, column], return_index=True)[1]] = False
        return shared

    def _counts(self) -> Array:
        named = np.zeros(0, np.int64) if self.tables is None else self.tables.reshape(-1)
        return np.bincount(named, minlength=self.n_blocks)

    def _grow(self, n_more: int) -> None:
        n_blocks = max(self.n_blocks + n_more, 2 * self.n_blocks)
        grown: list[PagedCache | None] = []
        for old in self.caches:
            new = self._allocate(n_blocks)
            for name, array in old.arrays().items() if old else ():
                new.arrays()[name][: self.n_blocks] = array
            grown.append(new)
        self.caches = grown  # all or, where memory has run out meanwhile, none
        self._used = np.concatenate([self._used, np.zeros(n_blocks - self.n_blocks, bool)])
        self.n_blocks = n_blocks

    def slots(self, start: int, n: int) -> Array:
        """The slots (B, n) int64 of positions [start, start + n), which `reserve` made writable."""
        assert self.tables is not None
        block, row = np.divmod(np.arange(start, start + n), self.block_size)
        slots: Array = self.tables[:, block] * self.block_size + row
        return slots

    def select(self, sequences: Array) -> None:
        """Sequence i becomes what sequence `sequences[i]` was; their number may change."""
        if self.tables is not None:
            self.tables = self.tables[sequences]
            self._may_share = self._may_share or len(np.unique(sequences)) < len(sequences)

    def truncate(self, length: int) -> None:
        """Gives back the blocks behind the first `length` positions."""
        if self.tables is not None:
            self.tables = self.tables[:, : -(-length // self.block_size)]

    def reset(self) -> None:
        """Gives back all blocks."""
        self.tables, self._may_share = None, False
