"""Timing what the journal of a study lacks, and the finals."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from tiling import Rates

from ...base.modes import QuantMode
from ...call.planning import this_machine
from ...tuning.contest import Arena
from ...tuning.journal import Journal
from ...tuning.rates import Probes, rates_as_dict
from ...tuning.study import Effort, Job, Row, finals, run_job, time_pairs
from ..progress import progress_bar
from ..versions import versions
from .options import StudyOptions

__all__ = ["open_journal", "run_jobs"]


def _facts_of(n_threads: int, rates: Rates) -> dict[str, Any]:
    """Machine, versions, threads and rates, as JSON takes them."""
    return {
        "machine": asdict(this_machine()),
        "versions": versions(),
        "threads": n_threads,
        "rates": rates_as_dict(rates),
        "rates_exact": asdict(rates),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def open_journal(out: Path, spec: dict[str, Any], restart: bool, n_threads: int) -> Journal:
    """The journal of this study, new or found; rates are measured for a new one."""
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


class _Arenas:
    """An arena for each quant mode that occurs, made when its first job comes."""

    def __init__(self, jobs: Sequence[Job], options: StudyOptions) -> None:
        self._jobs, self._options = jobs, options
        self._made: dict[str, Arena] = {}

    def __bool__(self) -> bool:
        return bool(self._made)

    def of(self, quant: QuantMode) -> Arena:
        if quant not in self._made:
            tokens = list(dict.fromkeys(job.t for job in self._jobs if job.quant == quant))
            options = self._options
            self._made[quant] = Arena(
                options.sizes, quant, tokens, phase=options.phase, n_threads=options.threads, seed=options.seed,
                n_weight_sets=options.weight_sets,
            )  # fmt: skip
        return self._made[quant]


def run_jobs(jobs: Sequence[Job], journal: Journal, effort: Effort, options: StudyOptions) -> None:
    """Runs the jobs that the journal lacks, then the finals."""
    arenas = _Arenas(jobs, options)
    with progress_bar("sweep", len(jobs)) as advance:
        advance("making weights and checking the baseline", len(journal.rows))
        for job in journal.left(jobs, options.seed):
            row = run_job(job, arenas.of(job.quant), effort)
            journal.add(row)
            advance(_note(row), 1)
    by_number = {job.number: job for job in jobs}
    left = [by_number[number] for number in finals(journal.rows) if journal.rows[number].final_ratio is None]
    if not arenas and not left:
        return
    longer = replace(effort, pairs=3 * effort.pairs, seconds=3 * effort.seconds, most=2 * effort.most)
    with progress_bar("final", len(left)) as advance:
        for job in left:
            arena = arenas.of(job.quant)
            timed, _ = time_pairs(arena, arena.contender(job.t, job.candidate.config, job.options), longer)
            row = replace(journal.rows[job.number], final_ratio=timed.ratio, final_wins=timed.wins)
            journal.add(row)
            advance(_note(row), 1)
    rates = _best(journal.rates, Probes(options.threads).rates())
    journal.change_facts({"rates": rates_as_dict(rates), "rates_exact": asdict(rates)})


def _best(before: Rates, after: Rates) -> Rates:
    """What the machine was seen to reach, before or after: other tenants take their part at times."""
    return Rates(
        max(before.bandwidth_bytes_s, after.bandwidth_bytes_s),
        max(before.flops_s, after.flops_s),
        max(before.ops_s, after.ops_s),
        None if after.bf16_flops_s is None else max(before.bf16_flops_s or 0, after.bf16_flops_s),
    )


def _note(row: Row) -> str:
    ratio = row.final_ratio or row.ratio
    return f"T {row.t}: {row.status}" if ratio is None else f"T {row.t}: {ratio:.2f} of the baseline's time"
