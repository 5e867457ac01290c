"""The planner's model: how long a sweep takes with given blocks.

A sweep moves its weights from memory once and computes meanwhile:

    seconds = max(moving, computing) + overlap_loss * min(moving, computing)

``moving`` is the weights' bytes by the threads' bandwidth. ``computing`` is one core's arithmetic in register tiles or,
where that takes longer, its operands' bytes from L2 and from behind it; with what each call of the microkernel, each
walk, each jump to another panel and accumulators beyond L1d cost; shared by the cores as evenly as tasks come out.
Threads are woken once a tile of tokens, for ``launch_s``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Self

from tiling.arith import ceil_div, round_up
from tiling.choose.costs import Costs
from tiling.gemm import ITEM_BYTES, MicroTile
from tiling.machine import Machine
from tiling.stages import StageShape

__all__ = ["QUERY_PART", "Cost", "Model", "ProductCost", "even_legs", "makespan"]

QUERY_PART = 2 / 3  # of the elementwise work are the query's rows
LEGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
EVEN = 1.04  # so much longer than an even share whole rounds of tasks may take without being cut


class Cost(NamedTuple):
    """Modelled seconds of a sweep and what they come from.

    ``core_s``: computing, were it one core's; ``l2_bytes, l3_bytes``: operands read again from L2 and from behind it;
    ``balance``: the slowest worker's time by the mean, at least 1; ``edge_waste``: the part of the arithmetic that
    register tiles with too few rows or columns spend on nothing. ``even_s``: seconds, were the tasks shared evenly.
    """

    seconds: float
    even_s: float
    core_s: float
    memory_bytes: int
    l3_bytes: int
    l2_bytes: int
    balance: float
    edge_waste: float


class ProductCost(NamedTuple):
    """One core's work for one product: seconds, bytes read again, operations of full register tiles and useful ones."""

    seconds: float
    l3_bytes: int
    l2_bytes: int
    padded_ops: float
    ops: int


class _Loops(NamedTuple):
    """The kernels' loops over a product: k in blocks of ``kc``, register tiles down the rows, panels across."""

    shape: StageShape
    micro: MicroTile
    rows: float
    n_blocks: int
    kc: int
    walk: int
    kp: int
    n_kblocks: int
    n_panels: int
    n_tiles: int

    @classmethod
    def of(cls, shape: StageShape, micro: MicroTile, rows: float, n_blocks: int, kc: int, walk: int) -> Self:
        """Count the loops of ``n_blocks`` blocks of ``rows`` rows."""
        kp = round_up(shape.k, micro.kr)
        kc = min(kc, kp)
        n_panels, n_tiles = ceil_div(shape.n, micro.nr), ceil_div(ceil(rows), micro.mr)
        return cls(shape, micro, rows, n_blocks, kc, walk, kp, ceil_div(kp, kc), n_panels, n_tiles)


def makespan(n_tasks: int, grain: int, n_workers: int) -> float:
    """The slowest worker's share by the mean one: whole draws of ``grain`` tasks, of which the last may come late."""
    n_draws = ceil_div(n_tasks, grain)
    if n_workers == 1 or n_draws == 0:
        return 1.0
    return max(ceil_div(n_draws, n_workers) * n_workers / n_draws, 1 + (n_workers - 1) / (2 * n_draws))


def rounds_unevenness(n_tasks: int, n_workers: int) -> float:
    """How much longer whole rounds of equal tasks take than an even share of them would, at least 1."""
    return ceil_div(n_tasks, n_workers) * n_workers / n_tasks


def even_legs(n_relays: int, n_workers: int) -> int:
    """The fewest legs of ``LEGS`` with which whole rounds of tasks are even, or as even as they get.

    One where there are no more relays than workers: legs of the same relay run one after the other.
    """
    if n_relays <= n_workers:
        return 1
    even = (legs for legs in LEGS if rounds_unevenness(n_relays * legs, n_workers) <= EVEN)
    return next(even, min(LEGS, key=lambda legs: rounds_unevenness(n_relays * legs, n_workers)))


