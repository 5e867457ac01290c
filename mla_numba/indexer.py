"""The lightning indexer's prolog: plan once, run often."""

from __future__ import annotations

from collections import deque
from functools import cached_property
from typing import Any

import numpy as np

from tiling import IndexerPlan, Machine
from tiling.check import MAX_TOKENS

from .base import checks as check
from .base.checks import Array
from .base.short_repr import fields_text, indexer_dims_text, short_repr, size_text
from .call.indexer import IndexerOutput
from .call.indexer_bind import (
    IndexerInputs,
    allocate_indexer_output,
    check_indexer_cache,
    check_indexer_inputs,
    hold_index_caches,
    hold_index_tokens,
    writable_indexer_outputs,
)
from .call.indexer_memory import IndexerMemory
from .call.indexer_planning import IndexerPlans
from .call.ranges import profiler_range
from .indexer_cache import IndexerCache
from .kernels import max_threads
from .kernels.indexer.arguments import Indexer
from .kernels.indexer.tile import indexer_tile
from .kernels.launch import plain
from .kernels.sweeps.arguments import TokenTile
from .kernels.sweeps.phase import INDEX_HEADS, INDEX_PACK
from .weights.indexer import IndexerWeights
from .weights.packed_indexer import PackedIndexer

__all__ = ["IndexerOutput", "IndexerProlog"]


