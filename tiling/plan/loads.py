"""The tasks of a tile's phases with the seconds that the planner's model gives them."""

from itertools import pairwise

from tiling.arith import chunks
from tiling.choose.candidates import Chooser
from tiling.choose.model import QUERY_PART
from tiling.gemm import GemmPlan
from tiling.plan.drawing import PhaseTasks
from tiling.plan.groups import first_workers, groups_of_nodes
from tiling.plan.sweeps import DownPlan, HeadsPlan
from tiling.plan.tile import TilePlan

__all__ = ["tile_phases"]


def tile_phases(tile: TilePlan, chooser: Chooser) -> tuple[PhaseTasks, ...]:
    """The phases of a tile in the order in which a worker comes to them, as ``chooser.costs`` has their seconds.

    A task takes its part of its sweep's time, by rows and panels. Memory gives each worker an even share, whether or
    not others are idle. To pack a row of x takes as long as a row of the query. Weights lie on the nodes of those who
    packed them, an even share each.
    """
    nodes = groups_of_nodes(chooser.n_workers, chooser.machine.node_cores)
    n, t = chooser.n_workers, tile.t
    qa, qb, kva, wuk = tile.gemms
    blocks = (("down_mc", qa.mc), ("down_kc", qa.kc), ("down_walk", qa.walk), ("down_legs", tile.down.legs))
    down = chooser.down_cost(blocks, tile.down.grain)
    inner = (("wuk_mc", wuk.mc), ("wuk_kc", wuk.kc), ("wuk_walk", wuk.walk))
    works = chooser.up_cost(qb.mc, (("qb_kc", qb.kc), ("qb_walk", qb.walk))), chooser.uk_cost(qb.mc, inner)
    heads = chooser.heads_cost(qb.mc, *works, tile.heads.grain, tile.heads.legs)
    n_panels = qa.n_panels + kva.n_panels
    panels = [len(walk) for walk in _walks(tile.down)]
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
            is_grouped=True,
            weights=_down_weights(tile.down, n, nodes) if nodes else (),
        ),
        PhaseTasks("query", _row_tasks(t, tile.rows.n_q_tasks, query_s), after="down"),
        PhaseTasks("key", _row_tasks(t, tile.rows.n_k_tasks, key_s)),
        PhaseTasks(
            "heads",
            tuple(
                n * heads.even_s * part / qb.batch * r / t
                for part in _parts_of_legs(tile.heads)
                for _ in range(qb.batch)
                for r in _rows_of_blocks(qb)
            ),
            grain=tile.heads.grain,
            n_relays=tile.heads.n_relays if tile.heads.legs > 1 else 0,
            after="query",
            is_grouped=True,
            weights=_heads_weights(tile.heads, n, nodes) if nodes else (),
        ),
    )


def _parts_of_legs(heads: HeadsPlan) -> list[float]:
    """What each leg has of a head's work, by bytes of weights."""
    first = [heads.leg_panels / (heads.qb.n_panels + heads.uk_panels)] * (heads.legs - 1)
    return [*first, 1 - sum(first)]


def _walks(down: DownPlan) -> list[range]:
    """The panels of each walk, counted over both products."""
    of_qa, of_kva = (chunks(gemm.n_panels, gemm.n_walks) for gemm in (down.qa, down.kva))
    n = down.qa.n_panels
    return [range(*walk) for walk in of_qa] + [range(n + first, n + end) for first, end in of_kva]


def _down_weights(down: DownPlan, n_workers: int, nodes: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """``PhaseTasks.weights``: each token block of a walk reads its panels, each leg its part of them."""
    n_panels = down.qa.n_panels + down.kva.n_panels
    node_of = _nodes_of_units(n_panels, n_workers, nodes)
    panel_bytes = (down.qa.weight_bytes + down.kva.weight_bytes) / n_panels / down.legs
    by_walk = [
        tuple(panel_bytes * sum(node_of[panel] == node for panel in walk) for node in range(len(nodes)))
        for walk in _walks(down)
    ]
    return tuple(here for _ in range(down.legs) for here in by_walk for _ in range(down.qa.n_row_blocks))


def _heads_weights(heads: HeadsPlan, n_workers: int, nodes: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """Likewise of heads."""
    node_of = _nodes_of_units(heads.qb.batch, n_workers, nodes)
    head_bytes = (heads.qb.weight_bytes + heads.wuk.weight_bytes) / heads.qb.batch
    return tuple(
        tuple(part * head_bytes * (node_of[head] == node) for node in range(len(nodes)))
        for part in _parts_of_legs(heads)
        for head in range(heads.qb.batch)
        for _ in range(heads.qb.n_row_blocks)
    )


def _nodes_of_units(n_units: int, n_workers: int, nodes: tuple[int, ...]) -> list[int]:
    """The node on which each panel or head lies: that of the worker who packed it."""
    shares = pairwise(n_units * worker // n_workers for worker in first_workers(nodes))
    return [node for node, (begin, end) in enumerate(shares) for _ in range(begin, end)]


def _row_tasks(t: int, n_tasks: int, row_s: float) -> tuple[float, ...]:
    return tuple((end - first) * row_s for first, end in chunks(t, n_tasks))


def _rows_of_blocks(gemm: GemmPlan) -> list[int]:
    return [end - first for first, end in chunks(gemm.m, gemm.n_row_blocks)]
