"""From dimensions, a number of tokens and a machine to the plan of the whole prolog."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property

from tiling.check import (
    MAX_THREADS,
    MAX_TOKENS,
    check_choice,
    check_int,
    short_int,
)
from tiling.choose.candidates import Choice, Chooser
from tiling.choose.costs import Costs
from tiling.cpu_tiling import CpuTiling, listed
from tiling.gemm import MicroTile
from tiling.machine import Machine
from tiling.modes import CALL_PHASES, DTYPES, CallPhase, Dtype, Origin, QuantMode
from tiling.plan.assemble import SERIAL_OPS, TileContext, wanted_workers
from tiling.plan.given import Notes, config_tile, describe_config, describe_options
from tiling.plan.groups import groups_text
from tiling.plan.indexer import indexer_reasons
from tiling.plan.indexer_tile import IndexerPlanDims, IndexerShape, choose_indexer
from tiling.plan.own import Reasons, own_tile, own_unroll_list
from tiling.plan.prolog import PrologPlan
from tiling.plan.tile import TilePlan
from tiling.plan.unroll import loop_unroll
from tiling.pypto.config import MlaTileConfig, PassOptions
from tiling.pypto.scheduling import effective_options
from tiling.stages import Dims, PlanDims, stage_shapes

__all__ = ["plan_prolog"]


def plan_prolog(
    dims: Dims,
    t: int,
    config: MlaTileConfig | CpuTiling | None = None,
    machine: Machine | None = None,
    *,
    micro: Mapping[Dtype, MicroTile],
    phase: CallPhase = "decode",
    quant: QuantMode = "b",
    n_threads: int | None = None,
    options: PassOptions | None = None,
    costs: Costs | None = None,
    note: str = "",
    indexer: IndexerShape | None = None,
) -> PrologPlan:
    """Plan ``t`` tokens of the prolog.

    The plan depends on its arguments alone: the same ones give an equal plan.

    Args:
        dims: Anything with the six dimensions, see ``PlanDims``.
        t: Tokens, 2^22 at most.
        config: Reproduce these tile settings, or take the blocks that a ``CpuTiling`` prescribes and choose the others;
            None lets the planner choose everything for ``machine``.
        machine: By default this one.
        micro: Register tile of the "bf16" and of the "int8" kernels.
        phase: "decode" or "prefill". It is recorded; both are the same arithmetic and the same choices.
        quant: "none", "a" (int8 down projections), "b" (int8 up projection) or "ab".
        n_threads: By default the machine's usable cores; 2^16 at most.
        options: Scheduling settings; each mapping that is not empty replaces the config's. None with a ``CpuTiling``,
            whose fields say everything.
        costs: Constants of the model that chooses; by default those of the machine's instruction set.
        note: What to say of a search that found ``config``, or found nothing; it marks the plan as tuned.
        indexer: Dimensions of an indexer whose prolog goes through the tiles with this one, see ``IndexerPlanDims``.

    Returns:
        The plan; ``print(plan)`` and ``print(plan.explain())`` say what it does and why.

    Raises:
        TypeError: An argument is of another type.
        ValueError: It has another value.

    Examples:
        >>> from tiling import Machine, MicroTile, PlanDims, plan_prolog
        >>> machine = Machine("a CPU", "x86_64", "avx2", 32 << 10, 1 << 20, 32 << 20, 4, 4)
        >>> micro = {"bf16": MicroTile(mr=6, nr=16, kr=2, a_bytes=2), "int8": MicroTile(mr=6, nr=16, kr=2, a_bytes=2)}
        >>> plan = plan_prolog(PlanDims(7168, 128, 1536, 512, 128, 64), 8, machine=machine, micro=micro)
        >>> plan
        <PrologPlan: decode of 8 tokens, quant b, 4 threads on a CPU: tiles 1 x 8; 86.3 MB, 0.38 Gflop, 0.60 Gop>
        >>> tile = plan.tile_plan(8)
        >>> tile.n_workers, tile.heads.n_tasks, tile.heads.qb.micro.nr
        (4, 128, 16)
    """
    shapes = stage_shapes(dims, quant)
    check_int("t", t, 0, None)
    if t > MAX_TOKENS:
        raise ValueError(f"t: expected at most {MAX_TOKENS} tokens a call, got {short_int(t)}")
    check_choice("phase", phase, CALL_PHASES)
    _check_types(config, machine, micro, options, costs)
    if isinstance(config, MlaTileConfig):
        config = config.replace()  # checks again what was changed in place
    machine = Machine.detect() if machine is None else machine
    n_threads = machine.n_usable_cores if n_threads is None else check_int("n_threads", n_threads, 1, MAX_THREADS)
    costs = Costs.of_isa(machine.isa) if costs is None else costs
    given = config if isinstance(config, CpuTiling) else CpuTiling()
    merged = effective_options(config if isinstance(config, MlaTileConfig) else None, options)
    context = TileContext(shapes, micro, n_threads, merged, given, machine.node_cores)
    index = None if indexer is None else IndexerPlanDims.of(indexer)
    return _Request(PlanDims.of(dims), t, phase, quant, config, options, machine, costs, note, context, index).plan()


@dataclass(frozen=True)
class _Request:
    """What ``plan_prolog`` is asked for, checked and complete; ``context`` is what every tile shares."""

    dims: PlanDims
    t: int
    phase: CallPhase
    quant: QuantMode
    config: MlaTileConfig | CpuTiling | None
    options: PassOptions | None
    machine: Machine
    costs: Costs
    note: str
    context: TileContext
    indexer: IndexerPlanDims | None

    @property
    def settings(self) -> MlaTileConfig | None:
        """The config, if it is one of the reference operator's."""
        return self.config if isinstance(self.config, MlaTileConfig) else None

    @property
    def origin(self) -> Origin:
        """Where the blocks come from, see ``PrologPlan``."""
        if self.config is None:
            return "planner"
        if self.settings is not None:
            return "config"
        return "tuned" if self.note else "tiling"

    @cached_property
    def chosen(self) -> Callable[[int], Choice]:
        """The planner's choice for a tile of so many tokens, made once."""
        shapes, micro, given = self.context.shapes, self.context.micro, self.context.given

        @cache
        def choose(factor: int) -> Choice:
            n_workers = wanted_workers(self.context, factor)
            return Chooser(shapes, micro, self.machine, self.costs, factor, n_workers, given).choose()

        return choose

    def unroll_list(self) -> tuple[list[int], Reasons]:
        """Numbers of tokens a tile may have, and why these."""
        prescribed = self.context.given.unroll_list
        if self.settings is not None:
            reason = "those of the given config, rounded to the register tile and clipped"
            return self.settings.unroll_list, [("blocks", reason)]
        if prescribed is not None:
            return list(prescribed), [(f"unroll_list = {list(prescribed)}", "prescribed")]
        return own_unroll_list(self.t, self.chosen)

    def tile(self, factor: int) -> tuple[TilePlan, Reasons]:
        """The plan of the tiles of ``factor`` tokens, and the reasons of its choices."""
        if self.settings is None:
            tile, reasons = own_tile(self.context, self.chosen(factor), factor)
        else:
            tile, reasons = config_tile(self.context, self.settings, factor), []
        reasons.append(_workers_reason(tile, self.context.given))
        reasons += _groups_reason(tile, self.context.given)
        if self.indexer is not None:
            index, choice = choose_indexer(
                self.indexer, self.context.micro, self.machine, self.costs, factor, tile.n_workers
            )
            tile = replace(tile, indexer=index.beside(tile.down.qa))
            reasons += indexer_reasons(index, choice)
        return tile, [(f"tile of {factor}: {choice}", reason) for choice, reason in reasons]

    def described(self) -> tuple[Notes, Notes]:
        """The given settings that act, and those that do not."""
        merged = self.context.options
        acting, inert = describe_options(self.settings, self.options, merged)
        if self.settings is not None:
            config_acting, config_inert = describe_config(self.settings, merged)
            return config_acting + acting, config_inert + inert
        prescribed = self.context.given.given()
        return [(name, listed(value), "prescribed") for name, value in prescribed.items()] + acting, inert

    def plan(self) -> PrologPlan:
        """The plan of the whole prolog."""
        unroll_list, reasons = self.unroll_list()
        if self.note:
            reasons = [("tuned", self.note), *reasons]
        micro = self.context.micro
        reasons += [(f"{dtype} register tile {micro[dtype]}", "given by the kernels") for dtype in DTYPES]
        tiles = tuple(loop_unroll(0, self.t, 1, unroll_list))
        planned = [self.tile(factor) for factor in dict.fromkeys(factor for _, factor in tiles)]
        for _, tile_reasons in planned:
            reasons += tile_reasons
        acting, inert = self.described()
        return PrologPlan(
            dims=self.dims,
            t=self.t,
            phase=self.phase,
            quant=self.quant,
            n_threads=self.context.n_threads,
            machine=self.machine,
            unroll_list=tuple(unroll_list),
            tiles=tiles,
            tile_plans=tuple(tile for tile, _ in planned),
            acting=tuple(acting),
            inert=tuple(inert),
            reasons=tuple(reasons),
            origin=self.origin,
            tiling=self.context.given,
            costs=self.costs,
            indexer=self.indexer,
        )


