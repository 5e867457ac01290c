"""The command `mla-numba run`: make weights, plan, time the sweeps, compare with the reference."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import click
from rich.console import Console

from tiling import PrologPlan, ceil_div

from .._version import __version__
from ..cache import PagedCache
from ..call.planning import this_machine
from ..call.trace import Trace
from ..indexer_cache import IndexerCache
from ..oracle import bits as verify
from ..oracle.inputs import Inputs, random_inputs
from ..prolog import MlaProlog, PrologOutput
from ..tuning.conditions import Conditions, Meter, n_cpus
from ..weights.indexer import IndexerWeights
from ..weights.plain import MlaWeights
from .compiling import counting_kernels, parts_of_a_call
from .faults import blame
from .indexer_options import check_quant_of_indexer
from .layer import Caches, Layer, arrays_of, mismatches_of
from .options import TileSettings, check_smooth
from .progress import Steps
from .run_options import RunOptions
from .run_ranks import run_ranks
from .sweep_times import SweepTimes, product_table, sweep_table, trace_table

__all__ = ["run"]


def run(ctx: click.Context, **given: Any) -> None:
    """Runs, shows the report, and ends with status 1 where a bit differs."""
    options = RunOptions(**given)
    check_smooth(options.smooth, options.quant)
    tiles = options.tile_settings(options.tokens)
    check_indexer_options(options)
    if options.mpi:
        run_ranks(ctx, options, tiles)
        return
    if options.down != "auto":
        raise click.UsageError("--down: expected it with --mpi only")
    with blame("--cache-mode"):
        cache = allocate_cache(options)
    with Steps() as steps:
        with steps.step("making weights"), blame("--dims"):
            weights = MlaWeights.random(options.sizes, options.seed, options.quant, options.smooth)
        layer, caches = Layer(weights), Caches(cache)
        if options.with_indexer:
            with steps.step("making the indexer's weights"), blame("--indexer-head-dim"):
                layer, caches = beside_an_indexer(options, layer, caches)
        report = run_prolog(options, tiles, layer, caches, steps)
    if options.trace_file is not None:
        try:
            report.traces[0].to_chrome(options.trace_file, *report.traces[1:])
        except (OSError, ValueError) as error:
            raise click.ClickException(f"--trace: {error}") from None
    if options.as_json:
        unsaid = ("model", "as_json", "trace_file")
        settings = {name: value for name, value in ctx.params.items() if name not in unsaid}
        head = {
            "version": __version__,
            "machine": asdict(this_machine()),
            "options": settings,
            "dims": asdict(options.sizes),
            "indexer_dims": None if layer.indexer is None else asdict(layer.indexer.dims),
        }
        click.echo(json.dumps(head | report.as_dict(), indent=2))
    else:
        show(report, with_trace=options.trace_file is not None)
    if report.exact is False:
        ctx.exit(1)


def show(report: Report, *, with_trace: bool) -> None:
    """Prints what speaks against the times, then the machine, the plan, the tables and the verdict."""
    if report.conditions.is_busy:
        click.echo(report.conditions)
    click.echo(f"{this_machine()}\n{report.plan}")
    Console().print(sweep_table(report.sweeps))
    if with_trace:
        Console().print(trace_table(report.trace))
        Console().print(product_table(report.trace))
    click.echo(report.verdict)


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a run. `seconds` are those of its steps; `mismatches` is None where nothing was compared.

    `traces` are those of all timed calls with --trace, else that of the last one.
    """

    plan: PrologPlan
    sweeps: list[SweepTimes]
    traces: list[Trace]
    conditions: Conditions
    seconds: dict[str, float]
    n_arrays: int
    mismatches: list[verify.Mismatch] | None

    @property
    def trace(self) -> Trace:
        """That of the last call."""
        return self.traces[-1]

    @property
    def exact(self) -> bool | None:
        """Whether every bit is the reference's, None where that was not checked."""
        return None if self.mismatches is None else not self.mismatches

    @property
    def verdict(self) -> str:
        """A sentence on the bits, or the mismatches."""
        if self.mismatches is None:
            return "not checked against the reference"
        if self.mismatches:
            return "\n".join(map(str, self.mismatches))
        return f"exact: every bit of {self.n_arrays} outputs and caches equals the reference"

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "exact": self.exact,
            "mismatches": [asdict(mismatch) for mismatch in self.mismatches or []],
            "conditions": self.conditions.as_dict(),
            "sweeps": {sweep.name: sweep.as_dict() for sweep in self.sweeps},
            "last_call_busy_s": {phase: self.trace.busy_s(phase) for phase in self.trace.phases},
            "last_call_products_s": self.trace.stages_s,
            "seconds": self.seconds,
            "plan": json.loads(self.plan.to_json()),
        }