@dataclass(frozen=True)
class Model:
    """The costs of a machine, for sweeps by ``n_workers`` threads."""

    machine: Machine
    costs: Costs
    n_workers: int

    @property
    def launch_s(self) -> float:
        """Seconds to wake the other threads for a tile of tokens."""
        return self.costs.launch_s if self.n_workers > 1 else 0.0

    def product(
        self,
        shape: StageShape,
        micro: MicroTile,
        rows: float,
        n_blocks: int,
        kc: int,
        walk: int,
        a_in_l1: bool = False,
    ) -> ProductCost:
        """One core's work for a product over ``n_blocks`` blocks of ``rows`` rows with ``walk`` panels a task.

        ``a_in_l1``: the packed rows lie in L1d, where the same task has just written them.
        """
        costs = self.costs
        loops = _Loops.of(shape, micro, rows, n_blocks, kc, walk)
        l2_bytes, l3_bytes = self._bytes_again(loops, a_in_l1)
        c_bytes = self._accumulator_bytes(loops)
        # A step of k takes as long as its rows and those that loading B is worth; a full tile takes what the rate says.
        # A tile of few rows that takes two panels at once loads both for it.
        n_steps = loops.n_tiles - (0.5 if walk > 1 and micro.has_two_panels(int(rows)) else 0)
        padded_rows = (rows + n_steps * costs.step_rows) * micro.mr / (micro.mr + costs.step_rows)
        padded_ops = 2.0 * n_blocks * padded_rows * loops.kp * micro.nr * loops.n_panels * shape.batch
        rate = costs.bf16_flops_s if shape.dtype == "bf16" else costs.int8_ops_s
        reading = l2_bytes / costs.l2_bytes_s + l3_bytes / costs.l3_bytes_s
        n_calls = n_blocks * loops.n_kblocks * loops.n_tiles * loops.n_panels * shape.batch
        n_walks = n_blocks * ceil_div(loops.n_panels, walk) * shape.batch
        # Without a walk, or with whole k, panels follow each other.
        n_jumps = loops.n_panels * shape.batch * loops.n_kblocks if walk > 1 and loops.n_kblocks > 1 else 0
        return ProductCost(
            max(padded_ops / rate, reading)
            + c_bytes / costs.c_bytes_s
            + n_calls * costs.call_s
            + n_walks * costs.walk_s
            + n_jumps * costs.jump_s,
            int(l3_bytes),
            int(l2_bytes + c_bytes),
            padded_ops,
            2 * shape.batch * round(rows * n_blocks) * shape.k * shape.n,
        )

    def _bytes_again(self, loops: "_Loops", a_in_l1: bool) -> tuple[float, float]:
        """Bytes of operands that are read again: from L2, and from behind it."""
        l1, l2 = self.machine.l1d_bytes, self.machine.l2_bytes
        shape, micro, kc, walk = loops.shape, loops.micro, loops.kc, loops.walk
        row_b = micro.nr * ITEM_BYTES[shape.dtype]  # bytes of a panel's row of k
        bytes_of: dict[bool, float] = {True: 0, False: 0}  # from L2, from behind it

        # B: a block of k of the walk's panels is read anew by each register tile, and whole by each block of rows.
        weights = shape.batch * loops.n_panels * loops.kp * row_b
        if walk * kc * row_b > l1 // 2:
            bytes_of[walk * kc * row_b <= l2 // 2] += weights * (loops.n_tiles - 1) * loops.n_blocks
        bytes_of[walk * loops.kp * row_b <= l2 // 2] += weights * (loops.n_blocks - 1)
        # A: each walk meets all rows. Its first panel brings those of a register tile, which stay in L1d for the others
        # if both blocks fit, and in L2 if not.
        if not a_in_l1:
            all_rows = loops.rows * loops.n_blocks * loops.kp * micro.a_bytes
            n_first = ceil_div(loops.n_panels, walk)
            bytes_of[all_rows <= l2 // 2] += all_rows * shape.batch * n_first
            if min(loops.rows, micro.mr) * kc * micro.a_bytes + kc * row_b > l1:
                bytes_of[True] += all_rows * shape.batch * (loops.n_panels - n_first)
        return bytes_of[True], bytes_of[False]

    def _accumulator_bytes(self, loops: "_Loops") -> float:
        """Bytes of accumulators beyond L1d: stored and loaded between blocks of k, and of two parts at the end too."""
        rows, nr = loops.rows, loops.micro.nr
        if rows * loops.walk * nr * 4 <= self.machine.l1d_bytes // 2:
            return 0.0
        n_stores = loops.n_kblocks if loops.shape.k_parts > 1 else loops.n_kblocks - 1
        return 2 * n_stores * rows * loops.n_blocks * loops.shape.batch * loops.n_panels * nr * 4

    def handing_on(self, n_relays: int, legs: int, n_sums: int) -> ProductCost:
        """What legs cost: each but a relay's first begins anew in a panel and takes over sums from another core."""
        n_bytes = 2 * (legs - 1) * n_sums * 4
        seconds = n_bytes / self.costs.l3_bytes_s + (legs - 1) * n_relays * self.costs.jump_s
        return ProductCost(seconds, n_bytes, 0, 0.0, 0)

    def sweep(
        self, products: Sequence[ProductCost], memory_bytes: int, n_elements: int, n_tasks: int, grain: int
    ) -> Cost:
        """A sweep of some products, whose results have ``n_elements``."""
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
        computing = core_s / n
        moving = memory_bytes / min(n * costs.core_bytes_s, costs.memory_bytes_s)
        even_s = max(computing, moving) + costs.overlap_loss * min(computing, moving)
        return Cost(
            even_s * balance, even_s, core_s, memory_bytes, l3, l2, balance, 1 - ops / padded if padded else 0.0
        )

    def rows(self, t: int, rows_q: int, rows_k: int) -> float:
        """Seconds of the elementwise sweep over ``t`` tokens."""
        costs, n = self.costs, self.n_workers
        q, k = ceil_div(t, rows_q), ceil_div(t, rows_k)
        longest = max(QUERY_PART * rows_q, (1 - QUERY_PART) * rows_k) * costs.row_s
        even = t * costs.row_s / n
        return max(even + longest * (n - 1) / (2 * n), longest) + (q + k) * costs.task_s / n
