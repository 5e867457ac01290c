"""The planner's model: how long a sweep takes with given blocks.

A sweep moves its weights from memory once and computes meanwhile:

    seconds = max(moving, computing) + overlap_loss * min(moving, computing) + launch

``moving`` is the weights' bytes by the threads' bandwidth. ``computing`` is one core's arithmetic in register tiles,
with the bytes it reads again from L2 and from what lies behind it, by the cores, by how evenly tasks come out.
"""

from dataclasses import dataclass
from typing import NamedTuple

from tiling.arith import ceil_div, round_up
from tiling.costs import Costs
from tiling.gemm_plan import ITEM_BYTES, MicroTile
from tiling.machine import Machine
from tiling.stages import StageShape

__all__ = ["Cost", "Model", "Product", "makespan"]


class Cost(NamedTuple):
    """Modelled seconds of a sweep and what they come from.

    ``core_s``: computing, were it one core's; ``l2_bytes, l3_bytes``: operands read again from L2 and from behind it;
    ``balance``: the slowest worker's time by the mean, at least 1; ``edge_waste``: the part of the arithmetic that
    register tiles with too few rows or columns spend on nothing.
    """

    seconds: float
    core_s: float
    memory_bytes: int
    l3_bytes: int
    l2_bytes: int
    balance: float
    edge_waste: float


class Product(NamedTuple):
    """One core's work for one product: seconds, bytes read again, operations of full register tiles and useful ones."""

    seconds: float
    l3_bytes: int
    l2_bytes: int
    padded_ops: float
    ops: int


def makespan(n_tasks: int, grain: int, n_workers: int) -> float:
    """The slowest worker's share by the mean one: whole draws of ``grain`` tasks, of which the last may come late."""
    n_draws = ceil_div(n_tasks, grain)
    if n_workers == 1 or n_draws == 0:
        return 1.0
    return max(ceil_div(n_draws, n_workers) * n_workers / n_draws, 1 + (n_workers - 1) / (2 * n_draws))


@dataclass(frozen=True)
class Model:
    """The costs of a machine, for sweeps by ``n_workers`` threads."""

    machine: Machine
    costs: Costs
    n_workers: int

    def product(
        self, shape: StageShape, micro: MicroTile, rows: float, n_blocks: int, kc: int, walk: int, a_from_l2: bool
    ) -> Product:
        """One core's work for a product over ``n_blocks`` blocks of ``rows`` rows with ``walk`` panels a task.

        The loops are those of the kernels: k in blocks of ``kc``, register tiles down the rows, panels across.
        ``a_from_l2``: the packed rows come from L2 or behind, not from L1d where the same task has just written them.
        """
        costs = self.costs
        b_bytes = ITEM_BYTES[shape.dtype]
        kp = round_up(shape.k, micro.kr)
        n_panels = ceil_div(shape.n, micro.nr)
        n_kblocks = ceil_div(kp, kc)
        n_tiles = ceil_div(int(rows + 0.999), micro.mr)
        padded_rows = n_tiles * min(micro.mr, max(rows / n_tiles, costs.min_rows))
        per_block = 2.0 * kp * micro.nr * n_panels * shape.batch
        padded_ops = n_blocks * padded_rows * per_block
        rate = costs.bf16_flops_s if shape.dtype == "bf16" else costs.int8_ops_s

        l2 = l3 = 0
        # B: a block of k of the walk's panels is read anew by each register tile, and whole by each block of rows.
        weights = kp * micro.nr * n_panels * b_bytes * shape.batch
        block_b = walk * min(kc, kp) * micro.nr * b_bytes
        again = weights * (n_tiles - 1) * n_blocks
        if block_b > self.machine.l1d_bytes // 2:
            if block_b <= self.machine.l2_bytes // 2:
                l2 += again
            else:
                l3 += again
        if n_blocks > 1:
            if walk * kp * micro.nr * b_bytes <= self.machine.l2_bytes // 2:
                l2 += weights * (n_blocks - 1)
            else:
                l3 += weights * (n_blocks - 1)
        # A: each panel of the walk meets the rows of a register tile; they stay in L1d if both blocks fit.
        if a_from_l2:
            all_rows = int(rows * n_blocks) * kp * micro.a_bytes
            tile_a = min(rows, micro.mr) * min(kc, kp) * micro.a_bytes
            fits = tile_a + min(kc, kp) * micro.nr * b_bytes <= self.machine.l1d_bytes
            times = ceil_div(n_panels, walk) if fits else n_panels
            if rows * kp * micro.a_bytes <= self.machine.l1d_bytes // 2 and n_blocks == 1:
                times = 0
            if rows * min(kc, kp) * micro.a_bytes <= self.machine.l2_bytes // 2:
                l2 += all_rows * times * shape.batch
            else:
                l3 += all_rows * times * shape.batch
        calls = n_blocks * n_kblocks * n_tiles * n_panels * shape.batch
        seconds = padded_ops / rate + calls * costs.call_s + l2 / costs.l2_bytes_s + l3 / costs.l3_bytes_s
        return Product(seconds, l3, l2, padded_ops, 2 * shape.batch * int(rows * n_blocks) * shape.k * shape.n)

    def sweep(
        self, products: tuple[Product, ...], memory_bytes: int, n_elements: int, n_tasks: int, grain: int
    ) -> Cost:
        """A sweep of some products in one parallel region, whose results have ``n_elements``."""
        costs, n = self.costs, self.n_workers
        balance = makespan(n_tasks, grain, n)
        core_s = n_elements * costs.element_s + ceil_div(n_tasks, grain) * costs.task_s
        l3 = l2 = ops = 0
        padded = 0.0
        for product in products:
            core_s += product.seconds
            l3 += product.l3_bytes
            l2 += product.l2_bytes
            ops += product.ops
            padded += product.padded_ops
        computing = core_s / n * balance
        moving = memory_bytes / min(n * costs.core_bytes_s, costs.memory_bytes_s) * balance
        seconds = max(computing, moving) + costs.overlap_loss * min(computing, moving)
        if n > 1:
            seconds += costs.launch_s
        return Cost(seconds, core_s, memory_bytes, l3, l2, balance, 1 - ops / padded if padded else 0.0)

    def rows(self, t: int, rows_q: int, rows_k: int) -> float:
        """Seconds of the elementwise sweep over ``t`` tokens; query rows are taken to be two thirds of the work."""
        costs, n = self.costs, self.n_workers
        q, k = ceil_div(t, rows_q), ceil_div(t, rows_k)
        longest = max(2 / 3 * rows_q, 1 / 3 * rows_k) * costs.row_s
        even = t * costs.row_s / n
        seconds = max(even + longest * (n - 1) / (2 * n), longest) + (q + k) * costs.task_s / n
        return seconds + (costs.launch_s if n > 1 else 0)