def allocate_cache(given: RunOptions) -> PagedCache:
    """A cache of one block more than the tokens need, so that there are rows that no call may touch."""
    n_blocks = ceil_div(given.tokens, given.block_size) + 1
    return PagedCache.allocate(given.sizes, n_blocks, given.block_size, given.cache_mode, quantized="b" in given.quant)


def check_indexer_options(given: RunOptions) -> None:
    """Refuses options of an indexer without one, and an indexer beside options that exclude it."""
    if not given.with_indexer:
        for name, value in given.indexer_given.items():
            raise click.UsageError(f"{name}: expected together with --with-indexer, got {value} alone")
        return
    check_quant_of_indexer("--with-indexer", given.quant)
    if given.numerics != "pypto":
        raise click.UsageError(f"--with-indexer: expected with --numerics pypto, got --numerics {given.numerics}")
    if given.mpi:
        raise click.UsageError("--with-indexer: expected without --mpi, whose ranks share the heads of the prolog")
    given.indexer_shape(given.model)  # which refuses a model without one, before any work


def beside_an_indexer(given: RunOptions, layer: Layer, caches: Caches) -> tuple[Layer, Caches]:
    """The same with an indexer, whose cache has the same slots."""
    indexer = IndexerWeights.random(given.sizes, given.seed, *given.indexer_shape(given.model))
    cache = caches.latents
    n_blocks = cache.capacity // cache.block_size
    with blame("--cache-mode"):
        keys = IndexerCache.allocate(indexer.dims, n_blocks, cache.block_size, given.cache_mode)
    return layer._replace(indexer=indexer), caches._replace(keys=keys)


def run_prolog(given: RunOptions, tiles: TileSettings, layer: Layer, caches: Caches, steps: Steps) -> Report:
    """Times calls and compares what the last one left with the reference. The caches are written to."""
    t = given.tokens
    inputs = random_inputs(given.sizes, t, given.seed, caches.latents.capacity)
    with steps.step("packing weights"):
        prolog = MlaProlog(
            layer.weights,
            given.phase,
            tile_config=tiles.config,
            options=tiles.options,
            n_threads=given.threads,
            numerics=given.numerics,
            indexer=layer.indexer,
        )
    plan = prolog.plan(t)
    out = prolog.allocate_output(t)
    with (
        steps.step("first call", parts_of_a_call(given.threads, with_indexer=given.with_indexer)) as advance,
        counting_kernels(advance),
    ):
        products = given.trace_file is not None
        prolog.profile(*inputs, caches.latents, out, products=products, indexer_cache=caches.keys)
    verify.poison(*arrays_of(out), *caches.arrays())
    before = caches.copy()
    meter = Meter()
    with steps.step(f"timing {given.repeats} calls", given.repeats, timed=True) as advance:
        keep_all = given.trace_file is not None
        sweeps, traces = time_sweeps(prolog, inputs, caches, out, given.repeats, advance, keep_all=keep_all)
    conditions = Conditions(given.threads, n_cpus(), during=meter.since_start().cores)
    mismatches = None
    if not given.no_check:
        with steps.step("computing the reference"):
            mismatches = mismatches_of(layer, inputs, before, out, caches, given.numerics)
    n_arrays = len(caches.arrays()) + len(arrays_of(out))
    return Report(plan, sweeps, traces, conditions, dict(steps.seconds), n_arrays, mismatches)


def time_sweeps(
    prolog: MlaProlog,
    inputs: Inputs,
    caches: Caches,
    out: PrologOutput,
    repeats: int,
    advance: Callable[[], None] = lambda: None,
    *,
    keep_all: bool = False,
) -> tuple[list[SweepTimes], list[Trace]]:
    """Times of each sweep and, under "total", of the whole call, and the trace of the last call.

    `keep_all` keeps the traces of all calls, with their products. `advance` is called between calls.
    """
    traces: deque[Trace] = deque(maxlen=None if keep_all else 1)
    plan = prolog.plan(inputs.x.shape[0])
    work = plan.sweep_work | {"total": plan.work}
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        begin = time.perf_counter()
        _, trace = prolog.profile(*inputs, caches.latents, out, products=keep_all, indexer_cache=caches.keys)
        traces.append(trace)
        spent = trace.seconds | {"total": time.perf_counter() - begin}
        for name, seconds in spent.items():
            times[name].append(seconds)
        advance()
    return [SweepTimes(name, w.total_bytes, w.n_ops, tuple(times[name])) for name, w in work.items()], list(traces)
