"""The command `mla-numba sweep`: time many plans, check each, draw what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..._version import __version__
from ...base.extras import how_to_install
from ...call.planning import this_machine
from ...tuning.journal import Journal
from ...tuning.study import Effort, Job
from ..faults import own_plan_is_exact
from ..interrupts import held_back, saying_what_is_kept
from ..shown import TABLE_WIDTH, print_wide
from .choice import Choice, own_plan
from .closing import closing, counted
from .found import Found
from .options import StudyOptions, check_files
from .plots import PICTURES, draw_all
from .t4 import write_t4
from .tables import show_rows, write_csv, write_json
from .timing import open_journal, run_jobs

__all__ = ["sweep"]

_FILES = ("journal.jsonl", "sweep.csv", "sweep.json", "sweep.t4.json")
_MOST_SHOWN = 5  # of each T


def sweep(ctx: click.Context, **given: Any) -> None:
    """Times the candidates, writes and shows what came of it, and sets the exit status."""
    options = StudyOptions(**given)
    options.check_together()
    with saying_what_is_kept(lambda: "nothing was timed"):
        choice = Choice.of(options)
        check_files(options.out, [*_FILES, *(() if options.no_plot else PICTURES)])
        jobs, n_left_out = choice.jobs(options)
        spec = _spec(options, jobs)
        journal = open_journal(options.out, spec, options.restart, options.threads)
    effort = Effort(pairs=options.pairs, most=max(Effort.most, options.pairs))
    try:
        with own_plan_is_exact(), saying_what_is_kept(lambda: _kept(options, journal, spec, jobs)):
            run_jobs(jobs, journal, effort, options, lambda said: click.echo(said, err=True))
            found = Found.of(journal, jobs, options)
            with held_back():
                _write(options, journal, spec, found)
            _show(options, journal, spec, found, (len(jobs), n_left_out))
    except BrokenPipeError:  # the reader of the pipe has gone: click ends the command
        raise
    except OSError as error:
        raise click.ClickException(f"--out: expected to write there, got {error}") from None
    if any(row.status == "wrong" for row in found.rows):
        ctx.exit(1)


def _spec(options: StudyOptions, jobs: Sequence[Job]) -> dict[str, Any]:
    """What is studied; a journal of the same is continued."""
    return {
        "tokens": options.tokens, "phase": options.phase, "dims": asdict(options.sizes), "threads": options.threads,
        "pairs": options.pairs, "weight_sets": options.weight_sets, "seed": options.seed, "version": __version__,
        "machine": str(this_machine()),
        "jobs": [[job.number, job.t, job.quant, str(job.candidate), options.base or ""] for job in jobs],
    }  # fmt: skip


def _kept(options: StudyOptions, journal: Journal, spec: dict[str, Any], jobs: Sequence[Job]) -> str:
    """Writes what an interrupted sweep has so far, and says what is left."""
    with held_back():
        found = Found.of(journal, jobs, options)
        try:
            _write(options, journal, spec, found)
        except OSError as error:
            raise click.ClickException(f"--out: expected to write there, got {error}") from None
    left = len(jobs) - len(found.rows)
    kept = f"{left} of {len(jobs)} candidates are left, the others" if left else "all candidates were timed and"
    return f"{kept} are kept in {options.out}; give the same command again to continue"


def _files(out: Path) -> tuple[Path, Path, Path]:
    return out / "sweep.csv", out / "sweep.json", out / "sweep.t4.json"


def _write(options: StudyOptions, journal: Journal, spec: dict[str, Any], found: Found) -> None:
    csv, json, t4 = _files(options.out)
    write_csv(csv, found.rows)
    write_json(json, _facts(options, journal, found), spec, found)
    write_t4(t4, journal.facts, found.rows)


def _facts(options: StudyOptions, journal: Journal, found: Found) -> dict[str, Any]:
    """What the journal knows of the machine, and the planner's own plan of each T and quant mode."""
    groups = dict.fromkeys((row.t, row.quant) for row in found.rows)
    own = [{"t": t, "quant": quant, "plan": str(own_plan(options, t, quant))} for t, quant in groups]
    return {**journal.facts, "own_plans": own}


def _show(options: StudyOptions, journal: Journal, spec: dict[str, Any], found: Found, counts: tuple[int, int]) -> None:
    """Shows why the figures may be wrong, the best rows, what was found and where the files are; draws the pictures."""
    if found.conditions is not None and found.conditions.is_busy:
        click.echo(found.conditions)
    print_wide(show_rows(found.rows, None if options.presets else _MOST_SHOWN), TABLE_WIDTH)
    click.echo(counted(found.rows, *counts))
    click.echo(", ".join(map(str, _files(options.out))))
    _draw(options, journal, spec, found)
    for finding in found.findings:
        click.echo(closing(finding, found.line_of(finding.best)))


def _draw(options: StudyOptions, journal: Journal, spec: dict[str, Any], found: Found) -> None:
    """Draws the pictures, if they are wanted and matplotlib is there."""
    if options.no_plot:
        return
    record = {**_facts(options, journal, found), "sweep": spec, "findings": found.as_dicts()}
    try:
        click.echo(", ".join(map(str, draw_all(options.out, record, found.rows))))
    except ImportError:
        how = how_to_install("plot", "matplotlib")
        click.echo(f"no pictures: they need matplotlib ({how}); then give this command again")
