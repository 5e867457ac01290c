"""`mla-numba run --mpi`: a layer whose heads are shared among the ranks of mpiexec, with one table from the first."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import click
from rich import box
from rich.table import Column, Table

from tiling import ceil_div, least_seconds

from .._version import __version__
from ..cache import PagedCache
from ..call.planning import this_machine
from ..distributed import Communicator, ShardedProlog
from ..distributed.communicator import all_gather_facts, as_communicator
from ..distributed.mpi import world
from ..oracle import bits as verify
from ..oracle.inputs import random_inputs
from ..tuning.limit import share_of
from ..tuning.rates import Probes
from ..weights.plain import MlaWeights
from .faults import said_plainly
from .options import TileSettings
from .progress import Steps
from .run_options import RunOptions
from .shown import print_wide

__all__ = ["run_ranks"]

_PROBE_S = 0.2


@dataclass(frozen=True, slots=True)
class RankReport:
    """What one rank did. `least_s`: the least time of its work by what its threads reach while all ranks work."""

    rank: int
    heads: tuple[int, int]
    n_threads: int
    down: str
    reason: str
    times_s: list[float]
    exchange_s: list[float]
    exchanged_bytes: int
    work_bytes: int
    least_s: float
    mismatches: list[str] | None

    @property
    def median_s(self) -> float:
        """Seconds of the call in the middle."""
        return statistics.median(self.times_s)


def run_ranks(ctx: click.Context, options: RunOptions, tiles: TileSettings) -> None:
    """Runs on every rank; the first shows what all of them did. Ends with status 1 where a bit of any rank differs."""
    if options.trace_file is not None:
        raise click.UsageError("--trace: expected none with --mpi, whose table has the times of the ranks")
    with said_plainly():
        comm = as_communicator(world())
    with Steps() if comm.rank == 0 else nullcontext() as steps:
        mine = _run_rank(comm, options, tiles, steps)
    reports = [RankReport(**facts) for facts in all_gather_facts(comm, asdict(mine))]
    if comm.rank == 0:
        _show(ctx, options, reports)
    all_gather_facts(comm, {})  # a rank that ends with status 1 may end the others, before the first has shown it
    if any(report.mismatches for report in reports):
        ctx.exit(1)


def _run_rank(comm: Communicator, options: RunOptions, tiles: TileSettings, steps: Steps | None) -> RankReport:
    with _step(steps, "making weights"), said_plainly():
        whole = MlaWeights.random(options.sizes, options.seed, options.quant, options.smooth)
        weights = whole.shard(comm.rank, comm.size)
        del whole
    n_blocks = ceil_div(options.tokens, options.block_size) + 1
    quantized = "b" in options.quant
    cache = PagedCache.allocate(options.sizes, n_blocks, options.block_size, options.cache_mode, quantized=quantized)
    inputs = random_inputs(options.sizes, options.tokens, options.seed, cache.capacity)
    with _step(steps, "packing weights"), said_plainly():
        prolog = ShardedProlog(
            weights, comm, options.phase, down=options.down, tile_config=tiles.config, options=tiles.options,
            n_threads=options.threads, numerics=options.numerics,
        )  # fmt: skip
    out = prolog.allocate_output(options.tokens)
    with _step(steps, "first call"):
        prolog(*inputs, cache, out)
    verify.poison(*out, *cache.arrays().values())
    before = cache.copy()
    with _step(steps, f"timing {options.repeats} calls on {comm.size} ranks", timed=True):
        times = [prolog.profile(*inputs, cache, out)[1] for _ in range(options.repeats)]
    with _step(steps, "measuring what the ranks reach together", timed=True):
        all_gather_facts(comm, {})  # at one time
        rates = Probes(prolog.n_threads).rates(prolog.n_threads, _PROBE_S)
    mismatches = None
    if not options.no_check:
        with _step(steps, "computing the reference and comparing"):
            want = verify.reference_run(weights, *inputs, before, numerics=options.numerics)
            mismatches = [str(mismatch) for mismatch in verify.check_output(out, cache, want)]
    plan = prolog.plan(options.tokens)
    heads = prolog.heads
    return RankReport(
        rank=comm.rank,
        heads=(heads[0], heads[-1]),
        n_threads=prolog.n_threads,
        down=plan.down,
        reason=plan.reason,
        times_s=[each.total_s for each in times],
        exchange_s=[each.exchange_s for each in times],
        exchanged_bytes=times[-1].exchanged_bytes,
        work_bytes=plan.work.total_bytes,
        least_s=least_seconds(plan.work, rates),
        mismatches=mismatches,
    )


@contextmanager
def _step(steps: Steps | None, name: str, *, timed: bool = False) -> Iterator[None]:
    """A step that the first rank shows."""
    with nullcontext() if steps is None else steps.step(name, timed=timed):
        yield


def _show(ctx: click.Context, options: RunOptions, reports: list[RankReport]) -> None:
    if options.as_json:
        unsaid = ("model", "as_json", "trace_file")
        head: dict[str, Any] = {
            "version": __version__,
            "machine": asdict(this_machine()),
            "options": {name: value for name, value in ctx.params.items() if name not in unsaid},
            "dims": asdict(options.sizes),
            "exact": None if reports[0].mismatches is None else not any(report.mismatches for report in reports),
        }
        click.echo(json.dumps(head | {"ranks": [asdict(report) for report in reports]}, indent=2))
        return
    click.echo(f"{this_machine()}\ndown-projection {reports[0].down}: {reports[0].reason}")
    table = Table(Column("rank"), *(Column(h, justify="right") for h in _HEADINGS), box=box.SIMPLE_HEAD)
    for report in reports:
        first, last = report.heads
        table.add_row(
            str(report.rank), f"{first} to {last}", str(report.n_threads), f"{min(report.times_s) * 1e3:.3f}",
            f"{report.median_s * 1e3:.3f}", f"{report.work_bytes / 1e6:.2f}", _share(report),
            f"{statistics.median(report.exchange_s) * 1e6:.0f}", f"{report.exchanged_bytes / 1e3:.1f}",
        )  # fmt: skip
    print_wide(table, 100)
    if reports[0].mismatches is None:
        click.echo("not checked against the reference")
    elif any(report.mismatches for report in reports):
        click.echo("\n".join(f"rank {report.rank}: {text}" for report in reports for text in report.mismatches or []))
    else:
        click.echo(f"exact: every bit of the outputs and caches of {len(reports)} ranks equals the reference")


_HEADINGS = ("heads", "threads", "min ms", "median ms", "MB", "share of limit", "exchange us", "exchanged KB")


def _share(report: RankReport) -> str:
    """The share that the fastest call reaches; there is none where weights stayed in a cache."""
    share = share_of(report.least_s, min(report.times_s), cold=False).value
    return "in cache" if share is None else f"{share:.0%}"
