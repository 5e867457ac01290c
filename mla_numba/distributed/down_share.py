"""A rank's share of the down-projection: a run of the packed panels of [w_dq | w_dkv_kr]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from tiling import ceil_div

from ..base.checks import Array
from ..base.dims import MlaDims
from ..base.head_shard import HeadShard
from ..base.memory import UINT16, aligned_empty
from ..call.bind import BoundCall, PrologOutput
from ..call.workspace import Memory
from ..kernels import ISA
from ..kernels.launch import plain
from ..kernels.sweeps.arguments import Cuts, TokenTile
from ..kernels.sweeps.phase import DOWN, HEADS, PACK, QUERY
from ..kernels.sweeps.tile import prolog_tile
from ..prolog import MlaProlog
from .assemble import assemble

__all__ = ["Columns", "DownShare", "LocalProlog"]


class Columns(NamedTuple):
    """Columns of both down-projections."""

    q_a: range
    kv_a: range

    @property
    def n(self) -> int:
        """How many there are of both."""
        return len(self.q_a) + len(self.kv_a)


@dataclass(frozen=True, slots=True)
class DownShare:
    """How `size` ranks divide the columns of both down-projections, by whole panels of `nr` columns."""

    dims: MlaDims
    size: int
    nr: int = ISA.nr

    @property
    def _n_panels(self) -> tuple[int, int]:
        return ceil_div(self.dims.q_lora_rank, self.nr), ceil_div(self.dims.kv_a_dim, self.nr)

    @property
    def n_panels(self) -> int:
        """Panels of both."""
        return sum(self._n_panels)

    def panels(self, rank: int) -> slice:
        """The panels of a rank."""
        n = self.n_panels
        return slice(n * rank // self.size, n * (rank + 1) // self.size)

    def columns(self, rank: int) -> Columns:
        """The columns of a rank."""
        n_q, _ = self._n_panels
        mine, nr = self.panels(rank), self.nr
        q_rank, kv = self.dims.q_lora_rank, self.dims.kv_a_dim
        q = range(min(mine.start * nr, q_rank), min(mine.stop * nr, q_rank))
        begin, end = max(mine.start - n_q, 0), max(mine.stop - n_q, 0)
        return Columns(q, range(min(begin * nr, kv), min(end * nr, kv)))

    def n_bytes(self, t: int) -> list[int]:
        """Bytes that each rank sends of `t` tokens."""
        return [2 * t * self.columns(rank).n for rank in range(self.size)]

    def assemble(self, parts: Array, t: int) -> tuple[Array, Array]:
        """q_a (t, Rq) and kv_a (t, C + R), uint16, of all ranks' parts: of each its q_a and then its kv_a."""
        q_a = aligned_empty((t, self.dims.q_lora_rank), UINT16)
        kv_a = aligned_empty((t, self.dims.kv_a_dim), UINT16)
        assemble(parts, (q_a, kv_a), map(self.columns, range(self.size)))
        return q_a, kv_a


class LocalProlog(MlaProlog):
    """The prolog of a rank's heads, which can leave most of the down-projection to other ranks."""

    @cached_property
    def head_shard(self) -> HeadShard:
        """Which heads of the layer these are."""
        shard = self.weights.head_shard
        assert shard is not None
        return shard

    @cached_property
    def share(self) -> DownShare:
        """How the ranks divide the columns of the down-projection."""
        return DownShare(self.dims, self.head_shard.size)

    @cached_property
    def _layer_of_share(self) -> Any:
        """As `_layers.prolog`, with this rank's columns of the down-projection only."""
        self.weights.check()
        down = self.weights.down.part(self.share.panels(self.head_shard.rank), self.share.n_panels)
        return plain(self.weights.arguments_for(self.numerics)._replace(down=down.as_argument()))

    def run_split(
        self, call: BoundCall, exchange: Callable[[Array], Array], most_threads: int | None = None
    ) -> PrologOutput:
        """Computes a bound call, as `run` does, with only this rank's columns of the down-projection.

        `exchange` takes this rank's part, q_a (T, n) and then kv_a (T, m) of its columns as bytes, and gives the parts
        of all ranks. It is called once.
        """
        call.check_fits(self.dims, self.weights.quant)
        tokens = call.tokens_now()
        t = tokens.x.shape[0]
        n_threads = self.n_threads if most_threads is None else min(most_threads, self.n_threads)
        plan = self._plans.plan(t, n_threads)
        memory = Memory.taken_from(self._memory, plan)
        try:
            columns = self.share.columns(self.head_shard.rank)
            part = aligned_empty((t * columns.n,), UINT16)
            n_q = t * len(columns.q_a)
            q_a, kv_a = part[:n_q].reshape(t, -1), part[n_q:].reshape(t, -1)
            for offset, factor in plan.tiles:
                cuts, buffers, _ = memory.prepare(plan.tile_plan(factor))
                rows = slice(offset, offset + factor)
                own = buffers._replace(q_a=q_a[rows], kv_a=kv_a[rows])
                tile = TokenTile(offset, factor, PACK, DOWN, False)
                own_cuts = cuts_of_share(cuts, self.share.size)
                prolog_tile(
                    cuts.n_workers, cuts.n_workers, tokens, call.caches, self._layer_of_share, own, own_cuts, tile
                )
            q_a, kv_a = self.share.assemble(exchange(part.view(np.uint8)), t)
            for offset, factor in plan.tiles:
                cuts, buffers, _ = memory.prepare(plan.tile_plan(factor))
                rows = slice(offset, offset + factor)
                whole = buffers._replace(q_a=q_a[rows], kv_a=kv_a[rows])
                tile = TokenTile(offset, factor, QUERY, HEADS, False)
                prolog_tile(cuts.n_workers, cuts.n_workers, tokens, call.caches, self._layers.prolog, whole, cuts, tile)
        finally:
            self._memory.append(memory)
        return call.out


def cuts_of_share(cuts: Cuts, size: int) -> Cuts:
    """The cuts of a down-projection for a rank's share of the columns: as many tasks, of fewer panels each.

    With legs the walks stay as long as they are. Memory holds the sums of the plan's relays, and a share has no more
    of them then.
    """
    down = cuts.down
    if down.legs > 1:
        return cuts
    return cuts._replace(down=down._replace(walk0=max(down.walk0 // size, 1), walk1=max(down.walk1 // size, 1)))
