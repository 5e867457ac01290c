"""The plan of the indexer's prolog where it runs alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from tiling.check import MAX_THREADS, MAX_TOKENS, check_int
from tiling.choose.candidates import Choice
from tiling.choose.costs import Costs
from tiling.gemm import MicroTile
from tiling.html import fold, table, to_html
from tiling.json import JsonText
from tiling.machine import Machine
from tiling.modes import DTYPES, Dtype
from tiling.plan.assemble import SERIAL_OPS
from tiling.plan.cells import GEMM_COLUMNS, gemm_cells
from tiling.plan.indexer_tile import IndexerPlanDims, IndexerShape, IndexerTile, choose_indexer, indexer_shapes
from tiling.plan.own import own_unroll_list
from tiling.plan.tiled import TiledPlan
from tiling.plan.unroll import loop_unroll
from tiling.roofline import Work

__all__ = ["IndexerPlan", "indexer_reasons", "plan_indexer"]

Reasons = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class IndexerPlan(TiledPlan[IndexerTile], JsonText):
    """How ``t`` tokens go through the indexer's prolog on one machine, and why so. ``plan_indexer`` has an example.

    - ``dims, t, n_threads, machine, costs``: what it was made for, and the constants of the model that chose.
    - ``tiles``: ``(offset, factor)`` of each tile of tokens; ``tile_plans``: one plan per distinct factor.
    - ``reasons``: ``(choice, reason)`` of each choice the planner made.
    """

    dims: IndexerPlanDims
    t: int
    n_threads: int
    machine: Machine
    tiles: tuple[tuple[int, int], ...]
    tile_plans: tuple[IndexerTile, ...]
    reasons: Reasons
    costs: Costs

    def __post_init__(self) -> None:
        """Check that the tiles cover the tokens in order and that each has its plan, for these dimensions."""
        check_int("t", self.t, 0, MAX_TOKENS)
        check_int("n_threads", self.n_threads, 1, MAX_THREADS)
        self._check_tiles()
        for tile in self.tile_plans:
            for shape, gemm in zip(indexer_shapes(self.dims), tile.gemms, strict=True):
                if not shape.matches(gemm):
                    raise ValueError(f"tile_plans: expected {shape}, got {gemm}")

    @property
    def work(self) -> Work:
        """Bytes and operations of the whole call: weights once a tile, inputs, outputs and cache rows."""
        tiles = [self.tile_plan(factor) for _, factor in self.tiles]
        positions = 2 * 2 * self.dims.qk_rope_head_dim * self.t  # cos and sin
        n_bytes = sum(tile.weight_bytes + tile.read_bytes + tile.written_bytes for tile in tiles)
        flops, int8_ops = sum(tile.flops for tile in tiles), sum(tile.int8_ops for tile in tiles)
        return Work(positions + n_bytes, flops=flops, int8_ops=int8_ops)

    def summary(self) -> str:
        """One line on the whole."""
        work = self.work
        return (
            f"indexer's prolog of {self.t} tokens, {self.n_threads} threads on {self.machine.name}: "
            f"tiles {self._tiles_text()}; {work.total_bytes / 1e6:.1f} MB, {work.flops / 1e9:.2f} Gflop, "
            f"{work.int8_ops / 1e9:.2f} Gop"
        )

    def __repr__(self) -> str:
        """The line of ``summary`` in brackets."""
        return f"<IndexerPlan: {self.summary()}>"

    def _repr_html_(self) -> str:
        """Tables for notebooks: a row for each product of each tile; the reasons of the choices, folded."""
        rows = [(str(tile.t), *gemm_cells(gemm)) for tile in self.tile_plans for gemm in tile.gemms]
        products = table(self.summary(), ("tile", *GEMM_COLUMNS), rows)
        return to_html(products, fold("Choices", table("", ("choice", "reason"), self.reasons)))

    def __str__(self) -> str:
        """A line on the whole, then one on each tile and each of its products."""
        lines = [self.summary()]
        for tile in self.tile_plans:
            lines += [f"  tile of {tile.t}: {tile}", *(f"    {gemm}" for gemm in tile.gemms)]
        return "\n".join(lines)

    def explain(self) -> str:
        """The plan, and each choice with its reason."""
        lines = [str(self), "", f"Machine: {self.machine}", "", "Choices:"]
        return "\n".join(lines + [f"  {choice}: {reason}" for choice, reason in self.reasons])


def indexer_reasons(tile: IndexerTile, choice: Choice) -> Reasons:
    """What was chosen for a tile, and why."""
    k, qb, _, hadamard = tile.gemms
    down = f"indexer down: mc = {k.mc}, kc = {k.kc}, {k.walk} panels a task, {tile.down.grain} at a time"
    heads = (
        f"indexer heads: mc = {qb.mc}; kc = {qb.kc}, walk {qb.walk} of {qb.stage}; mc = {hadamard.mc}, walk "
        f"{hadamard.walk} of {hadamard.stage}; {tile.heads.grain} at a time"
    )
    modelled = "ms by the model"
    return (
        (down, f"{choice.down.seconds * 1e3:.4f} {modelled}"),
        (f"indexer rows_k = {tile.rows_k}", f"{choice.rows_s * 1e3:.4f} {modelled}"),
        (heads, f"{choice.heads.seconds * 1e3:.4f} {modelled}"),
    )


def plan_indexer(
    dims: IndexerShape,
    t: int,
    machine: Machine | None = None,
    *,
    micro: Mapping[Dtype, MicroTile],
    n_threads: int | None = None,
    costs: Costs | None = None,
) -> IndexerPlan:
    """Plan ``t`` tokens of the indexer's prolog where it runs alone.

    Args:
        dims: Anything with the five dimensions, see ``IndexerPlanDims``.
        t: Tokens, 2^22 at most.
        machine: By default this one.
        micro: Register tile of the "bf16" and of the "int8" kernels.
        n_threads: By default the machine's usable cores; 2^16 at most.
        costs: Constants of the model that chooses; by default those of the machine's instruction set.

    Returns:
        The plan.

    Raises:
        TypeError: An argument is of another type.
        ValueError: It has another value.

    Examples:
        >>> from tiling import IndexerPlanDims, Machine, MicroTile, plan_indexer
        >>> machine = Machine("a CPU", "x86_64", "avx2", 32 << 10, 1 << 20, 32 << 20, 4, 4)
        >>> micro = {"bf16": MicroTile(mr=6, nr=16, kr=2, a_bytes=2), "int8": MicroTile(mr=6, nr=16, kr=2, a_bytes=2)}
        >>> plan = plan_indexer(IndexerPlanDims(7168, 1536, 64, 128, 64), 8, machine, micro=micro)
        >>> plan
        <IndexerPlan: indexer's prolog of 8 tokens, 4 threads on a CPU: tiles 1 x 8; 15.7 MB, 0.04 Gflop, 0.20 Gop>
        >>> plan.tile_plan(8).heads.n_tasks
        64
    """
    dims = IndexerPlanDims.of(dims)
    check_int("t", t, 0, MAX_TOKENS)
    machine = Machine.detect() if machine is None else machine
    n_threads = machine.n_usable_cores if n_threads is None else check_int("n_threads", n_threads, 1, MAX_THREADS)
    costs = Costs.of_isa(machine.isa) if costs is None else costs
    ops_a_token = sum(2 * shape.batch * shape.k * shape.n for shape in indexer_shapes(dims))

    @cache
    def chosen(factor: int) -> tuple[IndexerTile, Choice]:
        n_workers = 1 if factor * ops_a_token < SERIAL_OPS else n_threads
        return choose_indexer(dims, micro, machine, costs, factor, n_workers)

    unroll_list, why = own_unroll_list(t, lambda factor: chosen(factor)[1])
    tiles = tuple(loop_unroll(0, t, 1, unroll_list))
    factors = dict.fromkeys(factor for _, factor in tiles)
    reasons = [*why, *((f"{dtype} register tile {micro[dtype]}", "given by the kernels") for dtype in DTYPES)]
    for factor in factors:
        reasons += [(f"tile of {factor}: {choice}", reason) for choice, reason in indexer_reasons(*chosen(factor))]
    tile_plans = tuple(chosen(factor)[0] for factor in factors)
    return IndexerPlan(dims, t, n_threads, machine, tiles, tile_plans, tuple(reasons), costs)
