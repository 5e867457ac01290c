"""How a bound call is computed: tile by tile of its plan, each tile one parallel region."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from tiling import PrologPlan, TilePlan

from ..kernels.indexer.arguments import Indexer
from ..kernels.indexer.tile import prolog_and_indexer_tile
from ..kernels.sweeps.arguments import Tokens, TokenTile
from ..kernels.sweeps.tile import prolog_tile
from .bind import BoundCall
from .ranges import parts_of_a_tile, profiler_range
from .tile_trace import new_laps
from .trace import Trace
from .workspace import Memory

__all__ = ["Layers", "run_tiles"]


class Layers(NamedTuple):
    """The weights of a layer as kernels take them; those of its indexer, or None."""

    prolog: Any
    indexer: Any


def run_tiles(
    call: BoundCall,
    tokens: Tokens,
    layers: Layers,
    plan: PrologPlan,
    memory: Memory,
    trace: Trace | None,
    products: bool,
) -> None:
    """Computes all tiles of a plan.

    `tokens` are those of the call with the slots to write to. A trace notes when each thread began and ended each
    phase, with `products` each product of each task, too.
    """
    with profiler_range(f"prolog of {plan.t} tokens"):
        for offset, factor in plan.tiles:
            tile_plan = plan.tile_plan(factor)
            laps = new_laps(tile_plan) if products else None
            _, buffers, taken = memory.prepare(tile_plan).with_laps(laps)
            begin = time.perf_counter_ns()
            for name, first, last in parts_of_a_tile():
                tile = TokenTile(offset, factor, first, last, trace is not None)
                with profiler_range(name):
                    _launch(call, tokens, layers, tile_plan, taken, tile)
            if trace is not None:
                trace.add(begin, time.perf_counter_ns(), offset, factor, buffers.spans, tile_plan, laps)


def _launch(
    call: BoundCall, tokens: Tokens, layers: Layers, plan: TilePlan, taken: tuple[Any, ...], tile: TokenTile
) -> None:
    """A tile of tokens, or some phases of it, in one parallel region."""
    n, beside = plan.n_workers, call.indexer
    if beside is None or plan.indexer is None:
        prolog_tile(n, n, tokens, call.caches, layers.prolog, *taken, tile)
        return
    buffers, cuts, index_buffers, index_cuts = taken
    indexer = Indexer(
        tokens=beside.tokens._replace(cache_index=tokens.cache_index),
        caches=beside.caches,
        layer=layers.indexer,
        buffers=index_buffers,
        cuts=index_cuts,
        packs_x=plan.indexer.packs_x,
        packs_q=plan.indexer.packs_q,
    )
    prolog_and_indexer_tile(n, n, tokens, call.caches, layers.prolog, buffers, cuts, indexer, tile)
