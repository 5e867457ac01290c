"""Working memory of a call: the buffers between the sweeps, and each worker's scratch."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np

from tiling import DownPlan, HeadsPlan, TilePlan
from tiling.plan.groups import first_workers

from ..base.checks import Array
from ..kernels.launch import plain
from ..kernels.micro.ukernel import A_BF16_DTYPE, A_INT8_DTYPE
from ..kernels.sweeps.arguments import (
    Activations,
    Buffers,
    Cuts,
    HeadsCut,
    PairCut,
)
from ..kernels.sweeps.phase import ALL_PHASES, NO_LAPS, PHASES
from ..kernels.threads import relays, tasks
from ..kernels.threads.groups import ONE_GROUP
from .indexer_memory import Shared, indexer_cuts, lay_out_indexer
from .tile_memory import TileMemory, Views

__all__ = ["Memory", "Prepared"]


class Prepared(NamedTuple):
    """What the kernel needs to know of a tile's plan, and the memory to work in."""

    cuts: Cuts
    buffers: Buffers
    taken: tuple[Any, ...]  # buffers and cuts as kernels take them; then those of the indexer, if the plan has one

    @classmethod
    def of(cls, cuts: Cuts, buffers: Buffers) -> Self:
        """From cuts and buffers, with both as the plain tuples that kernels take."""
        return cls(cuts, buffers, (plain(buffers), plain(cuts)))

    def with_laps(self, laps: Array | None) -> Self:
        """The same with `laps`, in which kernels note the times of each task, see `Buffers`; unchanged for None."""
        if laps is None:
            return self
        buffers = self.buffers._replace(laps=laps)
        return self._replace(buffers=buffers, taken=(plain(buffers), *self.taken[1:]))

    @property
    def counters(self) -> Array:
        """What workers count tasks with."""
        return self.buffers.counters


def cuts_of(plan: TilePlan) -> Cuts:
    """A tile's plan as the kernel takes it."""
    (qa, qb, kva, wuk), heads = plan.gemms, plan.heads
    groups = np.array(first_workers(plan.groups), np.int64) if plan.groups else ONE_GROUP
    return Cuts(
        n_workers=plan.n_workers,
        rows_x=plan.rows.rows_q,
        rows_q=plan.rows.rows_q,
        rows_k=plan.rows.rows_k,
        down=PairCut(qa.mc, qa.kc, qa.walk, kva.walk, plan.down.grain, plan.down.legs, groups),
        heads=HeadsCut(
            qb.mc, qb.kc, qb.walk, wuk.mc, wuk.kc, wuk.walk, heads.grain, heads.legs, heads.leg_panels, groups
        ),
    )


def lay_out(plan: TilePlan, views: Views) -> Buffers:
    """The buffers of a tile as arrays."""
    n, t = plan.n_workers, plan.t
    qa, qb, kva, _ = plan.gemms
    nothing = np.zeros(0, np.uint8)
    n_phases = len(PHASES if plan.indexer is None else ALL_PHASES)
    rows, by_worker = views.rows, views.by_worker

    def handed_on(sweep: DownPlan | HeadsPlan, name: str, dtype: Any) -> Array:
        """A row a worker, or where there are legs, a relay."""
        if sweep.legs == 1:
            return by_worker(name, dtype)
        found: Array = views.by_name["relays"][: sweep.relay_bytes].view(dtype).reshape(sweep.n_relays, -1)
        return found

    operand = {"bf16": A_BF16_DTYPE, "int8": A_INT8_DTYPE}
    sums = {"bf16": np.float32, "int8": np.int32}
    most_relays = max((sweep.n_relays for sweep in (plan.down, plan.heads) if sweep.legs > 1), default=0)
    n_counters = tasks.n_counters(n, n_phases) + relays.n_leg_counters(most_relays)
    return Buffers(
        x=Activations(
            rows("x_rows", operand[qa.dtype], qa.lda),
            views.by_name.get("x_scale", nothing).view(np.float32),
            np.zeros(t, np.int32),
        ),
        q=Activations(rows("q_rows", operand[qb.dtype], qb.lda), nothing.view(np.float32), np.zeros(t, np.int32)),
        q_a=rows("q_a", np.uint16, qa.n),
        kv_a=rows("kv_a", np.uint16, kva.n),
        c_down=handed_on(plan.down, "c", sums[qa.dtype]),
        c_up=by_worker("c", sums[qb.dtype]),
        c_uk=by_worker("c"),
        q_head=(q_head := handed_on(plan.heads, "q_head", A_BF16_DTYPE)).reshape(len(q_head), -1, plan.heads.ldq),
        y=by_worker("y"),
        counters=np.zeros(n_counters, np.int64),
        spans=np.zeros((n, n_phases, 3), np.int64),
        laps=NO_LAPS,
    )


class Memory(TileMemory[TilePlan, Prepared]):
    """The working memory of one call at a time, kept for the next."""

    def make(self, plan: TilePlan, block: Array) -> Prepared:
        """A tile's cuts, and its buffers in a block of memory."""
        views = Views.of(plan, block)
        buffers, index = lay_out(plan, views), plan.indexer
        prepared = Prepared.of(cuts_of(plan), buffers)
        if index is None:
            return prepared
        x = None if index.packs_x else buffers.x
        shared = Shared(x, buffers.q, buffers.counters, buffers.spans)
        of_indexer = plain(lay_out_indexer(index, views, shared)), plain(indexer_cuts(index))
        return prepared._replace(taken=prepared.taken + of_indexer)
