"""What `mla-numba sweep` does between its options and its report: the journal, timing what it lacks, the finals."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tiling import Rates

from .._version import __version__
from ..base.dims import MlaDims
from ..call.planning import this_machine
from ..tuning.contest import Arena
from ..tuning.journal import Journal
from ..tuning.rates import Probes, rates_as_dict
from ..tuning.sweep import (
    Effort,
    Job,
    Row,
    finals,
    run_job,
    time_pairs,
)

__all__ = ["open_journal", "progress_bar", "run_jobs"]

_REDRAW_S = 0.2


@contextmanager
def progress_bar(what: str, total: float | None) -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr with the time left; what it gives takes a note and how far on. Drawn between calls only."""
    columns = (TextColumn(what), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    shown = Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True),
        auto_refresh=False, redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
    with shown:
        task = shown.add_task("", total=total, note="")
        drawn = 0.0

        def advance(note: str, by: float) -> None:
            nonlocal drawn
            shown.update(task, advance=by, note=note)
            if time.perf_counter() - drawn > _REDRAW_S:
                shown.refresh()
                drawn = time.perf_counter()

        shown.refresh()
        yield advance
        shown.refresh()


def _facts_of(n_threads: int, rates: Rates) -> dict[str, Any]:
    """Machine, versions, threads and rates, as JSON takes them."""
    packages = ("numba", "llvmlite", "numpy", "ml_dtypes")
    versions = {"mla_numba": __version__, "python": platform.python_version()}
    return {
        "machine": asdict(this_machine()),
        "versions": versions | {name: version(name) for name in packages},
        "threads": n_threads,
        "rates": rates_as_dict(rates),
        "rates_exact": asdict(rates),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def open_journal(out: Path, spec: dict[str, Any], restart: bool, n_threads: int) -> Journal:
    """The journal of this sweep, new or found; rates are measured for a new one."""
    path = out / "journal.jsonl"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if restart:
            path.unlink(missing_ok=True)
        return Journal(path, spec, lambda: _facts_of(n_threads, Probes(n_threads).rates()))
    except OSError as error:
        raise click.ClickException(f"--out: expected a folder that can be written, got {error}") from None
    except ValueError as error:
        raise click.ClickException(f"{error}; give --restart to start again, or another --out") from None


def run_jobs(
    jobs: list[Job],
    journal: Journal,
    effort: Effort,
    dims: MlaDims,
    phase: str,
    n_threads: int,
    seed: int,
    n_weight_sets: int,
) -> None:
    """Runs the jobs that the journal lacks, then the finals."""
    arenas: dict[str, Arena] = {}

    def arena_of(quant: str) -> Arena:
        if quant not in arenas:
            tokens = list(dict.fromkeys(job.t for job in jobs if job.quant == quant))
            arenas[quant] = Arena(
                dims, quant, tokens, phase=phase, n_threads=n_threads, seed=seed, n_weight_sets=n_weight_sets
            )
        return arenas[quant]

    with progress_bar("sweep", len(jobs)) as advance:
        advance("making weights and checking the baseline", len(journal.rows))
        for job in journal.left(jobs, seed):
            row = run_job(job, arena_of(job.quant), effort)
            journal.add(row)
            advance(_note(row), 1)
    by_number = {job.number: job for job in jobs}
    left = [number for number in finals(journal.rows) if journal.rows[number].final_ratio is None]
    if not arenas and not left:
        return
    longer = replace(effort, pairs=3 * effort.pairs, seconds=3 * effort.seconds, most=2 * effort.most)
    with progress_bar("final", len(left)) as advance:
        for number in left:
            job = by_number[number]
            arena = arena_of(job.quant)
            timed, _ = time_pairs(arena, arena.contender(job.t, job.candidate.config, job.options), longer)
            row = replace(journal.rows[number], final_ratio=timed.ratio, final_wins=timed.wins)
            journal.add(row)
            advance(_note(row), 1)
    # What the machine was seen to reach, before or after: other tenants take their part at times.
    before, after = journal.rates, Probes(n_threads).rates()
    rates = Rates(
        max(before.bandwidth_bytes_s, after.bandwidth_bytes_s),
        max(before.flops_s, after.flops_s),
        max(before.ops_s, after.ops_s),
        None if after.bf16_flops_s is None else max(before.bf16_flops_s or 0, after.bf16_flops_s),
    )
    journal.change_facts({"rates": rates_as_dict(rates), "rates_exact": asdict(rates)})


def _note(row: Row) -> str:
    ratio = row.final_ratio or row.ratio
    return f"T {row.t}: {row.status}" if ratio is None else f"T {row.t}: {ratio:.2f} of the baseline's time"
