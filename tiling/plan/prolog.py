"""The plan of the whole prolog."""

from dataclasses import dataclass

from tiling.check import MAX_THREADS, MAX_TOKENS, check_choice, check_int, check_ints
from tiling.choose.candidates import Chooser
from tiling.choose.costs import Costs
from tiling.choose.explain import candidate_lines
from tiling.cpu_tiling import CpuTiling
from tiling.html import fold, table, to_html
from tiling.json import JsonText
from tiling.machine import Machine
from tiling.modes import CALL_PHASES, ORIGINS, CallPhase, Origin, QuantMode
from tiling.plan.cells import GEMM_COLUMNS, gemm_cells
from tiling.plan.drawing import Crew, Drawing, draw_tasks
from tiling.plan.groups import groups_of_nodes
from tiling.plan.indexer_tile import IndexerPlanDims, indexer_shapes
from tiling.plan.loads import tile_phases
from tiling.plan.tile import TilePlan
from tiling.plan.tiled import TiledPlan
from tiling.roofline import Work
from tiling.stages import PlanDims, StageShape, stage_shapes

__all__ = ["ORIGINS", "PrologPlan"]


@dataclass(frozen=True)
class PrologPlan(TiledPlan[TilePlan], JsonText):
    """How ``t`` tokens go through the prolog on one machine, and why so. ``plan_prolog`` has an example.

    - ``dims, t, phase, quant, machine``: what it was made for.
    - ``unroll_list``: numbers of tokens that a tile may have.
    - ``tiles``: ``(offset, factor)`` of each tile of tokens; ``tile_plans``: one plan per distinct factor.
    - ``n_threads``: threads asked for; ``n_workers``: most threads any tile uses.
    - ``acting``: ``(setting, value, effect)`` of each given setting that acted; ``inert``: ``(setting, value, reason)``
      of each that did not; both are empty if nothing was given.
    - ``reasons``: ``(choice, reason)`` of each choice the planner made.
    - ``origin``: where the blocks come from: "planner", "config" (an ``MlaTileConfig``), "tiling" (a ``CpuTiling``, the
      rest by the planner) or "tuned" (one that a search found on this machine). ``tiling``: what was prescribed.
    - ``costs``: the constants of the model by which the planner chose.
    - ``indexer``: dimensions of the indexer whose prolog goes through the tiles too, if there is one.
    """

    dims: PlanDims
    t: int
    phase: CallPhase
    quant: QuantMode
    n_threads: int
    machine: Machine
    unroll_list: tuple[int, ...]
    tiles: tuple[tuple[int, int], ...]
    tile_plans: tuple[TilePlan, ...]
    acting: tuple[tuple[str, str, str], ...]
    inert: tuple[tuple[str, str, str], ...]
    reasons: tuple[tuple[str, str], ...]
    origin: Origin
    tiling: CpuTiling
    costs: Costs
    indexer: IndexerPlanDims | None = None

    def __post_init__(self) -> None:
        """Check that the tiles cover the tokens in order and that each has its plan, for these dimensions."""
        check_int("t", self.t, 0, MAX_TOKENS)
        check_int("n_threads", self.n_threads, 1, MAX_THREADS)
        check_ints("unroll_list", self.unroll_list, 1)
        check_choice("phase", self.phase, CALL_PHASES)
        check_choice("origin", self.origin, ORIGINS)
        self._check_tiles()
        shapes = stage_shapes(self.dims, self.quant)
        for tile in self.tile_plans:
            for shape, gemm in zip(shapes, tile.gemms, strict=True):
                if not shape.matches(gemm):
                    raise ValueError(f"tile_plans: expected {shape}, got {gemm}")
            of_indexer = () if tile.indexer is None else tile.indexer.gemms
            wanted = () if self.indexer is None else indexer_shapes(self.indexer)
            if len(of_indexer) != len(wanted) or not all(map(StageShape.matches, wanted, of_indexer)):
                raise ValueError(f"tile_plans: expected the products of indexer {self.indexer}, got {of_indexer}")

    def _sum(self, name: str) -> int:
        return sum(getattr(self.tile_plan(factor), name) for _, factor in self.tiles)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights read: all of them once per tile of tokens."""
        return self._sum("weight_bytes")

    @property
    def activation_bytes(self) -> int:
        """Bytes of inputs, outputs and cache rows."""
        return self._sum("activation_bytes")

    @property
    def total_bytes(self) -> int:
        """Bytes of weights and activations."""
        return self.weight_bytes + self.activation_bytes

    @property
    def flops(self) -> int:
        """Operations of the bf16 products."""
        return self._sum("flops")

    @property
    def int8_ops(self) -> int:
        """Operations of the int8 products."""
        return self._sum("int8_ops")

    @property
    def work(self) -> Work:
        """Bytes and operations of the whole call."""
        return Work(self.total_bytes, self.flops, self.int8_ops)

    @property
    def sweep_work(self) -> dict[str, Work]:
        """Bytes and operations of each sweep over all tiles, by its name; see ``TilePlan.sweep_work``."""
        work = dict.fromkeys(("down", "rows", "heads"), Work(0))
        for _, factor in self.tiles:
            of_tile = self.tile_plan(factor).sweep_work
            work = {name: work[name] + of_tile[name] for name in work}
        return work

    def chooser(self, tile: TilePlan) -> Chooser:
        """What chooses, or would choose, the blocks of a tile of this plan.

        Args:
            tile: One of ``tile_plans``.

        Returns:
            The chooser, with its candidates.
        """
        micro = {gemm.dtype: gemm.micro for gemm in tile.gemms}
        return Chooser(
            stage_shapes(self.dims, self.quant), micro, self.machine, self.costs, tile.t, tile.n_workers, self.tiling
        )

    def drawing(self, tile: TilePlan, far: float = 1.0) -> Drawing:
        """A simulation of how the workers of a tile share its tasks.

        Tasks take what the planner's model says with this plan's constants, and memory gives each worker an even share.
        Those of an indexer are left out. On several NUMA nodes weights lie where they were packed by as many threads,
        which keep to the cores of their node.

        Args:
            tile: One of ``tile_plans``.
            far: So many times as long a task takes whose weights lie on another NUMA node; at least 1.

        Returns:
            Who does which task when, what part of the time workers are idle, how many tasks each does, and what part of
            the weights is read from another node.

        Raises:
            ValueError: ``far`` is below 1.

        Examples:
            >>> from tiling import Machine, MicroTile, PlanDims, plan_prolog
            >>> machine = Machine("a CPU", "x86_64", "avx2", 32 << 10, 1 << 20, 32 << 20, 4, 4)
            >>> micro = {name: MicroTile(mr=6, nr=16, kr=2, a_bytes=2) for name in ("bf16", "int8")}
            >>> plan = plan_prolog(PlanDims(7168, 128, 1536, 512, 128, 64), 8, machine=machine, micro=micro)
            >>> drawing = plan.drawing(plan.tile_plan(8))
            >>> drawing.sweeps["heads"].n_tasks
            (32, 32, 32, 32)
            >>> drawing.idle < 0.02
            True
        """
        if not far >= 1:
            raise ValueError(f"far: expected at least 1, got {far}")
        nodes = groups_of_nodes(tile.n_workers, self.machine.node_cores)
        return draw_tasks(tile_phases(tile, self.chooser(tile)), Crew(tile.n_workers, tile.groups, nodes, far))

    def summary(self) -> str:
        """One line on the whole."""
        with_indexer = "" if self.indexer is None else " with an indexer"
        return (
            f"{self.phase} of {self.t} tokens{with_indexer}, quant {self.quant}, {self.n_threads} threads on "
            f"{self.machine.name}: tiles {self._tiles_text()}; {self.total_bytes / 1e6:.1f} MB, "
            f"{self.flops / 1e9:.2f} Gflop, {self.int8_ops / 1e9:.2f} Gop{'; tuned' if self.origin == 'tuned' else ''}"
        )

    def __repr__(self) -> str:
        """The line of ``summary`` in brackets."""
        return f"<PrologPlan: {self.summary()}>"

    def _repr_html_(self) -> str:
        """Tables for notebooks: a row for each product of each tile; the reasons of the choices, folded."""
        rows = [(str(tile.t), *gemm_cells(gemm)) for tile in self.tile_plans for gemm in tile.all_gemms]
        products = table(self.summary(), ("tile", *GEMM_COLUMNS), rows)
        return to_html(products, fold("Choices", table("", ("choice", "reason"), self.reasons)))

    def __str__(self) -> str:
        """A line on the whole, then one on each tile and each of its products."""
        lines = [self.summary()]
        for tile in self.tile_plans:
            lines += [f"  {tile}", *(f"    {gemm}" for gemm in tile.all_gemms)]
        return "\n".join(lines)

    def explain(self) -> str:
        """The plan, each choice with its reason, and each given setting with what it did or why it did nothing.

        With how busy the workers are, see ``drawing``.
        Where the planner chose, also its candidates: the best with the model's word on them, and why others were
        refused.
        """
        lines = [str(self), "", f"Machine: {self.machine}", "", "Choices:"]
        lines += [f"  {choice}: {reason}" for choice, reason in self.reasons]
        lines += ["", "Drawing of tasks, simulated:"]
        lines += [f"  tile of {tile.t}: {self.drawing(tile)}" for tile in self.tile_plans]
        lines += ["", "Settings that act:"]
        lines += [f"  {name} = {value}: {effect}" for name, value, effect in self.acting] or ["  none given"]
        lines += ["", "Settings without effect on a CPU:"]
        lines += [f"  {name} = {value}: {reason}" for name, value, reason in self.inert] or ["  none given"]
        if self.origin != "config":
            for tile in self.tile_plans:
                lines += ["", f"Candidates for a tile of {tile.t}:", *candidate_lines(self.chooser(tile))]
        return "\n".join(lines)