def _check_types(
    config: MlaTileConfig | CpuTiling | None,
    machine: Machine | None,
    micro: Mapping[Dtype, MicroTile],
    options: PassOptions | None,
    costs: Costs | None,
) -> None:
    if config is not None and not isinstance(config, MlaTileConfig | CpuTiling):
        raise TypeError(f"config: expected MlaTileConfig, CpuTiling or None, got {config!r}")
    wanted = (("machine", machine, Machine), ("options", options, PassOptions), ("costs", costs, Costs))
    for name, value, cls in wanted:
        if value is not None and not isinstance(value, cls):
            raise TypeError(f"{name}: expected {cls.__name__} or None, got {value!r}")
    if not isinstance(micro, Mapping) or not all(isinstance(micro.get(dtype), MicroTile) for dtype in DTYPES):
        raise TypeError(f"micro: expected a mapping of {' and '.join(DTYPES)} to MicroTile, got {micro!r}")
    if isinstance(config, CpuTiling) and options is not None:
        raise ValueError(f"options: expected None with a CpuTiling, got {options}")


def _groups_reason(tile: TilePlan, given: CpuTiling) -> Reasons:
    if not tile.groups:
        return []
    why = "one a NUMA node" if given.n_groups is None else f"n_groups = {given.n_groups} prescribed"
    legs = "; each draws the legs of its own share of the weights first" if tile.has_legs else "; no task has legs"
    return [(groups_text(tile.groups), why + legs)]


def _workers_reason(tile: TilePlan, given: CpuTiling) -> tuple[str, str]:
    n_ops = tile.flops + tile.int8_ops
    if given.n_threads is not None:
        return f"n_workers = {tile.n_workers}", f"n_threads = {given.n_threads} prescribed"
    if n_ops < SERIAL_OPS:
        return "n_workers = 1", f"serial: {n_ops} operations, fewer than {SERIAL_OPS}"
    return f"n_workers = {tile.n_workers}", f"every thread: {n_ops} operations, at least {SERIAL_OPS}"
