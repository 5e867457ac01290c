"""Working memory of the indexer's prolog: the buffers between its phases, and each worker's scratch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tiling import IndexerTile

from ..base.checks import Array
from ..kernels.indexer.arguments import IndexBuffers
from ..kernels.launch import plain
from ..kernels.micro.ukernel import A_BF16_DTYPE, A_INT8_DTYPE
from ..kernels.sweeps.arguments import Activations, Cuts, HeadsCut, PairCut
from ..kernels.sweeps.phase import ALL_PHASES
from ..kernels.threads import tasks
from .tile_memory import TileMemory, Views

__all__ = ["IndexerMemory", "PreparedIndexer", "Shared", "indexer_cuts", "lay_out_indexer"]


class PreparedIndexer(NamedTuple):
    """What the kernel needs to know of a tile's plan, and the memory to work in, as the kernel takes them."""

    n_workers: int
    counters: Array
    taken: tuple[Any, Any]  # buffers, cuts


class Shared(NamedTuple):
    """What the indexer's phases have in common with the prolog's: operands, None where it has its own; counters."""

    x: Activations | None
    q: Activations | None
    counters: Array
    spans: Array


def indexer_cuts(plan: IndexerTile) -> Cuts:
    """A tile's plan as the kernel takes it."""
    k, qb, weights, hadamard = plan.gemms
    return Cuts(
        n_workers=plan.n_workers,
        rows_x=plan.rows_x,
        rows_q=plan.rows_x,
        rows_k=plan.rows_k,
        down=PairCut(k.mc, k.kc, k.walk, weights.walk, plan.down.grain),
        heads=HeadsCut(qb.mc, qb.kc, qb.walk, hadamard.mc, hadamard.kc, hadamard.walk, plan.heads.grain),
    )


def lay_out_indexer(plan: IndexerTile, views: Views, shared: Shared) -> IndexBuffers:
    """The buffers of a tile as arrays."""
    k, qb, weights, _ = plan.gemms
    rows, by_worker = views.rows, views.by_worker

    def operand(name: str, dtype: Any, lda: int) -> Activations:
        return Activations(rows(name, dtype, lda), np.zeros(0, np.float32), np.zeros(plan.t, np.int32))

    return IndexBuffers(
        x=shared.x or operand("index_x", A_BF16_DTYPE, k.lda),
        q=shared.q or operand("index_q", A_INT8_DTYPE, qb.lda),
        k_a=rows("k_a", np.float32, k.n),
        w_a=rows("w_a", np.float32, weights.n),
        c_down=by_worker("index_c"),
        c_up=by_worker("index_c", np.int32),
        c_hadamard=by_worker("index_c"),
        rows=by_worker("index_rows", A_BF16_DTYPE).reshape(plan.n_workers, -1, plan.heads.ldq),
        bits=by_worker("index_bits", np.uint16),
        y=by_worker("index_y"),
        counters=shared.counters,
        spans=shared.spans,
    )


class IndexerMemory(TileMemory[IndexerTile, PreparedIndexer]):
    """The working memory of one call of the indexer's prolog at a time, kept for the next."""

    def make(self, plan: IndexerTile, block: Array) -> PreparedIndexer:
        """A tile's cuts, and its buffers in a block of memory."""
        n_phases = len(ALL_PHASES)
        counters = np.zeros(tasks.n_counters(plan.n_workers, n_phases), np.int64)
        shared = Shared(None, None, counters, np.zeros((plan.n_workers, n_phases, 3), np.int64))
        buffers = lay_out_indexer(plan, Views.of(plan, block), shared)
        return PreparedIndexer(plan.n_workers, counters, (plain(buffers), plain(indexer_cuts(plan))))