class IndexerProlog:
    """The prolog of a lightning indexer on this CPU: from hidden states and q_norm to queries, weights and cached keys.

    It reads what `MlaProlog` of the same layer returned. `MlaProlog(weights, indexer=...)` computes both in one call,
    which takes less time, with the same bits. A call computes a token's bits from that token alone: batch, tiles,
    threads and instruction set never change them. Several threads may call one instance at once. Attributes cannot be
    assigned.

    Args:
        weights: `IndexerWeights`, packed here, or `PackedIndexer`.
        n_threads: At most Numba's thread count; the default is that of `MlaProlog`.
        check_finite: Raise `ValueError` if a hidden state or a scale of q_norm is NaN or Inf.

    Raises:
        TypeError: An argument is of another type.
        ValueError: More threads than Numba has, or packed weights that do not fit their dimensions.

    Examples:
        >>> import mla_numba as mla
        >>> from mla_numba.inputs import random_inputs
        >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
        >>> cache = mla.PagedCache.allocate(dims, n_blocks=2, block_size=16)
        >>> x, cos, sin, cache_index = random_inputs(dims, t=3, seed=0, capacity=cache.capacity)
        >>> out = mla.MlaProlog(mla.MlaWeights.random(dims))(x, cos, sin, cache_index, cache)
        >>> indexer = mla.IndexerProlog(mla.IndexerWeights.random(dims, n_heads=8, head_dim=64))
        >>> icache = mla.IndexerCache.allocate(indexer.dims, n_blocks=2, block_size=16)
        >>> indexer(x, out.q_norm, out.q_norm_scale, cos, sin, cache_index, icache)
        <IndexerOutput: query (3, 8, 64) int8, query_scale (3, 8, 1) float16, weights (3, 8) float16, 1.6 kB>
    """

    def __init__(
        self, weights: IndexerWeights | PackedIndexer, *, n_threads: int | None = None, check_finite: bool = False
    ) -> None:
        if not isinstance(weights, (IndexerWeights, PackedIndexer)):
            raise TypeError(f"weights: expected IndexerWeights or PackedIndexer, got {type(weights).__name__}")
        self.n_threads = check.check_threads("n_threads", n_threads, max_threads())
        self.check_finite = check.check_flag("check_finite", check_finite)
        self.weights = weights.pack(self.n_threads) if isinstance(weights, IndexerWeights) else weights
        self.weights.check()
        self.dims = self.weights.dims
        self._plans = IndexerPlans(self.dims)
        self._memory: deque[IndexerMemory] = deque()

    def __setattr__(self, name: str, value: Any) -> None:
        # Kernels and plans are given what was checked when it was made.
        if name in self.__dict__:
            raise AttributeError(f"{name}: expected to stay as the indexer's prolog was made, got an assignment")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        settings = {"n_threads": self.n_threads} | ({"check_finite": True} if self.check_finite else {})
        rope = f"rope={self.weights.rope!r}" if self.weights.rope != "half" else ""
        memory = size_text(self.weights.nbytes)
        return short_repr(self, indexer_dims_text(self.dims), rope, fields_text(settings), memory)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: the weights and settings, with as many of the threads as there are where it is read."""
        return _unpickled, (type(self), self.weights, self.n_threads, self.check_finite)

    @cached_property
    def _layer(self) -> Any:
        self.weights.check()  # once more: an array's shape may have been assigned meanwhile
        return plain(self.weights.as_argument())

    @property
    def machine(self) -> Machine:
        """The machine that the plans are made for: this one."""
        return self._plans.machine

    @property
    def isa(self) -> str:
        """The instruction set of its kernels, as `MLA_NUMBA_ISA` names it; one for the whole process."""
        return self.machine.isa

    def plan(self, t: int) -> IndexerPlan:
        """How `t` tokens are computed; `print(indexer.plan(8))`, `print(indexer.plan(8).explain())`.

        Args:
            t: Tokens of a call, from 0 on.

        Returns:
            The plan of such a call; made once and kept.

        Raises:
            TypeError: `t` is no int.
            ValueError: `t` is below 0 or above 2^22.

        Examples:
            >>> import mla_numba as mla
            >>> weights = mla.IndexerWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32), n_heads=8, head_dim=64)
            >>> plan = mla.IndexerProlog(weights, n_threads=1).plan(700)
            >>> plan.t, plan.n_workers, sum(n_tokens for _, n_tokens in plan.tiles)
            (700, 1, 700)
        """
        return self._plans.plan(check.check_int("t", t, 0), self.n_threads)

    def allocate_output(self, t: int) -> IndexerOutput:
        """Uninitialised outputs, to be passed as `out`.

        Args:
            t: Tokens of the call.

        Returns:
            Arrays with the shapes and dtypes of `IndexerOutput`.

        Raises:
            TypeError: `t` is no int.
            ValueError: `t` is below 0 or above 2^22.

        Examples:
            >>> import mla_numba as mla
            >>> weights = mla.IndexerWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32), n_heads=8, head_dim=64)
            >>> mla.IndexerProlog(weights).allocate_output(8).query_scale.shape
            (8, 8, 1)
        """
        return allocate_indexer_output(self.dims, check.check_int("t", t, 0, MAX_TOKENS))

    def __call__(
        self,
        x: Array,
        q_norm: Array,
        q_norm_scale: Array,
        cos: Array,
        sin: Array,
        cache_index: Array,
        cache: IndexerCache,
        out: IndexerOutput | None = None,
    ) -> IndexerOutput:
        """Computes T tokens and writes their keys.

        Args:
            x: Hidden states (T, H) bf16.
            q_norm: Codes (T, Rq) int8 of the normalised query, from a prolog of mode "b" or "ab".
            q_norm_scale: Their scales (T, 1) float32.
            cos: Cosines of the tokens' positions (T, R) bf16, those of the prolog; see `RopeTable`.
            sin: Sines of them (T, R) bf16.
            cache_index: Flat slots (T,) int64 or int32. -1 writes no key. Where several tokens name one slot, the last
                one wins.
            cache: The cache, whose keys are written in place.
            out: Outputs to write to (`allocate_output`); the call then allocates no arrays.

        Returns:
            Queries and weights: `out`, or new arrays. A scale above 65504 is Inf, and one of at most 2^-25 is 0, which
            makes its head, or its key, 0.

        Raises:
            TypeError: An argument, named in the message, is of another type or dtype; outputs and cache are unchanged.
            ValueError: An argument, named in the message, has another shape, layout or value, or memory that overlaps
                with another's; outputs and cache are unchanged.
        """
        given = IndexerInputs(x, q_norm, q_norm_scale, cos, sin, cache_index)
        check_indexer_inputs(given, self.dims)
        t = x.shape[0]
        check_indexer_cache("cache", cache, self.dims)
        slots = check.check_slots(cache_index, t, cache.sizes.capacity)
        if self.check_finite:
            check.check_finite("x", x)
            _check_finite_scales(q_norm_scale)
        written = {}
        if out is None:
            out = allocate_indexer_output(self.dims, t)
        else:
            written = writable_indexer_outputs("out", out, t, self.dims)
        check.check_disjoint(written | cache.arrays(), given._asdict())
        self._run(plain(hold_index_tokens(given, slots, out)), plain(hold_index_caches(cache)), t)
        return out

    def _run(self, tokens: Any, caches: Any, t: int) -> None:
        plan = self._plans.plan(t, self.n_threads)
        memory = IndexerMemory.taken_from(self._memory, plan)
        try:
            with profiler_range(f"indexer's prolog of {t} tokens"):
                for offset, factor in plan.tiles:
                    n_workers, _, taken = memory.prepare(plan.tile_plan(factor))
                    indexer = Indexer(tokens, caches, self._layer, *taken, packs_x=True, packs_q=True)
                    tile = TokenTile(offset, factor, INDEX_PACK, INDEX_HEADS, False)
                    indexer_tile(n_workers, n_workers, indexer, tile)
        finally:
            self._memory.append(memory)


def _unpickled(cls: type[IndexerProlog], weights: PackedIndexer, n_threads: int, check_finite: bool) -> IndexerProlog:
    return cls(weights, n_threads=min(n_threads, max_threads()), check_finite=check_finite)


def _check_finite_scales(scales: Array) -> None:
    finite = np.isfinite(scales)
    if not finite.all():
        token = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"q_norm_scale: expected finite values, got NaN or Inf in token {token}")
