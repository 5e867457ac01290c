"""Timing what the journal of a study lacks, then the finals, between two probes of the machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
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
from ...tuning.study import Effort, Job, Row, finals, run_job, time_pairs, with_final
from ...tuning.verdict import Control, controls_in
from ...tuning.watch import Watch, best_rates
from ..interrupts import held_back
from ..progress import Bar, progress_bar
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
        "controls": [],
        "conditions": [],
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

    def of(self, quant: QuantMode) -> Arena:
        if quant not in self._made:
            tokens = list(dict.fromkeys(job.t for job in self._jobs if job.quant == quant))
            options = self._options
            self._made[quant] = Arena(
                options.sizes, quant, tokens, phase=options.phase, n_threads=options.threads, seed=options.seed,
                n_weight_sets=options.weight_sets,
            )  # fmt: skip
        return self._made[quant]


class _Study:
    """What is left of a study, and how it is timed; each result is kept as soon as it is there."""

    def __init__(self, jobs: Sequence[Job], journal: Journal, effort: Effort, options: StudyOptions) -> None:
        self.journal, self._effort, self._options = journal, effort, options
        self._by_number = {job.number: job for job in jobs}
        self._arenas = _Arenas(jobs, options)

    def jobs_left(self) -> list[Job]:
        """Jobs without a row, and those that were timed while others took too much."""
        jobs = list(self._by_number.values())
        return self.journal.left(jobs, self._options.seed, lambda row: row.busy)

    def finals_left(self) -> list[Job]:
        """The best of each T that did not have their second contest, or had it while others took too much."""
        rows = self.journal.rows
        return [
            self._by_number[number]
            for number in finals(rows)
            if rows[number].final_ratio is None or rows[number].final_busy
        ]

    def controls_left(self) -> list[tuple[int, QuantMode]]:
        """T and quant modes with timed rows whose baseline was not timed against itself, or at a busy time."""
        done = {(c.t, c.quant) for c in self.controls if not c.busy}
        timed = [number for number, row in self.journal.rows.items() if row.ratio is not None]
        groups = {(job.t, job.quant) for job in map(self._by_number.__getitem__, timed)}
        return sorted(groups - done)

    @property
    def controls(self) -> list[Control]:
        return controls_in(self.journal.facts.get("controls", []))

    def prepare(self, quant: QuantMode, bar: Bar) -> None:
        """Makes the weights of a mode, and checks its baseline, where that is still to be done."""
        with bar.busy("making weights and checking the baseline"):
            self._arenas.of(quant)

    def run(self, job: Job, watch: Watch) -> Row:
        row = run_job(job, self._arenas.of(job.quant), self._effort)
        load = watch.lately()
        row = replace(row, others=load.cores, busy=row.ratio is not None and load.disturbs(self._options.threads))
        with held_back():
            self.journal.add(row)
        return row

    @property
    def _longer(self) -> Effort:
        effort = self._effort
        return replace(effort, pairs=max(15, 3 * effort.pairs), seconds=3 * effort.seconds, most=2 * effort.most)

    def run_final(self, job: Job, watch: Watch) -> Row:
        arena = self._arenas.of(job.quant)
        timed, _ = time_pairs(arena, arena.contender(job.t, job.candidate.config, job.options), self._longer)
        load = watch.lately()
        row = with_final(self.journal.rows[job.number], timed)
        row = replace(row, final_others=load.cores, final_busy=load.disturbs(self._options.threads))
        with held_back():
            self.journal.add(row)
        return row

    def run_control(self, t: int, quant: QuantMode, watch: Watch) -> Control:
        arena = self._arenas.of(quant)
        timed, _ = time_pairs(arena, arena.contender(t), replace(self._longer, hopeless=math.inf))
        control = Control(t, quant, timed.interval, watch.lately().disturbs(self._options.threads))
        kept = [each.as_dict() for each in self.controls if (each.t, each.quant) != (t, quant)]
        with held_back():
            self.journal.change_facts({"controls": [*kept, control.as_dict()]})
        return control

    def end(self, watch: Watch) -> None:
        """Keeps what the machine was like, and the best rates that were seen."""
        seen = watch.end()
        rates = best_rates(self.journal.rates, best_rates(seen.before, seen.after))
        conditions = [*self.journal.facts.get("conditions", []), seen.conditions.as_dict()]
        with held_back():
            self.journal.change_facts(
                {"rates": rates_as_dict(rates), "rates_exact": asdict(rates), "conditions": conditions}
            )


def run_jobs(
    jobs: Sequence[Job], journal: Journal, effort: Effort, options: StudyOptions, warn: Callable[[str], None]
) -> None:
    """Runs the jobs that the journal lacks, the finals, and the controls; `warn` hears if the machine is busy."""
    study = _Study(jobs, journal, effort, options)
    left = study.jobs_left()
    if not left and not study.finals_left() and not study.controls_left():
        return
    watch = Watch(Probes(options.threads))
    if watch.so_far.is_busy:
        warn(str(watch.so_far))
    with progress_bar("sweep", len(jobs)) as advance:
        advance("", len(jobs) - len(left))
        for job in left:
            study.prepare(job.quant, advance)
            advance(_note(study.run(job, watch)), 1)
    finalists, groups = study.finals_left(), study.controls_left()
    with progress_bar("final", len(finalists) + len(groups)) as advance:
        for job in finalists:
            study.prepare(job.quant, advance)
            advance(_note(study.run_final(job, watch)), 1)
        for group in groups:
            study.prepare(group[1], advance)
            control = study.run_control(*group, watch)
            advance(f"T {control.t}: {control.ratio.median:.2f} of the baseline's time against itself", 1)
    study.end(watch)


def _note(row: Row) -> str:
    ratio = row.final_ratio or row.ratio
    return f"T {row.t}: {row.status}" if ratio is None else f"T {row.t}: {ratio:.2f} of the baseline's time"
