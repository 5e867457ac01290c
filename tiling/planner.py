"""From dimensions, a number of tokens and a machine to the plan of the whole prolog."""

from collections.abc import Mapping
from functools import cache

from tiling.check import (
    MAX_THREADS,
    MAX_TOKENS,
    check_choice,
    check_int,
    short_int,
)
from tiling.choose.candidates import Choice, Chooser
from tiling.choose.costs import Costs
from tiling.cpu_tiling import CpuTiling
from tiling.gemm import DTYPES, MicroTile
from tiling.machine import Machine
from tiling.plan.assemble import SERIAL_OPS, TileContext, wanted_workers
from tiling.plan.given import config_tile, describe_config, describe_options
from tiling.plan.own import own_tile, own_unroll_list
from tiling.plan.plans import PHASES, PrologPlan, TilePlan
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
    micro: Mapping[str, MicroTile],
    phase: str = "decode",
    quant: str = "b",
    n_threads: int | None = None,
    options: PassOptions | None = None,
    costs: Costs | None = None,
    note: str = "",
) -> PrologPlan:
    """Plan ``t`` tokens of the prolog, 2**22 at most.

    - ``dims``: anything with the six dimensions, see ``PlanDims``.
    - ``config``: reproduce these tile settings, or take the blocks that a ``CpuTiling`` prescribes and choose the
      others; None lets the planner choose everything for ``machine``.
    - ``machine``: default this one. ``n_threads``: default its usable cores; 2**16 at most.
    - ``micro``: register tile of the "bf16" and of the "int8" kernels.
    - ``phase``: "decode" or "prefill". It is recorded; both are the same arithmetic and the same choices.
    - ``quant``: "none", "a" (int8 down projections), "b" (int8 up projection) or "ab".
    - ``options``: scheduling settings; each mapping that is not empty replaces the config's. None with a ``CpuTiling``,
      whose fields say everything.
    - ``costs``: constants of the model that chooses; default those of the machine's instruction set.
    - ``note``: what to say of a search that found ``config``, or found nothing; it marks the plan as tuned.

    The plan depends on nothing else: the same arguments give an equal plan.
    """
    shapes = stage_shapes(dims, quant)
    check_int("t", t, 0, None)
    if t > MAX_TOKENS:
        raise ValueError(f"t: expected at most {MAX_TOKENS} tokens a call, got {short_int(t)}")
    check_choice("phase", phase, PHASES)
    _check_types(config, machine, micro, options, costs)
    if isinstance(config, MlaTileConfig):
        config = config.replace()  # checks again what was changed in place
    machine = Machine.detect() if machine is None else machine
    n_threads = machine.n_usable_cores if n_threads is None else check_int("n_threads", n_threads, 1, MAX_THREADS)
    given = config if isinstance(config, CpuTiling) else CpuTiling()
    settings = config if isinstance(config, MlaTileConfig) else None
    costs = Costs.of_isa(machine.isa) if costs is None else costs
    merged = effective_options(settings, options)
    context = TileContext(shapes, micro, n_threads, merged, given)
    acting, inert = describe_options(settings, options, merged)
    acting = [(name, _listed(value), "prescribed") for name, value in given.given().items()] + acting

    @cache
    def chosen(factor: int) -> Choice:
        n_workers = wanted_workers(context, factor)
        return Chooser(shapes, micro, machine, costs, factor, n_workers, given).choose()

    if settings is not None:
        unroll_list = settings.unroll_list
        reasons = [("blocks", "those of the given config, rounded to the register tile and clipped")]
        described = describe_config(settings, merged)
        acting, inert = described[0] + acting, described[1] + inert
    elif given.unroll_list is not None:
        unroll_list = list(given.unroll_list)
        reasons = [(f"unroll_list = {unroll_list}", "prescribed")]
    else:
        unroll_list, reasons = own_unroll_list(t, chosen)
    if note:
        reasons.insert(0, ("tuned", note))
    tiles = tuple(loop_unroll(0, t, 1, unroll_list))
    reasons += [(f"{dtype} register tile {micro[dtype]}", "given by the kernels") for dtype in DTYPES]
    tile_plans: list[TilePlan] = []
    for factor in dict.fromkeys(factor for _, factor in tiles):
        if settings is None:
            tile, tile_reasons = own_tile(context, chosen(factor), factor)
        else:
            tile, tile_reasons = config_tile(context, settings, factor), []
        tile_reasons.append(_workers_reason(tile, given))
        reasons += [(f"tile of {factor}: {choice}", reason) for choice, reason in tile_reasons]
        tile_plans.append(tile)
    return PrologPlan(
        dims=PlanDims.of(dims),
        t=t,
        phase=phase,
        quant=quant,
        n_threads=n_threads,
        machine=machine,
        unroll_list=tuple(unroll_list),
        tiles=tiles,
        tile_plans=tuple(tile_plans),
        acting=tuple(acting),
        inert=tuple(inert),
        reasons=tuple(reasons),
        origin=_origin(config, note),
        tiling=given,
        costs=costs,
    )


def _check_types(
    config: MlaTileConfig | CpuTiling | None,
    machine: Machine | None,
    micro: Mapping[str, MicroTile],
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


def _origin(config: MlaTileConfig | CpuTiling | None, note: str) -> str:
    if config is None:
        return "planner"
    if isinstance(config, MlaTileConfig):
        return "config"
    return "tuned" if note else "tiling"


def _listed(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _workers_reason(tile: TilePlan, given: CpuTiling) -> tuple[str, str]:
    n_ops = tile.flops + tile.int8_ops
    if given.n_threads is not None:
        return f"n_workers = {tile.n_workers}", f"n_threads = {given.n_threads} prescribed"
    if n_ops < SERIAL_OPS:
        return "n_workers = 1", f"serial: {n_ops} operations, fewer than {SERIAL_OPS}"
    return f"n_workers = {tile.n_workers}", f"every thread: {n_ops} operations, at least {SERIAL_OPS}"
