"""From dimensions, a number of tokens and a machine to the plan of the whole prolog."""

from collections.abc import Mapping

from tiling._check import check_choice, check_int
from tiling.assemble import SERIAL_OPS, TileContext
from tiling.config import MlaTileConfig, PassOptions
from tiling.gemm_plan import DTYPES, MicroTile
from tiling.heuristics import own_tile, own_unroll_list
from tiling.machine import Machine
from tiling.plan import PHASES, PrologPlan, TilePlan
from tiling.reproduce import config_tile, describe_config, describe_options
from tiling.settings import effective_options
from tiling.stages import Dims, PlanDims, stage_shapes
from tiling.unroll import loop_unroll

__all__ = ["plan_prolog"]

MAX_TOKENS = 1 << 22  # a plan lists its tiles, which may be of one token each


def plan_prolog(
    dims: Dims,
    t: int,
    config: MlaTileConfig | None = None,
    machine: Machine | None = None,
    *,
    micro: Mapping[str, MicroTile],
    phase: str = "decode",
    quant: str = "b",
    n_threads: int | None = None,
    options: PassOptions | None = None,
) -> PrologPlan:
    """Plan ``t`` tokens of the prolog, 2**22 at most.

    - ``dims``: anything with the six dimensions, see ``PlanDims``.
    - ``config``: reproduce these tile settings; None lets the planner choose for ``machine``.
    - ``machine``: default this one. ``n_threads``: default its usable cores.
    - ``micro``: register tile of the "bf16" and of the "int8" kernels.
    - ``phase``: "decode" or "prefill". It is recorded; both are the same arithmetic and the same choices.
    - ``quant``: "none", "a" (int8 down projections), "b" (int8 up projection) or "ab".
    - ``options``: scheduling settings; each mapping that is not empty takes the place of the config's.

    The plan depends on nothing else: the same arguments give an equal plan.
    """
    shapes = stage_shapes(dims, quant)
    check_int("t", t, 0)
    if t > MAX_TOKENS:
        raise ValueError(f"t: expected at most {MAX_TOKENS} tokens a call, got {t}")
    check_choice("phase", phase, PHASES)
    _check_types(config, machine, micro, options)
    config = None if config is None else config.replace()  # checks again what was changed in place
    machine = Machine.detect() if machine is None else machine
    n_threads = machine.n_usable_cores if n_threads is None else check_int("n_threads", n_threads, 1)
    merged = effective_options(config, options)
    context = TileContext(shapes, micro, n_threads, merged)

    if config is None:
        unroll_list, reasons = own_unroll_list(t)
        acting, inert = describe_options(None, options, merged)
    else:
        unroll_list = config.unroll_list
        reasons = [("blocks", "those of the given config, rounded to the register tile and clipped")]
        described = describe_config(config, merged), describe_options(config, options, merged)
        acting, inert = described[0][0] + described[1][0], described[0][1] + described[1][1]
    tiles = tuple(loop_unroll(0, t, 1, unroll_list))
    reasons += [(f"{dtype} register tile {micro[dtype]}", "given by the kernels") for dtype in DTYPES]
    tile_plans: list[TilePlan] = []
    for factor in dict.fromkeys(factor for _, factor in tiles):
        if config is None:
            tile, tile_reasons = own_tile(context, machine, factor)
        else:
            tile, tile_reasons = config_tile(context, config, factor), []
        tile_reasons.append(_workers_reason(tile))
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
    )


def _check_types(
    config: MlaTileConfig | None, machine: Machine | None, micro: Mapping[str, MicroTile], options: PassOptions | None
) -> None:
    wanted = (("config", config, MlaTileConfig), ("machine", machine, Machine), ("options", options, PassOptions))
    for name, value, cls in wanted:
        if value is not None and not isinstance(value, cls):
            raise TypeError(f"{name}: expected {cls.__name__} or None, got {value!r}")
    if not isinstance(micro, Mapping) or not all(isinstance(micro.get(dtype), MicroTile) for dtype in DTYPES):
        raise TypeError(f"micro: expected a mapping of {' and '.join(DTYPES)} to MicroTile, got {micro!r}")


def _workers_reason(tile: TilePlan) -> tuple[str, str]:
    n_ops = tile.flops + tile.int8_ops
    if n_ops < SERIAL_OPS:
        return "n_workers = 1", f"serial: {n_ops} operations, fewer than {SERIAL_OPS}"
    return f"n_workers = {tile.n_workers}", f"every thread: {n_ops} operations, at least {SERIAL_OPS}"
