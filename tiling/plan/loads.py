"""The tasks of a tile's phases with the seconds that the planner's model gives them."""

from tiling.arith import chunks
from tiling.choose.candidates import Chooser
from tiling.choose.model import QUERY_PART
from tiling.gemm import GemmPlan
from tiling.plan.drawing import PhaseTasks
from tiling.plan.tile import TilePlan

__all__ = ["tile_phases"]


def tile_phases(tile: TilePlan, chooser: Chooser) -> tuple[PhaseTasks, ...]:
    """The phases of a tile in the order in which a worker comes to them, as ``chooser.costs`` has their seconds.

    A task takes its part of its sweep's time, by rows and panels. Memory gives each worker an even share, whether or
    not others are idle. To pack a row of x takes as long as a row of the query.
    """
    n, t = chooser.n_workers, tile.t
    qa, qb, kva, wuk = tile.gemms
    blocks = (("down_mc", qa.mc), ("down_kc", qa.kc), ("down_walk", qa.walk), ("down_legs", tile.down.legs))
    down = chooser.down_cost(blocks, tile.down.grain)
    inner = (("wuk_mc", wuk.mc), ("wuk_kc", wuk.kc), ("wuk_walk", wuk.walk))
    works = chooser.up_cost(qb.mc, (("qb_kc", qb.kc), ("qb_walk", qb.walk))), chooser.uk_cost(qb.mc, inner)
    heads = chooser.heads_cost(qb.mc, *works, tile.heads.grain)
    n_panels = qa.n_panels + kva.n_panels
    panels = [end - first for gemm in (qa, kva) for first, end in chunks(gemm.n_panels, gemm.n_walks)]
    rows, legs = _rows_of_blocks(qa), tile.down.legs
    row_s = chooser.costs.row_s
    query_s, key_s = QUERY_PART * row_s, (1 - QUERY_PART) * row_s
    return (
        PhaseTasks("pack", _row_tasks(t, tile.rows.n_q_tasks, query_s)),
        PhaseTasks(
            "down",
            tuple(
                n * down.even_s * walk / n_panels * r / t / legs for _ in range(legs) for walk in panels for r in rows
            ),
            grain=tile.down.grain,
            n_relays=tile.down.n_relays if legs > 1 else 0,
            after="pack",
        ),
        PhaseTasks("query", _row_tasks(t, tile.rows.n_q_tasks, query_s), after="down"),
        PhaseTasks("key", _row_tasks(t, tile.rows.n_k_tasks, key_s)),
        PhaseTasks(
            "heads",
            tuple(n * heads.even_s / qb.batch * r / t for _ in range(qb.batch) for r in _rows_of_blocks(qb)),
            grain=tile.heads.grain,
            after="query",
        ),
    )


def _row_tasks(t: int, n_tasks: int, row_s: float) -> tuple[float, ...]:
    return tuple((end - first) * row_s for first, end in chunks(t, n_tasks))


def _rows_of_blocks(gemm: GemmPlan) -> list[int]:
    return [end - first for first, end in chunks(gemm.m, gemm.n_row_blocks)]
