"""The command `mla-numba sweep`: time many plans, check each, draw what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..._version import __version__
from ...call.planning import this_machine
from ...tuning.journal import Journal
from ...tuning.rates import rates_as_dict
from ...tuning.study import Effort, Job, Row, reasons_of, with_limits
from ..faults import own_plan_is_exact
from ..shown import print_wide
from .choice import Choice
from .options import StudyOptions, check_files
from .plots import PICTURES, draw_all
from .tables import show_rows, write_csv, write_json
from .timing import open_journal, run_jobs

__all__ = ["sweep"]

_FILES = ("journal.jsonl", "sweep.csv", "sweep.json")
_MOST_SHOWN = 5  # of each T
_TABLE_WIDTH = 110


def sweep(ctx: click.Context, **given: Any) -> None:
    """Times the candidates, writes and shows what came of it, and sets the exit status."""
    options = StudyOptions(**given)
    options.check_together()
    choice = Choice.of(options)
    check_files(options.out, [*_FILES, *(() if options.no_plot else PICTURES)])
    jobs, n_left_out = choice.jobs(options)
    spec = _spec(options, jobs)
    journal = open_journal(options.out, spec, options.restart, options.threads)
    effort = Effort(pairs=options.pairs, most=max(Effort.most, options.pairs))
    interrupted = False
    try:
        with own_plan_is_exact():
            try:
                run_jobs(jobs, journal, effort, options)
            except KeyboardInterrupt:
                interrupted = True
        rows = with_limits(journal.rows, journal.rates)
        _write(options, journal, spec, rows)
        _show(options, journal, rows, n_left_out)
    except BrokenPipeError:  # whoever reads the report has gone: click ends the command
        raise
    except OSError as error:
        raise click.ClickException(f"--out: expected to write there, got {error}") from None
    if interrupted:
        click.echo(f"interrupted: {len(jobs) - len(rows)} candidates are left; give the same command again to continue")
        ctx.exit(130)
    if any(row.status == "wrong" for row in rows):
        ctx.exit(1)


def _spec(options: StudyOptions, jobs: Sequence[Job]) -> dict[str, Any]:
    """What is studied; a journal of the same is continued."""
    return {
        "tokens": options.tokens, "phase": options.phase, "dims": asdict(options.sizes), "threads": options.threads,
        "pairs": options.pairs, "weight_sets": options.weight_sets, "seed": options.seed, "version": __version__,
        "machine": str(this_machine()),
        "jobs": [[job.number, job.t, job.quant, str(job.candidate), options.base or ""] for job in jobs],
    }  # fmt: skip


def _tables(out: Path) -> tuple[Path, Path]:
    return out / "sweep.csv", out / "sweep.json"


def _write(options: StudyOptions, journal: Journal, spec: dict[str, Any], rows: list[Row]) -> None:
    csv, json = _tables(options.out)
    write_csv(csv, rows)
    write_json(json, journal.facts, spec, rows)


def _show(options: StudyOptions, journal: Journal, rows: list[Row], n_left_out: int) -> None:
    """Shows the best, and where all of it is; draws the pictures."""
    print_wide(show_rows(rows, None if options.presets else _MOST_SHOWN), _TABLE_WIDTH)
    click.echo(_summary(rows, n_left_out))
    click.echo(", ".join(map(str, _tables(options.out))))
    if options.no_plot:
        return
    modes = ", ".join(dict.fromkeys(row.quant for row in rows))
    title = f"{this_machine().name}, {options.threads} threads, quant {modes}"
    try:
        click.echo(", ".join(map(str, draw_all(options.out, rows, rates_as_dict(journal.rates), title))))
    except ImportError:
        click.echo("no pictures: they need matplotlib (pip install 'mla_numba[plot]'); then give this command again")


def _summary(rows: list[Row], n_left_out: int) -> str:
    counts = {status: sum(row.status == status for row in rows) for status in dict.fromkeys(row.status for row in rows)}
    exact = [row for row in rows if row.exact is not None]
    wrong = [row for row in exact if not row.exact]
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    bits = f"{len(exact) - len(wrong)} of {len(exact)} plans gave every bit of the reference"
    lines = [f"{said}; {n_left_out} left out by restrictions; {bits}"]
    lines += reasons_of([row.reason for row in rows if row.status == "refused"])
    return "\n".join([*lines, *(f"wrong: {row.settings} at {row.t} tokens: {row.reason}" for row in wrong)])
